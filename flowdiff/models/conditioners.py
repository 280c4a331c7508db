"""Conditioners turn the labels of a batch into a Conditioning: vectors, tokens, or the null condition."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioning import Conditioning
from flowdiff.registry import register


class Conditioner(nn.Module, ABC):
    """Labels (B,) → the condition of each sample; in training some labels are replaced by the null condition.

    A subclass sets `dim`, `token_dim`, `num_classes` and `drop` and implements `condition` and `null`. Networks read
    tokens as a set: if their order matters, each token must contain its position.
    """

    dim: int = 0  # width of the vector, 0 without a vector
    token_dim: int = 0  # width of the tokens, 0 without tokens
    num_classes: int | None = None  # labels are 0 … num_classes − 1; None: the model is unconditional
    drop: float = 0.0  # probability of replacing a label by the null condition in training

    @abstractmethod
    def condition(self, label: Tensor) -> Conditioning | None:
        """The condition of labels (B,) int64: vector (B, dim), tokens (B, L, token_dim) with a mask, or both."""

    @abstractmethod
    def null(self, n: int) -> Conditioning | None:
        """The null condition of n samples: the same parts as `condition` gives, with any number of tokens."""

    def forward(self, label: Tensor, generator: torch.Generator | None = None) -> Conditioning | None:
        """The condition of labels (B,); in training each is the null condition with probability `drop` ∈ [0, 1).

        Source: Ho, Salimans, Classifier-free diffusion guidance, 2022.
        """
        cond = self.condition(label)
        null = self.null(1) if self.training and self.drop > 0 else None
        if cond is None or null is None:
            return cond
        rows = torch.arange(len(label), device=label.device)
        rows = torch.where(dropped(label, self.drop, generator), len(label), rows)  # row len(label) is the null one
        return Conditioning.cat([cond, null])[rows]


@register("conditioner", "none")
class Unconditional(Conditioner):
    """No condition, for unconditional models: every method returns None."""

    def __init__(self) -> None:
        super().__init__()

    def condition(self, label: Tensor) -> None:
        return None

    def null(self, n: int) -> None:
        return None


@register("conditioner", "class")
class ClassConditioner(Conditioner):
    """A learned embedding for each class, and a null condition, "no class", for classifier-free guidance.

    label (B,) int64 in [0, num_classes) → Conditioning with vector (B, dim)

    With null_condition=mean the samples without a label train the vectors of all classes, instead of one of their own.

    Args:
        num_classes: number of classes of the dataset, None if it has none.
        dim: width of the vector, ≥ 1.
        drop: probability in [0, 1) of replacing a label by the null condition in training.
        null_condition: learned, a vector of its own, or mean, the mean of the vectors of all classes.

    Raises:
        ConfigurationError: the dataset has no classes, or null_condition=mean and it has one, which is its own mean.

    Source: Ho, Salimans, Classifier-free diffusion guidance, 2022; the mean: iTARFlow, arXiv 2604.20041, 2026.
    """

    def __init__(
        self,
        num_classes: int | None,
        *,
        dim: PositiveInt,
        drop: Annotated[float, Field(ge=0, lt=1)],
        null_condition: Literal["learned", "mean"],
    ):
        super().__init__()
        self.num_classes = require_classes(num_classes, "class")
        if null_condition == "mean" and self.num_classes == 1:
            raise ConfigurationError(
                "conditioner.null_condition=mean is the mean of the classes, and this dataset has a single one: set "
                "conditioner.null_condition=learned or conditioner=none."
            )
        self.dim = dim
        self.drop = drop
        self.null_is_mean = null_condition == "mean"
        rows = self.num_classes if self.null_is_mean else self.num_classes + 1  # the last row is the learned null class
        self.embedding = nn.Embedding(rows, dim)

    def condition(self, label: Tensor) -> Conditioning:
        return Conditioning(self.embedding(label))

    def null(self, n: int) -> Conditioning:
        if self.null_is_mean:
            return Conditioning(self.embedding.weight.mean(0).expand(n, -1))
        label = torch.full((n,), self.embedding.num_embeddings - 1, device=self.embedding.weight.device)
        return Conditioning(self.embedding(label))


@register("conditioner", "one_hot")
class OneHot(Conditioner):
    """The class as a one-hot vector; the null condition is a vector of zeros.

    label (B,) int64 in [0, num_classes) → Conditioning with vector (B, num_classes)

    Args:
        num_classes: number of classes of the dataset, None if it has none.
        drop: probability in [0, 1) of replacing a label by the null condition in training.

    Raises:
        ConfigurationError: the dataset has no classes.
    """

    rows: Tensor  # the identity matrix: row k is the vector of class k

    def __init__(self, num_classes: int | None, *, drop: Annotated[float, Field(ge=0, lt=1)]):
        super().__init__()
        self.num_classes = self.dim = require_classes(num_classes, "one_hot")
        self.drop = drop
        self.register_buffer("rows", torch.eye(self.dim), persistent=False)

    def condition(self, label: Tensor) -> Conditioning:
        return Conditioning(self.rows[label])

    def null(self, n: int) -> Conditioning:
        return Conditioning(self.rows.new_zeros(n, self.dim))


def dropped(label: Tensor, rate: float, generator: torch.Generator | None) -> Tensor:
    """Mask (B,) bool of the labels to drop, each with probability `rate`; drawn on the generator's device."""
    source = generator.device if generator is not None else label.device
    return torch.rand(len(label), generator=generator, device=source).to(label.device) < rate


def require_classes(num_classes: int | None, name: str) -> int:
    """num_classes; ConfigurationError if the dataset has no classes."""
    if num_classes is None:
        raise ConfigurationError(f"conditioner={name} needs classes, and this dataset has none: set conditioner=none.")
    return num_classes
