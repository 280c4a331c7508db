"""Full fine-tuning: changes of full rank for all weights of a model."""

from __future__ import annotations

from pydantic import NonNegativeFloat, PositiveInt
from torch import nn

from flowdiff.models.adapters.base import Adapter
from flowdiff.models.adapters.lora import train_in_full, trained
from flowdiff.registry import register


@register("adapter", "full")
class FullFineTuning(Adapter):
    """All weights of the model of another run are trained further.

    W = W₀ + ΔW,  ΔW = 0 at the start, for every weight of the base that was trained

    The optimiser's weight decay acts on ΔW: it draws the model to the base, not to 0.

    Args:
        run: folder of the run whose model is the base.
        anchor: λ ≥ 0 of λ·‖D − D_base‖², or for a density λ·(log p − log p_base)²/D, which is added to the loss.
        anchor_steps: optimiser steps over which λ falls linearly to 0, ≥ 1; None: it stays.
    """

    def __init__(self, *, run: str | None, anchor: NonNegativeFloat, anchor_steps: PositiveInt | None):
        self.run = run
        self.anchor = anchor
        self.anchor_steps = anchor_steps

    def attach(self, model: nn.Module) -> None:
        parameters = trained(model)
        model.requires_grad_(False)
        train_in_full(parameters)
