"""Two-dimensional toy densities with mean 0 and a mean variance of about 1.

Centre and scale are closed-form moments, so the density does not depend on a sample or its size.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import final

import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Generator, Tensor

from flowdiff.data.base import DataModule, Split, TensorSplit
from flowdiff.data.pixels import Vectors
from flowdiff.noise import step_generator
from flowdiff.registry import register


class Toy(DataModule):
    """Samples x (n, 2), float32, drawn from a fixed seed: every run has the same training and test points.

    Args:
        num_train: training points, ≥ 1.
        num_test: test points, ≥ 1.
        batch_size: points per batch of one process, ≥ 1.
        num_workers: loader processes, ≥ 0; they change the speed only.
    """

    shape = (2,)
    num_classes: int | None = None

    def __init__(
        self,
        *,
        num_train: PositiveInt,
        num_test: PositiveInt,
        batch_size: PositiveInt,
        num_workers: NonNegativeInt,
    ) -> None:
        super().__init__(Vectors(), batch_size, num_workers)
        self.num_train = num_train
        self.num_test = num_test

    @abstractmethod
    def draw(self, n: int, g: Generator) -> tuple[Tensor, Tensor | None]:
        """n points (n, 2) and their classes (n,), or None."""

    @final
    def load(self) -> tuple[Split, Split]:
        train = self.draw(self.num_train, step_generator(0, 0))
        test = self.draw(self.num_test, step_generator(0, 1))
        return TensorSplit(*train), TensorSplit(*test)


@final
@register("dataset", "two_moons")
class TwoMoons(Toy):
    """Two interleaved half circles of unit radius plus Gaussian noise; each half circle is a class.

    x = ((cos t, sin t) or (1 - cos t, 1/2 - sin t) + N(0, 0.05²) - (1/2, 1/4)) / 0.706,    t ~ U[0, π]
    """

    name = "two_moons"
    num_classes = 2

    def draw(self, n: int, g: Generator) -> tuple[Tensor, Tensor]:
        label = torch.randint(2, (n,), generator=g)
        t = math.pi * torch.rand(n, generator=g)
        outer = torch.stack([t.cos(), t.sin()], 1)  # (n, 2)
        inner = torch.stack([1 - t.cos(), 0.5 - t.sin()], 1)
        x = torch.where(label[:, None] == 0, outer, inner) + 0.05 * torch.randn(n, 2, generator=g)
        # The variances are 3/4 along the first axis and (5/4 - 2/π)/2 - 1/16 along the second; their mean is 0.706².
        return (x - torch.tensor([0.5, 0.25])) / 0.706, label


@final
@register("dataset", "eight_gaussians")
class EightGaussians(Toy):
    """Eight isotropic Gaussians of standard deviation 0.1 on a circle of radius 1.4; each is a class."""

    name = "eight_gaussians"
    num_classes = 8

    def draw(self, n: int, g: Generator) -> tuple[Tensor, Tensor]:
        label = torch.randint(8, (n,), generator=g)
        angle = label * (2 * math.pi / 8)
        centre = 1.4 * torch.stack([angle.cos(), angle.sin()], 1)  # (n, 2)
        return centre + 0.1 * torch.randn(n, 2, generator=g), label


@final
@register("dataset", "checkerboard")
class Checkerboard(Toy):
    """Uniform on the black fields of a 4 × 4 board of side 2√3; the log-density is -log 6 nats there."""

    name = "checkerboard"

    def draw(self, n: int, g: Generator) -> tuple[Tensor, None]:
        column = torch.randint(4, (n,), generator=g)
        row = 2 * torch.randint(2, (n,), generator=g) + column % 2
        x = torch.stack([column, row], 1) + torch.rand(n, 2, generator=g)  # (n, 2), in [0, 4]²
        return (x - 2) * (math.sqrt(3) / 2), None


@final
@register("dataset", "swiss_roll")
class SwissRoll(Toy):
    """A spiral plus Gaussian noise, without classes.

    x = ((t cos t, t sin t) + N(0, 0.5²) - (2, 2/(3π))) / 6.8,    t ~ U[3π/2, 9π/2]
    """

    name = "swiss_roll"

    def draw(self, n: int, g: Generator) -> tuple[Tensor, None]:
        t = math.pi * (1.5 + 3 * torch.rand(n, generator=g))
        x = torch.stack([t * t.cos(), t * t.sin()], 1) + 0.5 * torch.randn(n, 2, generator=g)  # (n, 2)
        # The mean is (2, 2/(3π)); the mean of the variances is (9.75π² - 4 - 4/(9π²))/2 + 0.5² = 6.8².
        return (x - torch.tensor([2, 2 / (3 * math.pi)])) / 6.8, None


@final
@register("dataset", "pinwheel")
class Pinwheel(Toy):
    """Five Gaussian arms; each is a class. A point at distance r along its arm is rotated by exp(r)/4.

    Source: Johnson, Duvenaud, Wiltschko, Datta, Adams, "Composing graphical models with neural networks", 2016.
    """

    name = "pinwheel"
    num_classes = 5

    def draw(self, n: int, g: Generator) -> tuple[Tensor, Tensor]:
        label = torch.randint(5, (n,), generator=g)
        r = 1 + 0.3 * torch.randn(n, generator=g)  # along the arm
        w = 0.1 * torch.randn(n, generator=g)  # across it
        angle = label * (2 * math.pi / 5) + r.exp() / 4
        x = torch.stack([r * angle.cos() - w * angle.sin(), r * angle.sin() + w * angle.cos()], 1)  # (n, 2)
        return x / math.sqrt(0.55), label  # E|x|² = 1 + 0.3² + 0.1² = 2 · 0.55
