"""From what a batch says about itself to a Conditioning: labels become vectors or tokens, or give way to "nothing"."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioning import Conditioning
from flowdiff.registry import register


class Conditioner(nn.Module, ABC):
    """Labels (B,) → the condition of each sample, and now and then, while training, the null condition instead.

    One of another kind, of words say, sets its widths, `num_classes` and `drop`, and says what `condition` and `null`
    are. Tokens are a set to what reads them: where their order matters, they have to hold their position.
    """

    dim: int = 0  # width of the vector, 0 if there is none
    token_dim: int = 0  # width of the tokens, 0 if there are none
    num_classes: int | None = None  # labels are 0 … num_classes − 1; None: the model is unconditional
    drop: float = 0.0  # probability of training a sample on the null condition

    @abstractmethod
    def condition(self, label: Tensor) -> Conditioning | None:
        """The condition of labels (B,) int64: vector (B, dim), tokens (B, L, token_dim) with a mask, or both."""

    @abstractmethod
    def null(self, n: int) -> Conditioning | None:
        """The condition of n samples that nothing is said of; of the same parts, its tokens as few as it likes."""

    def forward(self, label: Tensor, generator: torch.Generator | None = None) -> Conditioning | None:
        """The condition of labels (B,); while training each gives way to null with probability `drop` ∈ [0, 1).

        Source: Ho & Salimans, Classifier-free diffusion guidance, 2022.
        """
        cond = self.condition(label)
        if not (self.training and self.drop > 0):
            return cond
        rows = torch.arange(len(label), device=label.device)
        rows = torch.where(dropped(label, self.drop, generator), len(label), rows)
        return Conditioning.cat([cond, self.null(1)])[rows]


@register("conditioner", "none")
class Unconditional(Conditioner):
    """No condition: every method gives None."""

    def __init__(self):
        super().__init__()

    def condition(self, label: Tensor) -> None:
        return None

    def null(self, n: int) -> None:
        return None


@register("conditioner", "class")
class ClassConditioner(Conditioner):
    """A learned embedding per class, and one more for "no class": the null condition of classifier-free guidance.

    label (B,) int64 in [0, num_classes) → Conditioning with vector (B, dim).
    """

    def __init__(self, num_classes: int | None, *, dim: PositiveInt, drop: Annotated[float, Field(ge=0, lt=1)]):
        super().__init__()
        self.num_classes = checked_classes(num_classes, "class")
        self.dim = dim
        self.drop = drop
        self.embedding = nn.Embedding(num_classes + 1, dim)  # the last row is the null class

    def condition(self, label: Tensor) -> Conditioning:
        return Conditioning(self.embedding(label))

    def null(self, n: int) -> Conditioning:
        label = torch.full((n,), self.num_classes, device=self.embedding.weight.device)
        return Conditioning(self.embedding(label))


@register("conditioner", "one_hot")
class OneHot(Conditioner):
    """The class itself: label (B,) int64 in [0, C) → Conditioning with vector (B, C), zeros but for a one at the label.

    All zeros is the null condition.
    """

    def __init__(self, num_classes: int | None, *, drop: Annotated[float, Field(ge=0, lt=1)]):
        super().__init__()
        self.num_classes = self.dim = checked_classes(num_classes, "one_hot")
        self.drop = drop
        self.register_buffer("rows", torch.eye(self.dim), persistent=False)

    def condition(self, label: Tensor) -> Conditioning:
        return Conditioning(self.rows[label])

    def null(self, n: int) -> Conditioning:
        return Conditioning(self.rows.new_zeros(n, self.dim))


def dropped(label: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """Which labels (B,) are dropped, (B,) bool, each with probability `rate`, drawn on the generator's device."""
    source = generator.device if generator is not None else label.device
    return torch.rand(len(label), generator=generator, device=source).to(label.device) < rate


def checked_classes(num_classes: int | None, name: str) -> int:
    """num_classes; ConfigurationError where the data has none."""
    if num_classes is None:
        raise ConfigurationError(
            f"conditioner={name} needs labelled data and this dataset has no classes: take conditioner=none."
        )
    return num_classes
