"""Levels that follow a formula: evenly spaced in a function of σ."""

from __future__ import annotations

import torch
from pydantic import PositiveFloat
from torch import Tensor

from flowdiff.diffusion.schedules.base import Schedule
from flowdiff.registry import register


@register("schedule", "karras")
class Karras(Schedule):
    """Levels evenly spaced in σ^(1/ρ).

    σ_i = (σ_max^{1/ρ} + i/(N−1)·(σ_min^{1/ρ} − σ_max^{1/ρ}))^ρ,  i = 0 … N−1;  (σ_max, 0) for a single step

    Args:
        sigma_min: smallest noise level before the final 0, > 0, in data units.
        sigma_max: largest noise level, > sigma_min, finite, in data units.
        rho: ρ, > 0; the larger, the more of the steps are at low noise.

    Raises:
        ConfigurationError: sigma_min is not below sigma_max, or one of them is infinite.

    Source: Karras, Aittala, Aila, Laine, Elucidating the design space of diffusion-based generative models, 2022,
    equation 5.
    """

    def __init__(self, *, sigma_min: PositiveFloat, sigma_max: PositiveFloat, rho: PositiveFloat):
        super().__init__(sigma_min, sigma_max)
        self.rho = rho

    def _levels(self, num_steps: int, sigma_max: float) -> Tensor:
        # linspace gives (0,) for one step, where i/(N−1) would divide by zero
        ramp = torch.linspace(0, 1, num_steps, dtype=torch.float64)
        top, bottom = sigma_max ** (1 / self.rho), self.sigma_min ** (1 / self.rho)
        return (top + ramp * (bottom - top)) ** self.rho


@register("schedule", "linear")
class Linear(Schedule):
    """Levels evenly spaced in σ, the case ρ = 1 of `karras`, for samples that start from a flow at low noise.

    σ_i = σ_max + i/(N−1)·(σ_min − σ_max),  i = 0 … N−1;  (σ_max, 0) for a single step

    Args:
        sigma_min: smallest noise level before the final 0, > 0, in data units.
        sigma_max: largest noise level, > sigma_min, finite, in data units.

    Raises:
        ConfigurationError: sigma_min is not below sigma_max, or one of them is infinite.

    Source: iTARFlow, arXiv 2604.20041, 2026.
    """

    def __init__(self, *, sigma_min: PositiveFloat, sigma_max: PositiveFloat):
        super().__init__(sigma_min, sigma_max)

    def _levels(self, num_steps: int, sigma_max: float) -> Tensor:
        return torch.linspace(sigma_max, self.sigma_min, num_steps, dtype=torch.float64)


@register("schedule", "flow_matching")
class FlowMatching(Schedule):
    """Levels evenly spaced in the time of flow matching, t = σ/(1+σ), before a shift.

    t_i = t_max + i/(N−1)·(t_min − t_max), σ_i = α·t_i/(1 − t_i),  i = 0 … N−1;  (σ_max, 0) for a single step

    t_max and t_min are the times of σ_max/α and σ_min/α, so that the ends are σ_max and σ_min for every shift α. A path
    that starts at t = 1 has σ = ∞; at σ = 80 it is t = 0.988.

    Args:
        sigma_min: smallest noise level before the final 0, > 0, in data units.
        sigma_max: largest noise level, > sigma_min, finite, in data units.
        shift: α > 0; the larger, the more of the steps are at high noise.

    Raises:
        ConfigurationError: sigma_min is not below sigma_max, or one of them is infinite.

    Source: Esser et al., Scaling rectified flow transformers for high-resolution image synthesis, 2024, section 5.3.2.
    """

    def __init__(self, *, sigma_min: PositiveFloat, sigma_max: PositiveFloat, shift: PositiveFloat):
        super().__init__(sigma_min, sigma_max)
        self.shift = shift

    def _levels(self, num_steps: int, sigma_max: float) -> Tensor:
        top, bottom = (end / (self.shift + end) for end in (sigma_max, self.sigma_min))
        t = torch.linspace(top, bottom, num_steps, dtype=torch.float64)
        return self.shift * t / (1 - t)


@register("schedule", "exponential")
class Exponential(Schedule):
    """Levels evenly spaced in ln σ, the limit of `karras` for ρ → ∞.

    σ_i = σ_max·(σ_min/σ_max)^{i/(N−1)},  i = 0 … N−1

    Args:
        sigma_min: smallest noise level before the final 0, > 0, in data units.
        sigma_max: largest noise level, > sigma_min, finite, in data units.

    Raises:
        ConfigurationError: sigma_min is not below sigma_max, or one of them is infinite.

    Source: Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole, Score-based generative modeling through stochastic
    differential equations, 2021 (the levels of the variance-exploding process).
    """

    def __init__(self, *, sigma_min: PositiveFloat, sigma_max: PositiveFloat):
        super().__init__(sigma_min, sigma_max)

    def _levels(self, num_steps: int, sigma_max: float) -> Tensor:
        ramp = torch.linspace(0, 1, num_steps, dtype=torch.float64)
        return sigma_max * (self.sigma_min / sigma_max) ** ramp


@register("schedule", "polyexponential")
class Polyexponential(Schedule):
    """Levels evenly spaced in a power of ln σ.

    σ_i = σ_min·(σ_max/σ_min)^((1 − i/(N−1))^ρ),  i = 0 … N−1

    Args:
        sigma_min: smallest noise level before the final 0, > 0, in data units.
        sigma_max: largest noise level, > sigma_min, finite, in data units.
        rho: ρ, > 0; 1 gives `exponential`, a larger one more steps at low noise, a smaller one more at high noise.

    Raises:
        ConfigurationError: sigma_min is not below sigma_max, or one of them is infinite.

    Source: Crowson, k-diffusion, 2022 (code).
    """

    def __init__(self, *, sigma_min: PositiveFloat, sigma_max: PositiveFloat, rho: PositiveFloat):
        super().__init__(sigma_min, sigma_max)
        self.rho = rho

    def _levels(self, num_steps: int, sigma_max: float) -> Tensor:
        ramp = 1 - torch.linspace(0, 1, num_steps, dtype=torch.float64)
        return self.sigma_min * (sigma_max / self.sigma_min) ** ramp**self.rho
