"""Predictor–corrector: an ancestral step to σ', then Langevin dynamics that stays at σ' and mends the distribution.

    x ← x + ε·s(x, σ') + √(2ε)·z,   ε = 2·(snr·σ')²,   s = (D − x)/σ'²,

which is x ← x + 2·snr²·(D − x) + 2·snr·σ'·z. The step size is that of the paper, 2·(snr·‖z‖/‖s‖)², with ‖z‖/‖s‖
replaced by σ', what it is on average where the noise outweighs the data: with the norms of a batch a sample would
depend on its batch, with its own a sample at a maximum of p, where s = 0, would be thrown away.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveInt
from torch import Tensor

from flowdiff.diffusion.samplers.ancestral import Ancestral
from flowdiff.diffusion.samplers.base import Denoise, Sampler, Step
from flowdiff.noise import randn_like
from flowdiff.registry import register


@register("sampler", "langevin")
class Langevin(Sampler):
    """`ancestral` with Langevin steps at every level but 0; first order, corrector_steps + 1 denoiser calls a step.

    num_steps ≥ 1: steps of the grid.  eta ≥ 0: the predictor's share of noise, as in `ancestral`.
    corrector_steps ≥ 1: Langevin steps a level.  0 < snr < 1: their size; the variance they keep up is that of the
    level but for a share of snr² at most.
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

    def step(self, denoise: Denoise, x: Tensor, at: Step) -> tuple[Tensor, Tensor]:
        x_next, denoised = self._predictor.step(denoise, x, at)
        for _ in range(self.corrector_steps if at.sigma_next > 0 else 0):
            pull = denoise(x_next, at.sigma_next) - x_next
            noise = 2 * self.snr * at.sigma_next * randn_like(x, at.generator)
            x_next = x_next + 2 * self.snr**2 * pull + noise
        return x_next, denoised
