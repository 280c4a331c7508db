"""The residual net of vectors: its linear maps are matrices."""

from __future__ import annotations

from typing import final

from torch import nn

from flowdiff.models.nn.control import HintPart
from flowdiff.models.nn.embeddings import unit_linear
from flowdiff.models.nn.residual import NetSettings, ResidualNet


@final
class ResidualMLP(ResidualNet):
    """Residual net (B, in_features) → (B, out_features) that depends on the condition; 0 at the start."""

    def __init__(self, in_features: int, out_features: int, settings: NetSettings):
        super().__init__(in_features, out_features, settings, nn.Linear, nn.Linear)

    def hint_entry(self, part: HintPart) -> nn.Module:
        return nn.Sequential(nn.Flatten(), unit_linear(part.size, self.width, bias=False))
