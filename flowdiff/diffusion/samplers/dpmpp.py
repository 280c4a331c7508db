"""DPM-Solver++: D is expanded over a step in λ = −ln σ, with noise (η > 0) or without.

Over a step of length h = λ' − λ = ln(σ/σ') each method estimates a mean D̂ of D along the way and steps towards it:

    x' = D̂ + (σ'/σ)^(1+η)·(x − D̂) + σ'^(1+η)·(W(σ'^(−2η)) − W(σ^(−2η))),      g = (1 + η)·h,

    2S    D̂ = D(x_m, σ_m),   σ_m = √(σσ'),   x_m = D + (σ_m/σ)·(x − D),      η = 0
    2M    D̂ = D + h/2·∂D,   ∂D = (D − D₋)/h₋
    3M    D̂ = D + (φ₂·h·(∂D + h₋·∂²D) − φ₃·h²·∂²D)/(1 − e^(−g)),   ∂²D = (∂D − ∂D₋)/(h₋ + h₋₋),
          φ₂ = 1 − (1 − e^(−g))/g,   φ₃ = φ₂/g − ½,

where ₋ marks the step before and ₋₋ the step before that. W is Brownian motion: the noise it adds has the variance
σ'²·(1 − (σ'/σ)^(2η)), and two steps add the same noise as one step over both.

In 3M the integral of the parabola through the three D would have 2φ₃ where the method has φ₃. It is published and
implemented everywhere with φ₃, which makes it a method of second order with a small constant; the same is done here.
"""

from __future__ import annotations

import math
from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from flowdiff.diffusion.samplers.base import BatchDenoiser, Sampler, Step, euler_step
from flowdiff.registry import register

Eta = Annotated[float, Field(ge=0, le=10)]

# with fewer steps the last two are of second and first order: extrapolating over long steps leaves artefacts
FEW_STEPS = 15


@register("sampler", "dpmpp_2s")
class DPMpp2S(Sampler):
    """Singlestep, second order: two denoiser calls per step, one in the last step, to σ' = 0, which is an Euler step.

    x' = D̂ + (σ'/σ)·(x − D̂),  D̂ = D(x_m, σ_m),  σ_m = √(σσ'),  x_m = D + (σ_m/σ)·(x − D)

    Args:
        num_steps: number of steps, ≥ 1; 2·num_steps − 1 denoiser calls.

    Source: Lu, Zhou, Bao, Chen, Li, Zhu, DPM-Solver++: fast solver for guided sampling of diffusion probabilistic
    models, 2022, algorithm 1 at r = ½.
    """

    def __init__(self, *, num_steps: PositiveInt):
        super().__init__(num_steps)

    def step(self, denoise: BatchDenoiser, x: Tensor, at: Step) -> tuple[Tensor, Tensor]:
        denoised = denoise(x, at.sigma)
        if at.sigma_next == 0:
            return denoised, denoised
        middle = math.sqrt(at.sigma * at.sigma_next)
        towards = denoise(euler_step(x, denoised, at.sigma, middle), middle)
        return euler_step(x, towards, at.sigma, at.sigma_next), denoised


@register("sampler", "dpmpp_2m")
class DPMpp2M(Sampler):
    """Multistep, second order, without noise: one denoiser call per step.

    x' = D̂ + (σ'/σ)·(x − D̂),  D̂ = D + h/(2h₋)·(D − D₋),  h = ln(σ/σ'),  ₋ marks the step before

    The first step has no D₋ and the step to σ' = 0 has h = ∞: both are Euler steps.

    Args:
        num_steps: number of steps, ≥ 1; with fewer than 15 the last step is an Euler step on every grid.

    Source: Lu, Zhou, Bao, Chen, Li, Zhu, DPM-Solver++: fast solver for guided sampling of diffusion probabilistic
    models, 2022, algorithm 2.
    """

    def __init__(self, *, num_steps: PositiveInt):
        super().__init__(num_steps, memory=1)

    def step(self, denoise: BatchDenoiser, x: Tensor, at: Step) -> tuple[Tensor, Tensor]:
        denoised = denoise(x, at.sigma)
        towards = _straight(denoised, at) if _order(at, 2) == 2 else denoised
        return euler_step(x, towards, at.sigma, at.sigma_next), denoised


