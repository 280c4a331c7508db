"""A flow f maps data to base, z = f(x; c) with z ~ N(0, I), and knows log|det ∂z/∂x| exactly.

The condition is one vector per sample, the embedding of (¼ ln σ, c): it steers the parameters of f and is never an
extra dimension of x.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from flowdiff.models.conditioning import Conditioning
from flowdiff.models.nn.recompute import call


class Flow(nn.Module, ABC):
    """A bijection of sample space with a condition, data → base; both directions come with their log-determinant.

    A registered flow is built from `shape` (a sample's, without batch), `embed_dim` (the width of `cond.vector`) and
    `activation`, taking those it needs, and starts as the identity. Everything in it is C² in x unless its docstring
    says otherwise, because the score differentiates the log-determinant and score losses differentiate once more.
    """

    # What a flow that is less than this says of itself, as a class or once built.
    smooth: bool = True  # C² in x behind a smooth activation; otherwise the score or its derivative jumps
    twice_differentiable: bool = True  # by autograd; otherwise losses that differentiate the score are refused
    forward_differentiable: bool = True  # by torch's forward mode; otherwise loss.gradient=forward_mode is refused
    identity_at_start: bool = True
    inverse_by: str = "closed form"  # how f⁻¹ is found, in a few words for the documentation
    inverse_error: float = 0.0  # how far f⁻¹(f(x)) may lie from x beside rounding, for x of order one

    @abstractmethod
    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        """x (B, …) → z like x, log|det ∂z/∂x| (B,)."""

    @abstractmethod
    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        """z (B, …) → x like z, log|det ∂x/∂z| (B,)."""


class Sequential(Flow):
    """f = f_n ∘ … ∘ f_1: the flows applied in turn, their log-determinants added.

    checkpoint: each of them is computed again in the backward pass of data → base (flowdiff/models/nn/recompute.py).
    """

    def __init__(self, flows: Sequence[Flow], checkpoint: bool = False):
        super().__init__()
        self.checkpoint = checkpoint
        self.flows = nn.ModuleList(flows)

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        logdet = x.new_zeros(len(x))
        for flow in self.flows:
            x, term = call(flow, x, cond, checkpoint=self.checkpoint)
            logdet = logdet + term
        return x, logdet

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        logdet = z.new_zeros(len(z))
        for flow in reversed(self.flows):
            z, term = flow.inverse(z, cond)
            logdet = logdet + term
        return z, logdet


class Flattened(Flow):
    """A flow of vectors applied to samples of any shape: (B, C, H, W) is seen as (B, C·H·W)."""

    def __init__(self, flow: Flow):
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        z, logdet = self.flow(x.flatten(1), cond)
        return z.view_as(x), logdet

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        x, logdet = self.flow.inverse(z.flatten(1), cond)
        return x.view_as(z), logdet
