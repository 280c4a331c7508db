"""Consistency distillation: a consistency function learns the trajectories of a trained model."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat
from torch import Tensor

from flowdiff.diffusion.losses.consistency import OF_CONSISTENCY, RHO, ConsistencyLoss, Huber, neighbours
from flowdiff.diffusion.losses.teacher import Guided, Load, Teacher
from flowdiff.diffusion.other_run import OfData
from flowdiff.diffusion.schedules.formulas import Karras
from flowdiff.models.conditioning import Conditioning
from flowdiff.registry import register
from flowdiff.shapes import append_dims


@register("loss", "consistency_distillation", requires=OF_CONSISTENCY)
class ConsistencyDistillation(ConsistencyLoss):
    """A consistency function f learns where the trajectories of a trained model end.

    1/(t − r)·d(f(x, t), f(x', r)),  x' = the teacher's step from x = x0 + t·n at t to r,
    d(a, b) = (√(‖a − b‖² + c²) − c)/√D

    t and r are neighbours in a grid as that of schedule=karras. The second f has no gradient. The teacher is any run of
    the same data that denoises, a flow or a raw network; guidance of the teacher becomes part of f.

    Args:
        load: run folder → its model.
        guided: a model and settings of a guidance → the model in that guidance.
        run: folder of the teacher.
        solver: the teacher's step: `heun`, two evaluations, or `euler`, one.
        num_steps: steps of the grid, ≥ 2: more make the teacher's steps more accurate, and f learns more slowly.
        guidance: the teacher's guidance, e.g. {name: cfg, scale: 2}; null for none.
        huber: c ≥ 0; `auto`: 0.00054·√D.
        sigma_min: smallest level, that of scaling=consistency, > 0, in data units.
        sigma_max: largest level, > sigma_min, in data units.

    Raises:
        ConfigurationError: no run is given, or it does not fit the data.

    Source: Song, Dhariwal, Chen, Sutskever, Consistency models, 2023, here without a moving average of the target; Luo,
        Tan, Huang, Li, Zhao, Latent consistency models, 2023, for guidance.
    """

    def __init__(
        self,
        load: Load,
        guided: Guided,
        *,
        run: str | None,
        solver: Literal["heun", "euler"],
        num_steps: Annotated[int, Field(ge=2)],
        guidance: dict[str, Any] | None,
        huber: Huber,
        sigma_min: PositiveFloat,
        sigma_max: PositiveFloat,
    ):
        super().__init__(huber, sigma_min)
        self.teacher = Teacher(load, run, "consistency_distillation", guided, guidance)
        self.solver = solver
        self.levels = Karras(sigma_min=sigma_min, sigma_max=sigma_max, rho=RHO)(num_steps + 1)

    def check(self, model: OfData) -> None:
        self.teacher.check(model)

    def pairs(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return neighbours(self.levels, sigma)

    def nearer(self, x: Tensor, x0: Tensor, noise: Tensor, t: Tensor, r: Tensor, cond: Conditioning | None) -> Tensor:
        return step_of(self.teacher, x, t, r, cond, self.solver)


def step_of(
    teacher: Teacher, x: Tensor, t: Tensor, r: Tensor, cond: Conditioning | None, solver: Literal["heun", "euler"]
) -> Tensor:
    """The teacher's step of the probability-flow ODE from x (B, …) at t (B,) to r (B,), 0 < r < t; like x."""
    top, low = append_dims(t, x.ndim), append_dims(r, x.ndim)
    slope = (x - teacher(x, t, cond)) / top
    end = x + (low - top) * slope
    if solver == "euler":
        return end
    return x + (low - top) * (slope + (end - teacher(end, r, cond)) / low) / 2
