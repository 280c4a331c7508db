"""Continuous-time consistency: f does not change along a trajectory, as a derivative and not as a difference."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from pydantic import NonNegativeFloat, NonNegativeInt
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.diffusion.losses.base import Loss, LossOutput
from flowdiff.diffusion.losses.consistency import OF_CONSISTENCY
from flowdiff.diffusion.losses.teacher import Guided, Load, Teacher
from flowdiff.diffusion.other_run import OfData
from flowdiff.models.conditioning import Conditioning
from flowdiff.registry import register
from flowdiff.shapes import append_dims, mean_except_batch


@register("loss", "scm", requires=OF_CONSISTENCY)
class ContinuousConsistency(Loss):
    """Consistency in continuous time (sCM): f is led against its own derivative along the trajectory.

    ‖F(x, σ) − F⁻(x, σ) + g/(‖g‖ + c)‖²/D,  g = √(σ² + σ_d²)·df⁻/dσ,  df/dσ = ∂f/∂σ + (∂f/∂x)·dx/dσ,  σ_d = sigma_data

    F is the network inside f, and ⁻ stops the gradient. dx/dσ is the noise, or (x − D)/σ of a teacher. In the
    coordinates of the paper, σ = σ_d·tan t and x = x_t/cos t, g is cos t·df/dt. There is no distance between levels to
    choose, and no bias by it. In the first steps g is not whole:

    g = cos²t·(σ_d·F⁻ + dx_t/dt) + r·(…),  r from 0 to 1 in `warmup_steps`,

    where the first term alone is the loss of a velocity. The derivative is taken in forward mode, which costs one more
    evaluation of the network. The learned weight of the paper is left out: g/(‖g‖ + c) has about the same size at every
    σ. The embedding of the noise level must not oscillate fast in σ, as that of network=unet does: begin with mlp.

    Args:
        load: run folder → its model.
        guided: a model and settings of a guidance → the model in that guidance.
        run: folder of a teacher; null: none, consistency training.
        guidance: the teacher's guidance, e.g. {name: cfg, scale: 2}; null for none.
        warmup_steps: optimiser steps in which r goes from 0 to 1, ≥ 0.
        tangent_constant: c of g/(‖g‖ + c), ≥ 0; ‖g‖ is the norm over all dimensions of a sample. A small c keeps the
            noise that g has without a teacher at length 1; a larger one lets it become small with g.

    Raises:
        ConfigurationError: the teacher does not fit the data.

    Source: Lu, Song, Simplifying, stabilizing and scaling continuous-time consistency models, 2025.
    """

    differentiates_score = False

    def __init__(
        self,
        load: Load,
        guided: Guided,
        *,
        run: str | None,
        guidance: dict[str, Any] | None,
        warmup_steps: NonNegativeInt,
        tangent_constant: NonNegativeFloat,
    ):
        self.teacher = None if run is None else Teacher(load, run, "scm", guided, guidance)
        self.warmup_steps = warmup_steps
        self.tangent_constant = tangent_constant
        self.share = 1.0  # r at the present step

    def check(self, model: OfData) -> None:
        if self.teacher is not None:
            self.teacher.check(model)

    def at(self, step: int) -> ContinuousConsistency:
        now = copy.copy(self)
        now.share = min(1.0, step / self.warmup_steps) if self.warmup_steps else 1.0
        return now

    def __call__(
        self, denoiser: Denoiser, x0: Tensor, sigma: Tensor, noise: Tensor, cond: Conditioning | None = None
    ) -> LossOutput:
        x = x0 + append_dims(sigma, x0.ndim) * noise
        slope = noise
        if self.teacher is not None:
            slope = (x - self.teacher(x, sigma, cond)) / append_dims(sigma, x.ndim)
        devices = [x0.device] if x0.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # then F draws the same dropout
            g = tangent(denoiser, x, slope, sigma, cond)
        F = output_of(denoiser, x, sigma, cond)
        if self.share < 1:
            norm = append_dims((sigma**2 + denoiser.sigma_data**2).sqrt(), x.ndim)
            cos, sin = denoiser.sigma_data / norm, append_dims(sigma, x.ndim) / norm
            velocity = cos**2 * denoiser.sigma_data * F.detach() + cos * denoiser.sigma_data * slope - cos**2 * sin * x
            g = velocity + self.share * (g - velocity)
        length = append_dims(g.flatten(1).norm(dim=1), g.ndim)
        target = F.detach() - g / (length + self.tangent_constant)
        return LossOutput(mean_except_batch((F - target).square()), {"tangent": length.flatten()})


def output_of(denoiser: Denoiser, x: Tensor, sigma: Tensor, cond: Conditioning | None) -> Tensor:
    """F of D = c_skip·x + c_out·F, like x (B, …), for sigma (B,)."""
    _, _, c_in, c_noise = denoiser.scaling(sigma, denoiser.sigma_data)
    return denoiser.network(x * append_dims(c_in, x.ndim), c_noise, cond)


@torch.no_grad()
def tangent(denoiser: Denoiser, x: Tensor, slope: Tensor, sigma: Tensor, cond: Conditioning | None) -> Tensor:
    """√(σ² + σ_d²)·df/dσ along dx/dσ = slope, like x (B, …); without gradient.

    Args:
        denoiser: f.
        x: (B, …).
        slope: dx/dσ, like x.
        sigma: (B,) > 0.
        cond: the condition of B samples, or None.
    """
    rate = (sigma**2 + denoiser.sigma_data**2).sqrt()
    with forward_ad.dual_level(), sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*torch.jit.script.*")  # raised by torch at the first use of forward mode
        moving = forward_ad.make_dual(x, append_dims(rate, x.ndim) * slope), forward_ad.make_dual(sigma, rate)
        end = forward_ad.unpack_dual(denoiser(*moving, cond)).tangent
    return torch.zeros_like(x) if end is None else end
