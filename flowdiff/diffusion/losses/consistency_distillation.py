"""Consistency distillation: a consistency function learns the trajectories of a trained model."""

from __future__ import annotations

import copy
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat
from torch import Tensor

from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.diffusion.losses.base import LossOutput
from flowdiff.diffusion.losses.consistency import OF_CONSISTENCY, RHO, ConsistencyLoss, Huber, neighbours
from flowdiff.diffusion.losses.teacher import Guided, Load, Teacher
from flowdiff.diffusion.other_run import OfData
from flowdiff.diffusion.schedules.formulas import Karras
from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioners.scaled import with_scale
from flowdiff.models.conditioning import Conditioning
from flowdiff.noise import Generators, randn_like
from flowdiff.registry import register
from flowdiff.shapes import append_dims

Scales = Annotated[list[NonNegativeFloat], Field(min_length=2, max_length=2)] | None


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
        scales: [low, high] of the teacher's classifier-free guidance in place of one scale: each sample has its own w,
            drawn evenly, and f reads it, as guidance=embedded sets it in sampling. null: no scale is read.
        huber: c ≥ 0; `auto`: 0.00054·√D.
        sigma_min: smallest level, that of scaling=consistency, > 0, in data units.
        sigma_max: largest level, > sigma_min, in data units.

    Raises:
        ConfigurationError: no run is given, or it does not fit the data or the guidance; or both guidance and scales.

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
        scales: Scales,
        huber: Huber,
        sigma_min: PositiveFloat,
        sigma_max: PositiveFloat,
    ):
        super().__init__(huber, sigma_min)
        self.teacher = Teacher(load, run, "consistency_distillation", guided, guidance)
        self.solver = solver
        if scales is not None and guidance is not None:
            raise ConfigurationError(
                "loss.guidance and loss.scales were both given: one scale becomes part of the model, or it reads a "
                "range of them; set one of them to null."
            )
        if scales is not None and not scales[0] < scales[1]:
            raise ConfigurationError(
                f"loss.scales={scales} is not allowed: give the smallest and the largest scale, low < high, as [1, 4]."
            )
        self.scales = None if scales is None else (scales[0], scales[1])
        self._scale: Tensor | None = None  # w of each sample of the present batch
        self.levels = Karras(sigma_min=sigma_min, sigma_max=sigma_max, rho=RHO)(num_steps + 1)

    def check(self, model: OfData) -> None:
        self.teacher.check(model)
        if self.scales is not None:
            self.teacher.check_guidable()

    def draw_noise(self, x0: Tensor, generator: Generators = None) -> Tensor:
        """The noise; with scales, along dimension 1 behind it a normal number for w."""
        noise = super().draw_noise(x0, generator)
        return noise if self.scales is None else torch.cat([noise, randn_like(x0[:, :1], generator)], 1)

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor, cond: Conditioning | None = None
    ) -> LossOutput:
        if self.scales is None:
            return super().__call__(denoiser, x0, sigma, noise, cond)
        assert cond is not None  # the conditioner carries the scale
        noise, extra = noise[:, : x0.shape[1]], noise[:, x0.shape[1] :]
        low, high = self.scales
        now = copy.copy(self)
        now._scale = low + (high - low) * torch.special.ndtr(extra.flatten(1)[:, 0])
        return super(ConsistencyDistillation, now).__call__(denoiser, x0, sigma, noise, with_scale(cond, now._scale))

    def pairs(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        return neighbours(self.levels, sigma)

    def nearer(self, x: Tensor, x0: Tensor, noise: Tensor, t: Tensor, r: Tensor, cond: Conditioning | None) -> Tensor:
        top, low = append_dims(t, x.ndim), append_dims(r, x.ndim)
        slope = (x - self.teacher(x, t, cond, self._scale)) / top
        end = x + (low - top) * slope
        if self.solver == "euler":
            return end
        return x + (low - top) * (slope + (end - self.teacher(end, r, cond, self._scale)) / low) / 2
