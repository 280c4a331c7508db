"""What every conditioner offers: conditions, the null condition, and dropping in training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from flowdiff.models.conditioning import Conditioning

EXAMPLES = 2000  # training captions that a run keeps as prompts; a Fréchet distance needs as varied ones as the data


@dataclass(frozen=True)
class LabelledText:
    """Classes with captions.

    Args:
        label: (B,) int64; −1 where the class is not known.
        text: B captions; None where there is none.
    """

    label: Tensor
    text: Sequence[str | None]

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, rows: slice | Sequence[int]) -> LabelledText:
        """Some of them: a slice, or positions."""
        chosen = range(*rows.indices(len(self))) if isinstance(rows, slice) else rows
        return LabelledText(self.label[list(chosen)], [self.text[row] for row in chosen])


Given = Tensor | Sequence[str] | LabelledText
"""What conditions are made of: classes (B,) int64, B captions, or both."""


class Described(Protocol):
    """What a conditioner reads of a batch, see flowdiff.data.base.Batch."""

    @property
    def label(self) -> Tensor: ...

    @property
    def captions(self) -> Sequence[Sequence[str]] | None: ...


class Conditioner(nn.Module, ABC):
    """Classes or captions → the condition of each sample; in training some are replaced by the null condition.

    A subclass sets `dim`, `token_dim`, `num_classes` and `drop` and implements `condition` and `null`. Networks read
    tokens as a set: if their order matters, each token must contain its position.
    """

    dim: int = 0  # width of the vector, 0 without a vector
    token_dim: int = 0  # width of the tokens, 0 without tokens
    num_classes: int | None = None  # labels are 0 … num_classes − 1; None: the model does not read labels
    reads_text: bool = False  # whether `condition` takes captions, not labels
    alone: bool = True  # of one that reads both: whether it also takes a class alone, and a caption alone
    scales: tuple[float, float] | None = None  # the guidance scales that a condition can carry, see scaled.py
    drop: float = 0.0  # probability of replacing a condition by the null condition in training

    @abstractmethod
    def condition(self, given: Given) -> Conditioning | None:
        """The condition of labels (B,) int64, of B captions, or of both, with parts of width `dim` and `token_dim`.

        They are a vector (B, dim), tokens (B, L, token_dim) with a mask, or both.
        """

    @abstractmethod
    def null(self, n: int) -> Conditioning | None:
        """The null condition of n samples: the same parts as `condition` gives, with any number of tokens."""

    def fit(self, captions: Sequence[str], labels: Sequence[int] | None = None) -> None:
        """Learn the vocabulary of the training captions, before training; nothing for a conditioner of labels.

        captions: each once.
        labels: the class of a sample that each belongs to; None without classes.
        """

    def precompute(self, captions: Sequence[str]) -> None:
        """Compute once what training and its evaluation need of these captions, before training; usually nothing."""

    def examples(self) -> Sequence[str]:
        """Prompts that samples are drawn for, in turn, where none is given; empty for a conditioner of labels."""
        return ()

    def example_classes(self) -> Sequence[int]:
        """The class of each example, of a conditioner that reads both; else empty."""
        return ()

    def negative(self, prompt: str, n: int) -> Conditioning | None:
        """What a negative prompt puts in the place of the null condition of n samples: its own condition."""
        return self.condition([prompt] * n)

    def cut(self, text: str) -> str:
        """The end of a prompt that is not read because the prompt is too long; usually empty."""
        return ""

    def given(self, batch: Described, generator: torch.Generator | None = None) -> Given:
        """What `condition` takes of a batch: its labels, or one caption of each sample, drawn by the generator.

        Without a generator it is the first caption of each sample.
        """
        if not self.reads_text:
            return batch.label
        assert batch.captions is not None  # the engine has refused data without captions
        if generator is None:
            return [texts[0] for texts in batch.captions]
        share = torch.rand(len(batch.captions), generator=generator, device=generator.device).tolist()
        return [texts[int(u * len(texts))] for texts, u in zip(batch.captions, share, strict=True)]

    def forward(self, given: Given, generator: torch.Generator | None = None) -> Conditioning | None:
        """The condition of B labels or captions; in training each is the null condition with probability `drop`.

        Source: Ho, Salimans, Classifier-free diffusion guidance, 2022.
        """
        return self.with_drops(self.condition(given), len(given), generator)

    def with_drops(
        self, cond: Conditioning | None, n: int, generator: torch.Generator | None = None
    ) -> Conditioning | None:
        """The condition of n samples; in training each is replaced by the null condition with probability `drop`."""
        null = self.null(1) if self.training and self.drop > 0 else None
        if cond is None or null is None:
            return cond
        both = Conditioning.cat([cond, null])
        device = both.device
        rows = torch.arange(n, device=device)
        rows = torch.where(dropped(n, self.drop, generator, device), n, rows)  # row n is the null one
        return both[rows]


def example_captions(captions: Sequence[str]) -> tuple[str, ...]:
    """At most EXAMPLES of the captions, evenly spaced."""
    return tuple(captions[i] for i in range(0, len(captions), -(-len(captions) // EXAMPLES)))


def dropped(n: int, rate: float, generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Mask (n,) bool of the conditions to drop, each with probability `rate`; drawn on the generator's device."""
    source = generator.device if generator is not None else device
    return torch.rand(n, generator=generator, device=source).to(device) < rate
