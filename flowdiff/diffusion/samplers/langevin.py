"""Predictor–corrector: an ancestral step to σ', then Langevin dynamics at σ' that corrects the distribution.

    x ← x + ε·s(x, σ') + √(2ε)·z,   ε = 2·(snr·σ')²,   s = (D − x)/σ'²,

which is x ← x + 2·snr²·(D − x) + 2·snr·σ'·z. The paper's step size is 2·(snr·‖z‖/‖s‖)². Here ‖z‖/‖s‖ is replaced by
σ', its average where the noise outweighs the data. With the norms of a batch, a sample would depend on its batch; with
its own norms, a sample near a maximum of p, where s = 0, would take an arbitrarily large step.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from flowdiff.diffusion.samplers.ancestral import Ancestral
from flowdiff.diffusion.samplers.base import BatchDenoiser, Sampler, Step
from flowdiff.noise import randn_like
from flowdiff.registry import register


@register("sampler", "langevin")
class Langevin(Sampler):
    """`ancestral` with Langevin steps at every level except 0: first order.

    x ← x + 2·snr²·(D − x) + 2·snr·σ'·z,  z ~ N(0, I),  corrector_steps times after each ancestral step

    A step takes corrector_steps + 1 denoiser calls.

    Args:
        num_steps: number of steps, ≥ 1.
        eta: the predictor's amount of noise, ≥ 0, as in `ancestral`.
        corrector_steps: number of Langevin steps at each level, ≥ 1.
        snr: size of a Langevin step, in (0, 1); its stationary variance differs from the level's by a fraction of at
            most snr².

    Source: Song, Sohl-Dickstein, Kingma, Kumar, Ermon, Poole, Score-based generative modeling through stochastic
    differential equations, 2021, algorithms 2 and 4.
    """

    def __init__(
        self,
        *,
        num_steps: PositiveInt,
        eta: NonNegativeFloat,
        corrector_steps: PositiveInt,
        snr: Annotated[float, Field(gt=0, lt=1)],
    ):
        super().__init__(num_steps)
        self._predictor = Ancestral(num_steps=num_steps, eta=eta)
        self.corrector_steps = corrector_steps
        self.snr = snr

    def step(self, denoise: BatchDenoiser, x: Tensor, at: Step) -> tuple[Tensor, Tensor]:
        x_next, denoised = self._predictor.step(denoise, x, at)
        for _ in range(self.corrector_steps if at.sigma_next > 0 else 0):
            pull = denoise(x_next, at.sigma_next) - x_next
            noise = 2 * self.snr * at.sigma_next * randn_like(x, at.generator)
            x_next = x_next + 2 * self.snr**2 * pull + noise
        return x_next, denoised
