"""No adapter."""

from __future__ import annotations

from torch import nn

from flowdiff.models.adapters.base import Adapter
from flowdiff.registry import register


@register("adapter", "none")
class NoAdapter(Adapter):
    """All weights of the model are trained, from scratch."""

    def attach(self, model: nn.Module) -> None:
        """Leave the model as it is."""
