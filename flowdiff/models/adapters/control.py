"""Controls: the model of another run obeys a hint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import NonNegativeFloat
from torch import nn

from flowdiff.errors import ConfigurationError
from flowdiff.models.adapters.base import Adapter
from flowdiff.models.nn import control
from flowdiff.models.nn.control import HintPart
from flowdiff.registry import register


@register("adapter", "control")
class ControlNet(Adapter):
    """The model of another run is frozen, and copies of its nets are trained to add what a hint asks for.

    y = net(x; e) + s·copy(x; e, h),  the last layer of the copy 0 at the start

    Of a flow these are the nets that give the parameters of its maps: p(x|σ, c, h) is a normalised density for every h.
    Of network=unet it is the ControlNet of the paper, a copy of the encoder and of the middle with zero convolutions
    into every skip connection. The model starts as its base, bit for bit.

    Args:
        part: the channels of the hints that it reads.
        run: folder of the run whose model is the base.
        hint: name of an option in conf/hint, or its settings, e.g. {name: low_resolution, factor: 2}.
        strength: s ≥ 0; 0 is the base. Another one may be given at sampling.

    Raises:
        ConfigurationError: the base has no nets that take a control.

    Source: Zhang, Rao, Agrawala, Adding conditional control to text-to-image diffusion models, 2023.
    """

    def __init__(
        self,
        part: HintPart,
        *,
        run: str | None,
        hint: str | Mapping[str, Any],
        strength: NonNegativeFloat,
    ):
        self.part = part
        self.run = run
        self.hint = hint
        self.strength = strength

    def attach(self, model: nn.Module) -> None:
        model.requires_grad_(False)
        if not control.attach(model, self.part, self.strength):
            raise ConfigurationError(
                f"adapter.run={self.run} has no nets that a hint could control: take a run of network=score_flow, unet "
                "or mlp."
            )
