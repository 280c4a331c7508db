"""Flows whose parameters are a linear map of the embedding e, and of a hint where they have a control."""

from __future__ import annotations

from abc import ABC

from torch import Tensor, nn

from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.base import Flow, embedding
from flowdiff.models.nn.control import Control, Controllable, HintPart, SteerControl, with_residuals
from flowdiff.models.nn.inject import zero_init


class Steered(Flow, Controllable, ABC):
    """A flow whose parameters are W e + b, with W and b 0 at the start.

    Args:
        embed_dim: width of the embedding e.
        size: number of parameters.
    """

    def __init__(self, embed_dim: int, size: int):
        super().__init__()
        self.steer = zero_init(nn.Linear(embed_dim, size))
        self.controls = nn.ModuleList()

    def make_control(self, part: HintPart) -> Control:
        return SteerControl(self.steer, part)

    def steered(self, cond: Conditioning) -> Tensor:
        """The parameters (B, size), in the precision of e."""
        return with_residuals(self.steer(cond.vector), self.active(cond), cond).to(embedding(cond).dtype)
