"""From what a batch says about itself to a Conditioning: labels become vectors, and there is a null condition."""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from flowdiff.conditioning import Conditioning
from flowdiff.errors import ConfigurationError
from flowdiff.registry import register


@register("conditioner", "none")
class Unconditional(nn.Module):
    """No condition: every method gives None; `dim` and `token_dim`, the widths of vector and tokens, are 0."""

    dim = 0
    token_dim = 0
    num_classes: int | None = None
    drop = 0.0

    def __init__(self):
        super().__init__()

    def forward(self, label: Tensor, generator: torch.Generator | None = None) -> None:
        return None

    def null(self, n: int) -> None:
        return None


@register("conditioner", "class")
class ClassConditioner(nn.Module):
    """A learned embedding per class, and one more for "no class": the null condition of classifier-free guidance.

    label (B,) int64 in [0, num_classes) → Conditioning with vector (B, dim). While training each label is replaced by
    the null class with probability `drop` ∈ [0, 1) (Ho & Salimans, Classifier-free diffusion guidance, 2022).
    """

    token_dim = 0

    def __init__(self, num_classes: int | None, *, dim: PositiveInt, drop: Annotated[float, Field(ge=0, lt=1)]):
        super().__init__()
        self.num_classes = checked_classes(num_classes, "class")
        self.dim = dim
        self.drop = drop
        self.embedding = nn.Embedding(num_classes + 1, dim)  # the last row is the null class

    def forward(self, label: Tensor, generator: torch.Generator | None = None) -> Conditioning:
        if self.training and self.drop > 0:
            label = torch.where(dropped(label, self.drop, generator), self.num_classes, label)
        return Conditioning(self.embedding(label))

    def null(self, n: int) -> Conditioning:
        """The condition "no class" for n samples."""
        label = torch.full((n,), self.num_classes, device=self.embedding.weight.device)
        return Conditioning(self.embedding(label))


@register("conditioner", "one_hot")
class OneHot(nn.Module):
    """The class itself: label (B,) int64 in [0, C) → Conditioning with vector (B, C), zeros but for a one at the label.

    All zeros is the null condition, which while training takes a label's place with probability `drop` ∈ [0, 1).
    """

    token_dim = 0

    def __init__(self, num_classes: int | None, *, drop: Annotated[float, Field(ge=0, lt=1)]):
        super().__init__()
        self.num_classes = self.dim = checked_classes(num_classes, "one_hot")
        self.drop = drop
        self.register_buffer("rows", torch.eye(self.dim), persistent=False)

    def forward(self, label: Tensor, generator: torch.Generator | None = None) -> Conditioning:
        vector = self.rows[label]
        if self.training and self.drop > 0:
            vector = vector.masked_fill(dropped(label, self.drop, generator)[:, None], 0.0)
        return Conditioning(vector)

    def null(self, n: int) -> Conditioning:
        """The condition "no class" for n samples."""
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
