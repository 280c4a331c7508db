"""Consistency training: the ends of a trajectory that are computed from two of its points are to be the same."""

from __future__ import annotations

import copy
import math
from abc import abstractmethod
from typing import Annotated, Literal

import torch
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor

from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.diffusion.losses.base import Loss, LossOutput
from flowdiff.diffusion.losses.pairing import Pairing, nearest_pairs, noise_of_flow
from flowdiff.diffusion.losses.teacher import Load
from flowdiff.diffusion.other_run import OfData
from flowdiff.diffusion.schedules.formulas import Karras
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.networks.base import Density
from flowdiff.noise import Generators
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
OF_CONSISTENCY = (NOT_A_DENSITY, NEEDS_BOUNDARY, NEEDS_SAMPLER)
FIRST, RHO = 10, 7.0  # steps of the first grid of iCT, and the power that spaces the grids
FIRST_OF_CT = 2  # steps of the first grid of CT
STEEPNESS = 8.0  # of ECT's mapping

Huber = NonNegativeFloat | Literal["auto"]


class ConsistencyLoss(Loss):
    """The distance between f(x, t) and f(x', r), two points of one trajectory; f(x', r) has no gradient.

    1/(t − r)·d(f(x, t), f(x', r)),  d(a, b) = (√(‖a − b‖² + c²) − c)/√D,  x = x0 + t·n

    Both have the same condition and the same dropout; at r = 0 the second is x' itself.

    Args:
        huber: c ≥ 0; `auto`: 0.00054·√D.
        sigma_min: smallest level, that of scaling=consistency, > 0, in data units.
    """

    differentiates_score = False

    def __init__(self, huber: Huber, sigma_min: float):
        self.huber = huber
        self.sigma_min = sigma_min

    @abstractmethod
    def pairs(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        """t and r < t, (B,) each, of the draws sigma (B,) at the present step; r is 0 or at least sigma_min."""

    @abstractmethod
    def nearer(self, x: Tensor, x0: Tensor, noise: Tensor, t: Tensor, r: Tensor, cond: Conditioning | None) -> Tensor:
        """x', like x: the point at r of the trajectory through x at t; without gradient.

        Args:
            x: x0 + t·noise, (B, …).
            x0: clean samples, like x.
            noise: n, like x.
            t: the level of x, (B,).
            r: the level to reach, (B,), ≥ 0.
            cond: the condition of B samples, or None.
        """

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor, cond: Conditioning | None = None
    ) -> LossOutput:
        t, r = self.pairs(sigma)
        x = x0 + append_dims(t, x0.ndim) * noise
        devices = [x0.device] if x0.device.type == "cuda" else []
        with torch.no_grad():
            end = self.nearer(x, x0, noise, t, r, cond)
        with torch.random.fork_rng(devices), torch.no_grad():  # then f at t draws the same dropout
            end = torch.where(append_dims(r > 0, x0.ndim), denoiser(end, r.clamp(min=self.sigma_min), cond), end)
        difference = (denoiser(x, t, cond) - end).flatten(1)
        dim = difference.shape[1]
        c = 0.00054 * math.sqrt(dim) if self.huber == "auto" else self.huber
        distance = difference.norm(dim=1) if c == 0 else (difference.square().sum(1) + c**2).sqrt() - c
        return LossOutput(distance / (t - r) / math.sqrt(dim))


def neighbours(levels: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor]:
    """The level above each of sigma (B,) and the one below that, (B,) each, in a grid that ends in 0."""
    grid = levels[:-1].flip(0).to(sigma)
    above = torch.searchsorted(grid, sigma).clamp(1, len(grid) - 1)
    return grid[above], grid[above - 1]


