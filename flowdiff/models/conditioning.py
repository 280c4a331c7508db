"""The condition of a model: one vector per sample, a sequence of tokens per sample, or both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Conditioning:
    """The condition c of a batch of B samples.

    The length L may differ from batch to batch and may be 0. A token counts if its mask is True; the values of a token
    that does not count have no effect on any model.

    Args:
        vector: (B, E), or None without a vector.
        tokens: (B, L, E), or None without tokens.
        mask: (B, L) bool, True where a token counts; None if all of them count.
    """

    vector: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None

    @staticmethod
    def cat(parts: list[Conditioning]) -> Conditioning:
        """Join the batches of several conditions along B; shorter sequences are padded with tokens that do not count.

        Raises:
            ValueError: only some of the conditions have a vector, or only some have tokens.
        """
        if len({(part.vector is None, part.tokens is None) for part in parts}) > 1:
            raise ValueError(
                "these conditions cannot be joined, because only some have a vector, or only some have tokens: give "
                "the null condition the same parts as the others, a vector of zeros or tokens of shape (n, 0, E)."
            )
        vectors = [part.vector for part in parts if part.vector is not None]
        vector = torch.cat(vectors) if vectors else None
        sequences = [part.tokens for part in parts if part.tokens is not None]
        if not sequences:
            return Conditioning(vector)
        longest = max(tokens.shape[1] for tokens in sequences)
        gaps = [longest - tokens.shape[1] for tokens in sequences]
        tokens = torch.cat([F.pad(part, (0, 0, 0, gap)) for part, gap in zip(sequences, gaps, strict=True)])
        if not any(gaps) and all(part.mask is None for part in parts):
            return Conditioning(vector, tokens)
        masks = [F.pad(part.token_mask(), (0, gap)) for part, gap in zip(parts, gaps, strict=True)]
        return Conditioning(vector, tokens, torch.cat(masks))

    def __getitem__(self, rows: Tensor) -> Self:
        """The conditions of the selected samples: rows holds their positions (b,), repeats allowed, or is (B,) bool."""
        return replace(self, **{name: part[rows] for name, part in vars(self).items() if part is not None})

    def token_mask(self) -> Tensor:
        """Which tokens count, (B, L) bool; only for a condition with tokens."""
        if self.mask is not None:
            return self.mask
        assert self.tokens is not None
        return self.tokens.new_ones(self.tokens.shape[:2], dtype=torch.bool)

    def flat(self) -> Tensor:
        """Vector and tokens of each sample in one row, (B, E + L·E); zeros for tokens that do not count."""
        parts = [] if self.vector is None else [self.vector]
        if self.tokens is not None:
            parts.append(self.tokens.masked_fill(~self.token_mask()[..., None], 0).flatten(1))
        return torch.cat(parts, dim=1)

    def with_vector(self, vector: Tensor) -> Conditioning:
        """The same tokens with another vector (B, E)."""
        return Conditioning(vector, self.tokens, self.mask)
