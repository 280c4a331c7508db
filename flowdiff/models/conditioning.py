"""What a model is conditioned on: one vector per sample, a sequence of tokens per sample, or both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """Condition c of a batch of B samples.

    vector: (B, E) or None.  tokens: (B, L, E) or None, with mask (B, L) bool, True where a token counts, or None where
    all do. L may differ from batch to batch and may be 0; what a token that does not count holds changes nothing.
    """

    vector: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None

    @staticmethod
    def cat(parts: list[Conditioning]) -> Conditioning:
        """Join the batches of several conditionings along B; shorter sequences get tokens that do not count.

        Raises ValueError unless all of them have a vector or none, and so with tokens.
        """
        if len({(part.vector is None, part.tokens is None) for part in parts}) > 1:
            raise ValueError(
                "these conditions cannot be joined, as only some have a vector, or only some have tokens: give the "
                "null condition what the others have, zeros for a vector or tokens (n, 0, E) where there is nothing."
            )
        vector = None if parts[0].vector is None else torch.cat([part.vector for part in parts])
        if parts[0].tokens is None:
            return Conditioning(vector)
        longest = max(part.tokens.shape[1] for part in parts)
        gaps = [longest - part.tokens.shape[1] for part in parts]
        tokens = torch.cat([F.pad(part.tokens, (0, 0, 0, gap)) for part, gap in zip(parts, gaps, strict=True)])
        if not any(gaps) and all(part.mask is None for part in parts):
            return Conditioning(vector, tokens)
        masks = [F.pad(part.counts(), (0, gap)) for part, gap in zip(parts, gaps, strict=True)]
        return Conditioning(vector, tokens, torch.cat(masks))

    def __getitem__(self, rows: Tensor) -> Self:
        """The conditions of some samples: rows (b,) are their positions, each as often as it is named, or (B,) bool."""
        return replace(self, **{name: part[rows] for name, part in vars(self).items() if part is not None})

    def counts(self) -> Tensor:
        """Which tokens count, (B, L) bool."""
        return self.tokens.new_ones(self.tokens.shape[:2], dtype=torch.bool) if self.mask is None else self.mask

    def flat(self) -> Tensor:
        """All that is said of a sample in one row, (B, E + L·E): tokens that do not count as zeros."""
        parts = [] if self.vector is None else [self.vector]
        if self.tokens is not None:
            parts.append(self.tokens.masked_fill(~self.counts()[..., None], 0).flatten(1))
        return torch.cat(parts, dim=1)

    def with_vector(self, vector: Tensor) -> Conditioning:
        """The same tokens beside another vector (B, E)."""
        return Conditioning(vector, self.tokens, self.mask)
