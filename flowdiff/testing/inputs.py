"""What the laws of models are tried on: samples, conditions, and parameters far from their start."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from flowdiff.models.conditioning import Conditioning
from flowdiff.models.nn.embeddings import ConditionEmbedding

M = TypeVar("M", bound=nn.Module)


def samples(n: int, shape: tuple[int, ...], scale: float = 1.5) -> Tensor:
    """n normal samples with standard deviation `scale`, (n, *shape) float64, the same in every call."""
    return scale * torch.randn((n, *shape), generator=torch.Generator().manual_seed(3), dtype=torch.float64)


def condition(n: int, embed_dim: int, cond_dim: int = 0, seed: int = 2) -> Conditioning:
    """The condition of n samples as a flow gets it: an embedding of noise level and condition, a gate, and tokens.

    γ² runs from 1 down to ¼, so that the gate matters and the flow stays far from the identity.

    Args:
        n: number of samples; their noise levels run from 0.01 to 50.
        embed_dim: width of the embedding, cond.vector (n, embed_dim).
        cond_dim: width of the condition's own vector and of its tokens (n, 3, cond_dim), 1 to 3 count; with 0
            the embedding is that of the noise level alone, without tokens.
        seed: the condition of another seed is another condition.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        embedding = ConditionEmbedding(embed_dim, cond_dim).double()
        c = Conditioning(torch.randn(n, cond_dim, dtype=torch.float64)) if cond_dim else None
        sigma = torch.logspace(-2, math.log10(50), n, dtype=torch.float64)
        e = embedding(0.25 * sigma.log(), c).vector
        e = e / e.std()  # of order one, as after training
        gate = torch.linspace(1, 0.25, n, dtype=torch.float64)
        if not cond_dim:
            return Conditioning(e, gate=gate)
        mask = torch.arange(3) <= (torch.arange(n) % 3)[:, None]
        return Conditioning(e, torch.randn(n, 3, cond_dim, dtype=torch.float64), mask, gate=gate)


def repeated(cond: Conditioning, i: int, n: int) -> Conditioning:
    """The condition of sample i, n times."""
    return cond[torch.full((n,), i)]


def in_dtype(cond: Conditioning, dtype: torch.dtype) -> Conditioning:
    """The condition with its numbers in another floating-point type."""
    numbers = {name: part for name, part in vars(cond).items() if part is not None and part.is_floating_point()}
    return replace(cond, **{name: part.to(dtype) for name, part in numbers.items()})


def perturb(module: M, gain: float = 0.5, seed: int = 1) -> M:
    """Add gain·N(0, 1/fan_in) to every parameter, in place: zero-initialised layers get outputs of order one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            taps = min(p[0, 0].numel(), 4) if p.ndim > 1 else 1  # 4 taps of a 3×3 kernel lie on a grid of 2×2 pixels
            fan_in = taps * p.shape[1] if p.ndim > 1 else 1
            p.add_(gain * torch.randn(p.shape, generator=generator).to(p) / fan_in**0.5)
    return module
