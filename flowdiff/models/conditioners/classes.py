"""Conditions from the class of each sample: a learned embedding, a one-hot vector, or none."""

from __future__ import annotations

from typing import Annotated, Literal

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioners.base import Conditioner, Given
from flowdiff.models.conditioning import Conditioning
from flowdiff.registry import register


@register("conditioner", "none")
class Unconditional(Conditioner):
    """No condition, for unconditional models: every method returns None."""

    def __init__(self) -> None:
        super().__init__()

    def condition(self, given: Given) -> None:
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

    def condition(self, given: Given) -> Conditioning:
        assert isinstance(given, Tensor)  # `given` reads labels
        return Conditioning(self.embedding(given), label=given)

    def null(self, n: int) -> Conditioning:
        weight = self.embedding.weight
        vector = weight.mean(0) if self.null_is_mean else weight[-1]
        return Conditioning(vector.expand(n, -1), label=no_class(n, weight.device))


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

    def condition(self, given: Given) -> Conditioning:
        assert isinstance(given, Tensor)  # `given` reads labels
        return Conditioning(self.rows[given], label=given)

    def null(self, n: int) -> Conditioning:
        return Conditioning(self.rows.new_zeros(n, self.dim), label=no_class(n, self.rows.device))


def no_class(n: int, device: torch.device) -> Tensor:
    """Labels (n,) of samples without a class."""
    return torch.full((n,), -1, device=device)


def require_classes(num_classes: int | None, name: str) -> int:
    """num_classes; ConfigurationError if the dataset has no classes."""
    if num_classes is None:
        raise ConfigurationError(f"conditioner={name} needs classes, and this dataset has none: set conditioner=none.")
    return num_classes
