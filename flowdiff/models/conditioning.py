"""The condition of a model: one vector per sample, a sequence of tokens per sample, or both."""

from __future__ import annotations

from collections.abc import Iterable
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
        guidance: (B, 2), the weights of guidance inside a flow at its first and its last token; None without guidance.
            The batch then holds pairs, see flowdiff/models/flows/guided.py.
        gate: (B,), γ² of a score flow's gate (flowdiff/models/flows/gate.py), which only a flow reads; None without.
        label: (B,) int64, the class of each sample, −1 for no class; None if no sample has a class. Only a score flow
            whose base is a mixture for each class reads it (flowdiff/models/networks/mixture_base.py).
        hint: (B, C, H, W) in [-1, 1], the pictures that the controls of a model read, one behind the other
            (flowdiff/models/nn/control.py); None without.
    """

    vector: Tensor | None = None
    tokens: Tensor | None = None
    mask: Tensor | None = None
    guidance: Tensor | None = None
    gate: Tensor | None = None
    label: Tensor | None = None
    hint: Tensor | None = None

    @staticmethod
    def cat(parts: list[Conditioning]) -> Conditioning:
        """Join the batches of several conditions along B; shorter sequences are padded with tokens that do not count.

        Raises:
            ValueError: only some of the conditions have a vector, tokens, guidance, a gate or a hint.
        """
        names = ("vector", "tokens", "guidance", "gate", "hint")
        if len({tuple(getattr(c, name) is None for name in names) for c in parts}) > 1:
            raise ValueError(
                "these conditions cannot be joined, because only some have a vector, tokens, guidance, a gate or a "
                "hint: give the null condition the same parts as the others, a vector of zeros or tokens of shape "
                "(n, 0, E)."
            )
        vector = _joined(part.vector for part in parts)
        others = {name: _joined(getattr(part, name) for part in parts) for name in ("guidance", "gate", "hint")}
        if any(part.label is not None for part in parts):
            others["label"] = torch.cat([part.label if part.label is not None else part.no_label() for part in parts])
        sequences = [part.tokens for part in parts if part.tokens is not None]
        if not sequences:
            return Conditioning(vector, **others)
        longest = max(tokens.shape[1] for tokens in sequences)
        gaps = [longest - tokens.shape[1] for tokens in sequences]
        tokens = torch.cat([_padded(part, 0, 0, 0, gap) for part, gap in zip(sequences, gaps, strict=True)])
        if not any(gaps) and all(part.mask is None for part in parts):
            return Conditioning(vector, tokens, **others)
        masks = [_padded(part.token_mask(), 0, gap) for part, gap in zip(parts, gaps, strict=True)]
        return Conditioning(vector, tokens, torch.cat(masks), **others)

    def __getitem__(self, rows: Tensor) -> Self:
        """The conditions of the selected samples: rows holds their positions (b,), repeats allowed, or is (B,) bool."""
        return replace(self, **{name: part[rows] for name, part in vars(self).items() if part is not None})

    def no_label(self) -> Tensor:
        """The label −1 for each of the samples, (B,)."""
        part = next(part for part in vars(self).values() if part is not None)
        return torch.full((len(part),), -1, device=part.device)

    @property
    def device(self) -> torch.device:
        """The device of its parts."""
        return next(part.device for part in vars(self).values() if part is not None)

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

    def with_vector(self, vector: Tensor) -> Self:
        """The same condition with another vector (B, E)."""
        return replace(self, vector=vector)


def _joined(parts: Iterable[Tensor | None]) -> Tensor | None:
    """The parts joined along B; None if there is none."""
    given = [part for part in parts if part is not None]
    return torch.cat(given) if given else None


def _padded(part: Tensor, *gaps: int) -> Tensor:
    """A padded tensor; itself if there is nothing to add, where F.pad would copy it."""
    return F.pad(part, gaps) if any(gaps) else part
