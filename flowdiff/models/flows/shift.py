"""The shift of each number of a sample by the condition, in front of flows whose nets cannot tell the numbers apart.

At high noise all that is left of a class is its mean, a shift of each number of y (flowdiff/models/flows/gate.py), and
the input u = γ·y of a flow is 0. A net of convolutions then gives the same shift to all pixels, up to the border, so
that it cannot contain that mean. A linear map of e can, and learns it as fast as a net of vectors.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.gate import gated
from flowdiff.models.flows.guided import guided_forward
from flowdiff.models.flows.steered import Steered


class Shift(Steered):
    """A shift of each number of x by the embedding e; the identity at the start.

    z = x + γ²·(W e + b),  log|det| = 0,  W and b 0 at the start

    Args:
        shape: shape of one sample; W has embed_dim·prod(shape) entries.
        embed_dim: width of e.
    """

    takes_gate = True
    guidance_orders = ("all",)

    def __init__(self, shape: tuple[int, ...], embed_dim: int):
        super().__init__(embed_dim, math.prod(shape))
        self.shape = tuple(shape)

    def forward(self, x: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        return x + self._shift(cond), x.new_zeros(len(x))

    def inverse(self, z: Tensor, cond: Conditioning) -> tuple[Tensor, Tensor]:
        shift = self._shift(cond)
        if cond.guidance is not None:
            _, shift = guided_forward(torch.zeros_like(shift), shift, cond.guidance[:, 1])
        return z - shift, z.new_zeros(len(z))

    def _shift(self, cond: Conditioning) -> Tensor:
        return gated(self.steered(cond), cond).unflatten(1, self.shape)