@register("sampler", "dpmpp_2m_sde")
class DPMpp2MSDE(Sampler):
    """`dpmpp_2m` with noise: multistep, weak order 2 where η is small, one denoiser call per step.

    x' = D̂ + (σ'/σ)^(1+η)·(x − D̂) + s_noise·σ'·√(1 − (σ'/σ)^(2η))·z,  z ~ N(0, I),  D̂ as in `dpmpp_2m`

    The noise z is the increment of a Brownian motion: it is the same for every number of steps.

    Args:
        num_steps: number of steps, ≥ 1; the first and the last ones have the orders they have in `dpmpp_2m`.
        eta: η, amount of noise, in [0, 10]; 0 is `dpmpp_2m`, 1 the reverse of the forward process.
        s_noise: scale of the noise, ≥ 0.

    Source: Lu, Zhou, Bao, Chen, Li, Zhu, DPM-Solver++: fast solver for guided sampling of diffusion probabilistic
    models, 2022 (SDE-DPM-Solver++, η = 1); any η in k-diffusion (Crowson).
    """

    def __init__(self, *, num_steps: PositiveInt, eta: Eta, s_noise: NonNegativeFloat):
        super().__init__(num_steps, memory=1)
        self.eta = eta
        self.s_noise = s_noise

    def step(self, denoise: BatchDenoiser, x: Tensor, at: Step) -> tuple[Tensor, Tensor]:
        denoised = denoise(x, at.sigma)
        towards = _straight(denoised, at) if _order(at, 2) == 2 else denoised
        return _noisy_step(x, towards, at, self.eta, self.s_noise), denoised


@register("sampler", "dpmpp_3m_sde")
class DPMpp3MSDE(Sampler):
    """Multistep from three values of D, with noise or, at η = 0, without: one denoiser call per step.

    x' as in `dpmpp_2m_sde`,  D̂ = D + (φ₂·h·(∂D + h₋·∂²D) − φ₃·h²·∂²D)/(1 − e^(−g)),  g = (1+η)·h,
    φ₂ = 1 − (1 − e^(−g))/g,  φ₃ = φ₂/g − ½,  ∂D and ∂²D from the differences of the three D

    The second step has no D₋₋ and omits ∂²D. The Euler steps are those of `dpmpp_2m`.

    Args:
        num_steps: number of steps, ≥ 1; with fewer than 15 the last step but one omits ∂²D too.
        eta: η, amount of noise, in [0, 10]; 0 is the ODE, 1 the reverse of the forward process.
        s_noise: scale of the noise, ≥ 0.

    Source: Lu, Zhou, Bao, Chen, Li, Zhu, DPM-Solver++: fast solver for guided sampling of diffusion probabilistic
    models, 2022 (η = 0); any η in k-diffusion (Crowson).
    """

    def __init__(self, *, num_steps: PositiveInt, eta: Eta, s_noise: NonNegativeFloat):
        super().__init__(num_steps, memory=2)
        self.eta = eta
        self.s_noise = s_noise

    def step(self, denoise: BatchDenoiser, x: Tensor, at: Step) -> tuple[Tensor, Tensor]:
        denoised = denoise(x, at.sigma)
        order = _order(at, 3)
        towards = denoised if order == 1 else _curved(denoised, at, 1 + self.eta, order)
        return _noisy_step(x, towards, at, self.eta, self.s_noise), denoised


def _order(at: Step, most: int) -> int:
    """The number of D that a multistep method of order `most` uses in this step."""
    if at.sigma_next == 0:
        return 1
    left = at.count - at.index if at.count < FEW_STEPS else most
    return min(most, 1 + len(at.past), left)


def _straight(denoised: Tensor, at: Step) -> Tensor:
    """D̂ = D + h/2·∂D."""
    last = at.past[0]
    ratio = math.log(at.sigma / at.sigma_next) / math.log(last.sigma / at.sigma)
    return denoised + ratio / 2 * (denoised - last.denoised)


def _curved(denoised: Tensor, at: Step, decay: float, order: int) -> Tensor:
    """D̂ of 3M with decay = 1 + η; order 2 omits ∂²D."""
    last = at.past[0]
    h, before = math.log(at.sigma / at.sigma_next), math.log(last.sigma / at.sigma)
    g = decay * h
    phi_2 = 1 + math.expm1(-g) / g
    slope = (denoised - last.denoised) / before
    change = phi_2 * h * slope
    if order == 3:
        first = at.past[1]
        long_before = math.log(first.sigma / last.sigma)
        curvature = (slope - (last.denoised - first.denoised) / long_before) / (before + long_before)
        change = change + (phi_2 * h * before - (phi_2 / g - 0.5) * h**2) * curvature
    return denoised + change / -math.expm1(-g)


def _noisy_step(x: Tensor, towards: Tensor, at: Step, eta: float, s_noise: float) -> Tensor:
    """D̂ + (σ'/σ)^(1+η)·(x − D̂) plus noise; no noise is drawn where its scale is 0."""
    kept = euler_step(x, towards, at.sigma ** (1 + eta), at.sigma_next ** (1 + eta))
    if at.sigma_next == 0 or eta == 0 or s_noise == 0:
        return kept
    added = at.path.increment(at.sigma ** (-2 * eta), at.sigma_next ** (-2 * eta))
    return kept + s_noise * at.sigma_next ** (1 + eta) * added
