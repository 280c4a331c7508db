"""A flow f maps data to base, z = f(x; c) with z ~ N(0, I), and computes log|det ∂z/∂x| exactly.

The condition is one vector per sample, the embedding e of (¼ ln σ, c). It sets the parameters of f and is never an
extra dimension of x.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn

from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.guided import GuidanceOrder
from flowdiff.models.nn.recompute import call


class Flow(nn.Module, ABC):
    """A conditional bijection of sample space; both directions return their log-determinant.

    z = f(x; e),  log p(x) = log N(z; 0, I) + log|det ∂z/∂x|

    A registered flow starts as the identity. Everything in it is C² in x unless its docstring says otherwise, because
    the score differentiates the log-determinant and score losses differentiate once more. The class attributes declare
    what a flow can do; a flow sets those that differ, on the class or on the instance.

    At run time a registered flow receives those of these arguments that its constructor names: `shape`, the shape of
    one sample, (C, H, W) or (D,); `embed_dim`, the width of the embedding cond.vector (B, embed_dim); `activation`;
    `token_dim`, the width of cond.tokens (B, L, token_dim), 0 without tokens.
    """

    smooth: bool = True  # C² in x with a smooth activation; if False the score or its derivative jumps
    twice_differentiable: bool = True  # by autograd; if False losses that differentiate the score are refused
    takes_gate: bool = False  # whether its parameters are multiplied by the gate (flowdiff/models/flows/gate.py)
    shares_weights: bool = False  # among places, so that the gate brings a shift of each (models/flows/shift.py)
    forward_differentiable: bool = True  # by torch's forward mode; if False loss.gradient=forward_mode is refused
    identity_at_start: bool = True
    inverse_by: str = "closed form"  # how f⁻¹ is computed, in a few words for the documentation
    guidance_orders: tuple[GuidanceOrder, ...] = ()  # of guidance inside its inverse; none: it ignores cond.guidance
    inverse_error: float = 0.0  # largest |f⁻¹(f(x)) − x| beyond rounding, for x of order one
    matrices: tuple[str, ...] = ()  # its own parameters (n, m) that are linear maps; an adapter may change them

    @abstractmethod
    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        """Data → base: x (B, …) → z like x, log|det ∂z/∂x| (B,) in nats."""

    @abstractmethod
    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        """Base → data: z (B, …) → x like z, log|det ∂x/∂z| (B,) in nats."""


class Sequential(Flow):
    """Flows applied one after the other; their log-determinants add up.

    f = f_n ∘ … ∘ f_1,  log|det| = Σ log|det f_i|

    Args:
        flows: f_1 … f_n, in the order data → base.
        checkpoint: recompute each flow in the backward pass instead of storing its activations (data → base only).
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
            assert isinstance(flow, Flow)  # nn.ModuleList does not keep the type of its elements
            z, term = flow.inverse(z, cond)
            logdet = logdet + term
        return z, logdet


class Flattened(Flow):
    """A flow of vectors applied to samples of any shape: (B, C, H, W) is viewed as (B, C·H·W).

    Args:
        flow: a flow of vectors (B, D), D the number of values in a sample.
    """

    def __init__(self, flow: Flow):
        super().__init__()
        self.flow = flow

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        z, logdet = self.flow(x.flatten(1), cond)
        return z.view_as(x), logdet

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        x, logdet = self.flow.inverse(z.flatten(1), cond)
        return x.view_as(z), logdet


def embedding(cond: Conditioning) -> Tensor:
    """The embedding e (B, embed_dim) of (¼ ln σ, c); every flow's condition has one."""
    if cond.vector is None:
        raise ValueError("a flow needs a condition with a vector (B, embed_dim): pass Conditioning(vector=…).")
    return cond.vector
