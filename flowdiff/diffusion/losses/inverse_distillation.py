"""Inverse distillation: a raw network learns the inverse of a trained flow, which it then computes in one pass."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import PositiveFloat
from torch import Tensor

from flowdiff.diffusion.denoiser import Denoise, Denoiser
from flowdiff.diffusion.losses.base import Loss, LossOutput, Student
from flowdiff.diffusion.losses.consistency import OF_CONSISTENCY
from flowdiff.diffusion.losses.teacher import FlowTeacher, Load
from flowdiff.diffusion.other_run import OfData
from flowdiff.models.conditioning import Conditioning
from flowdiff.noise import generators, randn
from flowdiff.registry import Requirement, register
from flowdiff.shapes import append_dims, mean_except_batch

ONE_STEP = Requirement(
    "sampler",
    fits=lambda sampler, node: node["num_steps"] == 1,
    reason="this loss trains a map from noise to samples, which is one step",
    remedy="set sampler.num_steps=1",
    other_setting="num_steps",
)
FROM_THE_SAME_NOISE = Requirement(
    "schedule",
    fits=lambda schedule, node: False,
    reason="sampling starts with noise at the schedule's largest level, and the map is learned at that of the loss",
    remedy="set both to the same number",
    when=lambda nodes: nodes["loss"]["sigma_max"] != nodes["schedule"].get("sigma_max"),
    setting="sigma_max",
    other_setting="sigma_max",
)


@register("loss", "inverse_distillation", requires=(*OF_CONSISTENCY, ONE_STEP, FROM_THE_SAME_NOISE))
class InverseDistillation(Loss):
    """A raw network f learns the map z ↦ x of a trained flow from exact pairs.

    ‖f(σ_max·z, σ_max, c) − x‖²/D,  z = flow(x; σ, c)

    An autoregressive flow inverts itself one number after the other; f does it in one pass, but not exactly. It is
    sampled by sampler=consistency in one step. The result of the run has `teacher_distance`, the mean square of f − x
    over new pairs that the flow generates.

    Args:
        load: run folder → its model.
        run: folder of the flow.
        pairs: `generated`: x is the flow's sample of z ~ N(0, I), so that training never sees a pair twice; each step
            costs an inverse of the flow. `encoded`: z is the flow's base point of a training sample with noise σ, which
            costs one pass of the flow; f then learns from no more data than the flow did.
        sigma: σ of the flow's samples, at which it was trained, > 0, in data units.
        sigma_max: level at which f takes the noise, that of the schedule, > 0, in data units.

    Raises:
        ConfigurationError: no run is given, or it is not a flow of the same data.

    Source: after Lu, Sun et al., Bidirectional normalizing flow: from data to noise and back, 2025, without its hidden
        alignment.
    """

    differentiates_score = False

    def __init__(
        self,
        load: Load,
        *,
        run: str | None,
        pairs: Literal["generated", "encoded"],
        sigma: PositiveFloat,
        sigma_max: PositiveFloat,
    ):
        self.teacher = FlowTeacher(load, run, "inverse_distillation")
        self.pairs = pairs
        self.sigma = sigma
        self.sigma_max = sigma_max

    def check(self, model: OfData) -> None:
        self.teacher.check(model)

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor, cond: Conditioning | None = None
    ) -> LossOutput:
        level = torch.full_like(sigma, self.sigma)
        if self.pairs == "generated":
            x, z = self.teacher.decode(noise, level, cond), noise
        else:
            x = x0 + append_dims(level, x0.ndim) * noise
            z = self.teacher.encode(x, level, cond)
        return LossOutput(self._error(denoiser, z, x, cond))

    @torch.no_grad()
    def numbers(self, model: Student, n: int, seed: int) -> dict[str, float]:
        """teacher_distance over n pairs that the flow generates, every class in turn."""
        device = model.sigma_data.device
        label = torch.arange(n, device=device) % (model.num_classes or 1)
        cond = None if model.num_classes is None else model.cond_of(label)
        z = randn((n, *model.first_stage.latent_shape), generators(seed, range(n))).to(device)
        x = self.teacher.decode(z, z.new_full((n,), self.sigma), cond)
        return {"teacher_distance": float(self._error(model, z, x, cond).mean())}

    def _error(self, denoise: Denoise, z: Tensor, x: Tensor, cond: Conditioning | None) -> Tensor:
        """The mean square of f − x, (B,)."""
        return mean_except_batch(
            (denoise(self.sigma_max * z, z.new_full((len(z),), self.sigma_max), cond) - x).square()
        )