@register("loss", "consistency", requires=OF_CONSISTENCY)
class Consistency(ConsistencyLoss):
    """Consistency training without a teacher: f at t is to be f at r, a little nearer to the data.

    1/(t − r)·d(f(x0 + t·n, t), f(x0 + r·n, r)),  d(a, b) = (√(‖a − b‖² + c²) − c)/√D

    The second f has no gradient, and the same noise, condition and dropout as the first; at r = 0 it is x0. Training
    begins with r far below t, where the target is nearly the data, and brings r to t in stages. What f learns at a low
    level has to travel up from pair to pair, so with few steps in all fewer stages are better.

    Args:
        load: run folder → its model.
        steps: how r follows from t and the stage. `ect`: r = t·(1 − q^−(stage+1)·(1 + 8·sigmoid(−t))), at least 0, for
            t from sigma_sampler. `ict`: t and r are neighbours in a grid of N levels as those of schedule=karras, and
            N = 10·2^stage; t is the level above the σ of sigma_sampler. `ct`: the same with N growing from 2 to
            ct_steps like the square root of the steps.
        stage_steps: optimiser steps of a stage, ≥ 1.
        stages: number of stages, ≥ 1; after them nothing changes.
        ratio: q of `ect`, > 1.
        ct_steps: N of the last grid of `ct`, ≥ 2; 150 in the paper. f at t learns the mean of f at r, and on the way up
            the means draw f towards the mean of the data. This bias falls as 1/N: for a Gaussian of deviation 0.5 it
            is 2 % at N = 150.
        pairing: which noise a sample gets, as in loss=denoising; `flow` makes trajectories that hardly bend.
        run: pairing=flow: folder of the flow.
        pairing_sigma: pairing=flow: noise level of the samples that the flow encodes, at which it was trained, > 0.
        huber: c ≥ 0; `auto`: 0.00054·√D for `ict` and `ct`, 0 for `ect`.
        sigma_min: smallest level, that of scaling=consistency, > 0, in data units.
        sigma_max: largest level of a grid, > sigma_min, in data units.

    Source: Song et al., Consistency models, 2023 (`ct`, here without a moving average of the target); Song, Dhariwal,
        Improved techniques for training consistency models, 2024 (`ict`); Geng, Pokle, Luo, Lin, Kolter, Consistency
        models made easy, 2025 (`ect`).
    """

    def __init__(
        self,
        load: Load | None = None,
        *,
        steps: Literal["ect", "ict", "ct"],
        stage_steps: PositiveInt,
        stages: PositiveInt,
        ratio: PositiveFloat,
        ct_steps: Annotated[int, Field(ge=FIRST_OF_CT)],
        pairing: Pairing,
        run: str | None,
        pairing_sigma: PositiveFloat,
        huber: Huber,
        sigma_min: PositiveFloat,
        sigma_max: PositiveFloat,
    ):
        super().__init__(0.0 if huber == "auto" and steps == "ect" else huber, sigma_min)
        self.steps = steps
        self.stage_steps = stage_steps
        self.stages = stages
        self.ratio = ratio
        self.ct_steps = ct_steps
        self.levels = Karras(sigma_min=sigma_min, sigma_max=sigma_max, rho=RHO)
        self.pairing = pairing
        self.flow_noise = noise_of_flow("consistency", load, pairing, run, pairing_sigma)
        self._step = 0

    def check(self, model: OfData) -> None:
        if self.flow_noise is not None:
            self.flow_noise.teacher.check(model)

    def draw_noise(self, x0: Tensor, generator: Generators = None) -> Tensor:
        noise = super().draw_noise(x0, generator)
        return noise[nearest_pairs(x0, noise)] if self.pairing == "optimal_transport" else noise

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor, cond: Conditioning | None = None
    ) -> LossOutput:
        if self.flow_noise is not None:
            noise = self.flow_noise(x0, noise, cond)
        return super().__call__(denoiser, x0, sigma, noise, cond)

    def at(self, step: int) -> Consistency:
        now = copy.copy(self)
        now._step = step
        return now

    @property
    def stage(self) -> int:
        """Stage of the present step, 0 … stages − 1."""
        return min(self._step // self.stage_steps, self.stages - 1)

    def pairs(self, sigma: Tensor) -> tuple[Tensor, Tensor]:
        if self.steps == "ect":
            t = sigma.clamp(min=self.sigma_min)
            nearer = 1 + STEEPNESS * torch.sigmoid(-t)
            r = t * (1 - nearer / self.ratio ** (self.stage + 1))
            return t, torch.where(r < self.sigma_min, 0.0, r)
        return neighbours(self.levels(self.num_levels), sigma)

    def nearer(self, x: Tensor, x0: Tensor, noise: Tensor, t: Tensor, r: Tensor, cond: Conditioning | None) -> Tensor:
        return x0 + append_dims(r, x0.ndim) * noise

    @property
    def num_levels(self) -> int:
        """Number of levels of the grid at the present step."""
        if self.steps == "ict":
            return FIRST * 2**self.stage + 1
        share = min(self._step / (self.stage_steps * self.stages), 1.0)
        first, last = FIRST_OF_CT, self.ct_steps
        return math.ceil(math.sqrt(share * ((last + 1) ** 2 - first**2) + first**2) - 1) + 1
