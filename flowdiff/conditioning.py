"""What a model is conditioned on: one vector per sample, a sequence of tokens per sample, or both."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Condition c of a batch of B samples.

    vector: (B, E) or None.  tokens: (B, L, E) or None, with mask (B, L), True where a token counts.
    """

    vector: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None

    @staticmethod
    def cat(parts: list[Conditioning]) -> Conditioning:
        """Join the batches of several conditionings of the same kind along B."""

        def join(name: str) -> Tensor | None:
            values = [getattr(part, name) for part in parts]
            return None if values[0] is None else torch.cat(values)

        return Conditioning(join("vector"), join("tokens"), join("mask"))

    def with_vector(self, vector: Tensor) -> Conditioning:
        """The same tokens beside another vector (B, E)."""
        return Conditioning(vector, self.tokens, self.mask)
