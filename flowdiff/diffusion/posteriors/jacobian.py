"""D and the products with its transposed Jacobian, v ↦ (∂D/∂x)ᵀ·v, from one recorded graph.

A density's D has no graph back to x, its log-density has one: D = x + σ²·∇log p and (∂D/∂x)ᵀv = v + σ²·∂(∇log p·v)/∂x,
a Hessian-vector product, whose matrix is symmetric. A raw network's Jacobian need not be symmetric.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from flowdiff.diffusion.guidance.base import Guidable
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.networks.base import Density
from flowdiff.shapes import append_dims

Product = Callable[[Tensor], Tensor]


def linearised(denoiser: Guidable, x: Tensor, sigma: Tensor, cond: Conditioning | None) -> tuple[Tensor, Product]:
    """D, like x (B, …), and v ↦ (∂D/∂x)ᵀ·v of each sample; works under no_grad.

    The denoiser is a model or an oracle without guidance: of a density the network's own log p is differentiated.
    """
    network = denoiser.network
    # A compiled network, and a fused attention, cannot be differentiated twice.
    with torch.enable_grad(), torch.compiler.set_stance("force_eager"), sdpa_kernel(SDPBackend.MATH):
        inner = x.detach().clone().requires_grad_(True)
        if not isinstance(network, Density):
            denoised = denoiser(inner, sigma, cond)
            return denoised.detach(), lambda v: torch.autograd.grad(denoised, inner, v, retain_graph=True)[0]
        (score,) = torch.autograd.grad(network.log_prob(inner, sigma, cond).sum(), inner, create_graph=True)
    variance = append_dims(sigma**2, x.ndim)

    def product(v: Tensor) -> Tensor:
        return v + variance * torch.autograd.grad(score, inner, v, retain_graph=True)[0]

    return (x + variance * score).detach(), product
