"""Consistency training: the ends of a trajectory that are computed from two of its points are to be the same."""

from __future__ import annotations

import copy
import math
from typing import Literal

import torch
from pydantic import NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.diffusion.losses.base import Loss, LossOutput
from flowdiff.diffusion.schedules.formulas import Karras
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.networks.base import Density
from flowdiff.registry import Requirement, register
from flowdiff.shapes import append_dims

NOT_A_DENSITY = Requirement(
    "network",
    fits=lambda network, node: not issubclass(network, Density),
    reason="the Jacobian of a flow's D is symmetric, and that of a consistency function in general is not",
    remedy="set network=unet or mlp; a flow samples in one step by start=flow",
)
NEEDS_BOUNDARY = Requirement(
    "scaling",
    fits=lambda scaling, node: node["name"] == "consistency",
    reason="a consistency function has to be x itself at the smallest noise level",
    remedy="set scaling=consistency",
)
NEEDS_SAMPLER = Requirement(
    "sampler",
    fits=lambda sampler, node: node["name"] == "consistency",
    reason="this loss trains a consistency function, which other samplers would take for a denoiser",
    remedy="set sampler=consistency",
)
FIRST, RHO = 10, 7.0  # steps of the first grid of iCT, and the power that spaces the grids
CT_ENDS = (2, 150)  # steps of the first and of the last grid of CT
STEEPNESS = 8.0  # of ECT's mapping


@register("loss", "consistency", requires=[NOT_A_DENSITY, NEEDS_BOUNDARY, NEEDS_SAMPLER])
class Consistency(Loss):
    """Consistency training without a teacher: f at t is to be f at r, a little nearer to the data.

    1/(t − r)·d(f(x0 + t·n, t), f(x0 + r·n, r)),  d(a, b) = (√(‖a − b‖² + c²) − c)/√D

    The second f has no gradient, and the same noise, condition and dropout as the first; at r = 0 it is x0. Training
    begins with r far below t, where the target is nearly the data, and brings r to t in stages. What f learns at a low
    level has to travel up from pair to pair, so with few steps in all fewer stages are better.

    Args:
        steps: how r follows from t and the stage. `ect`: r = t·(1 − q^−(stage+1)·(1 + 8·sigmoid(−t))), at least 0, for
            t from sigma_sampler. `ict`: t and r are neighbours in a grid of N levels as those of schedule=karras, and
            N = 10·2^stage; t is the level above the σ of sigma_sampler. `ct`: the same with N growing from 2 to 150
            like the square root of the steps.
        stage_steps: optimiser steps of a stage, ≥ 1.
        stages: number of stages, ≥ 1; after them nothing changes.
        ratio: q of `ect`, > 1.
        huber: c ≥ 0; `auto`: 0.00054·√D for `ict` and `ct`, 0 for `ect`.
        sigma_min: smallest level, that of scaling=consistency, > 0, in data units.
        sigma_max: largest level of a grid, > sigma_min, in data units.

    Source: Song et al., Consistency models, 2023 (`ct`, here without a moving average of the target); Song, Dhariwal,
        Improved techniques for training consistency models, 2024 (`ict`); Geng, Pokle, Luo, Lin, Kolter, Consistency
        models made easy, 2025 (`ect`).
    """

    differentiates_score = False

    def __init__(
        self,
        *,
        steps: Literal["ect", "ict", "ct"],
        stage_steps: PositiveInt,
        stages: PositiveInt,
        ratio: PositiveFloat,
        huber: NonNegativeFloat | Literal["auto"],
        sigma_min: PositiveFloat,
        sigma_max: PositiveFloat,
    ):
        self.steps = steps
        self.stage_steps = stage_steps
        self.stages = stages
        self.ratio = ratio
        self.huber = huber
        self.sigma_min = sigma_min
        self.levels = Karras(sigma_min=sigma_min, sigma_max=sigma_max, rho=RHO)
        self._step = 0

    def at(self, step: int) -> Consistency:
        now = copy.copy(self)
        now._step = step
        return now

    @property
    def stage(self) -> int:
        """Stage of the present step, 0 … stages − 1."""
        return min(self._step // self.stage_steps, self.stages - 1)

    def pairs(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """t and r < t, (B,) each, of the draws sigma (B,) at the present step; r is 0 or at least sigma_min."""
        if self.steps == "ect":
            t = sigma.clamp(min=self.sigma_min)
            nearer = 1 + STEEPNESS * torch.sigmoid(-t)
            r = t * (1 - nearer / self.ratio ** (self.stage + 1))
            return t, torch.where(r < self.sigma_min, 0.0, r)
        grid = self.levels(self.num_levels)[:-1].flip(0).to(sigma)
        above = torch.searchsorted(grid, sigma).clamp(1, len(grid) - 1)
        return grid[above], grid[above - 1]

    @property
    def num_levels(self) -> int:
        """Number of levels of the grid at the present step."""
        if self.steps == "ict":
            return FIRST * 2**self.stage + 1
        share = min(self._step / (self.stage_steps * self.stages), 1.0)
        first, last = CT_ENDS
        return math.ceil(math.sqrt(share * ((last + 1) ** 2 - first**2) + first**2) - 1) + 1

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor, cond: Conditioning | None = None
    ) -> LossOutput:
        t, r = self.pairs(sigma)
        devices = [x0.device] if x0.device.type == "cuda" else []
        with torch.random.fork_rng(devices), torch.no_grad():  # then f at t draws the same dropout
            level = r.clamp(min=self.sigma_min)
            end = denoiser(x0 + append_dims(level, x0.ndim) * noise, level, cond)
            end = torch.where(append_dims(r > 0, x0.ndim), end, x0)
        difference = (denoiser(x0 + append_dims(t, x0.ndim) * noise, t, cond) - end).flatten(1)
        dim = difference.shape[1]
        c = self.huber
        if c == "auto":
            c = 0.0 if self.steps == "ect" else 0.00054 * math.sqrt(dim)
        distance = difference.norm(dim=1) if c == 0 else (difference.square().sum(1) + c**2).sqrt() - c
        return LossOutput(distance / (t - r) / math.sqrt(dim))
