"""How a model gets the hints that it reads: of clean samples, of given pictures, or of examples that it keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from flowdiff.errors import ConfigurationError, RunError
from flowdiff.models.conditioners.base import EXAMPLES, Described
from flowdiff.shapes import times


class Seen(Described, Protocol):
    """A batch with its raw samples, see flowdiff.data.base.Batch."""

    @property
    def x(self) -> Tensor: ...


class MakesHints(Protocol):
    """A hint, see flowdiff/data/hints/.

    agreement: what `obeyed` measures.
    """

    agreement: str

    @property
    def channels(self) -> int:
        """Number of its channels."""

    def __call__(self, x: Tensor, /) -> Tensor:
        """The hints (B, channels, H, W) in [-1, 1] of clean samples (B, C, H, W)."""

    def obeyed(self, asked: Tensor, found: Tensor) -> Tensor:
        """How well samples with the hints `found` obey those that were asked for, (B,)."""


class Hinting(nn.Module):
    """The hints of a model, and those of test samples that it keeps to draw samples for where none is given.

    Args:
        make: the hint.
        clean: raw samples, as a data set has them → clean samples in [-1, 1].
        quantize: samples → samples of the data's levels, which hints are made of.
        sides: (H, W) of a hint.

    Attributes:
        pictures: (n, channels, H, W) uint8, the hints of the examples; n = 0 before `fit`.
        label: (n,) int64, their classes.
        texts: their captions; empty without captions.
    """

    def __init__(
        self,
        make: MakesHints,
        clean: Callable[[Tensor], Tensor],
        quantize: Callable[[Tensor], Tensor],
        sides: tuple[int, int],
    ):
        super().__init__()
        self.makers = [make]
        self.clean = clean
        self.quantize = quantize
        self.shape = (make.channels, *sides)
        self.pictures = torch.zeros(0, *self.shape, dtype=torch.uint8)
        self.label = torch.zeros(0, dtype=torch.int64)
        self.texts: tuple[str, ...] = ()

    def of(self, x: Tensor) -> Tensor:
        """The hints (B, channels, H, W) of samples x (B, C, H, W) in [-1, 1], in the precision of x."""
        levels = self.quantize(x)
        return torch.cat([make(levels) for make in self.makers], dim=1)

    def of_raw(self, raw: Tensor) -> Tensor:
        """The hints of raw samples of the data set."""
        return self.of(self.clean(raw))

    def fit(self, raw: Tensor, label: Tensor, texts: Sequence[str]) -> None:
        """Keep the hints of these raw samples, with their classes and captions."""
        self.pictures = ((self.of_raw(raw) + 1) * 127.5).round().to(torch.uint8).cpu()
        self.label, self.texts = label.cpu(), tuple(texts)

    @staticmethod
    def number_of_examples() -> int:
        """How many test samples `fit` is for, at most: a Fréchet distance needs as varied hints as the data have."""
        return EXAMPLES

    def examples(self, n: int) -> Tensor:
        """Hints of examples for n samples, in turn, (n, channels, H, W)."""
        if not len(self.pictures):
            raise ConfigurationError(
                "this model reads hints and has none to draw samples for: give pictures, hint_of=a.png, or train it."
            )
        return self.pictures[torch.arange(n) % len(self.pictures)].float() / 127.5 - 1

    def checked(self, hint: Tensor) -> Tensor:
        """Hints (m, channels, H, W); ConfigurationError if they have another shape."""
        if tuple(hint.shape[1:]) != self.shape:
            raise ConfigurationError(
                f"the hints have shape {times(hint.shape[1:])}, and this model reads hints of {times(self.shape)}: "
                "give pictures of that size."
            )
        return hint

    def obeyed(self, asked: Tensor, found: Tensor) -> dict[str, Tensor]:
        """{name of a measure: how well samples with the hints `found` obey those that were asked for, (B,)}."""
        sizes = [make.channels for make in self.makers]
        parts = zip(self.makers, asked.split(sizes, 1), found.split(sizes, 1), strict=True)
        return {make.agreement: make.obeyed(a, f) for make, a, f in parts}

    def extend(self, other: Hinting) -> None:
        """Read the hints of another model behind these; the examples stay if both have those of the same samples."""
        if self.shape[1:] != other.shape[1:]:
            raise RunError(
                f"the hints of {times(other.shape[1:])} do not go with hints of {times(self.shape[1:])}: take adapters "
                "that were trained on data of one size."
            )
        same = torch.equal(self.label, other.label) and self.texts == other.texts
        pictures = torch.cat([self.pictures, other.pictures], 1) if same else None
        self.makers = [*self.makers, *other.makers]
        self.shape = (self.shape[0] + other.shape[0], *self.shape[1:])
        self.pictures = torch.zeros(0, *self.shape, dtype=torch.uint8) if pictures is None else pictures

    def get_extra_state(self) -> dict[str, Any]:
        return {"pictures": self.pictures, "label": self.label, "texts": list(self.texts)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.pictures, self.label, self.texts = state["pictures"], state["label"], tuple(state["texts"])
