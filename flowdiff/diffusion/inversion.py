"""Points that samples are images of, without noise: those of a flow, and those of the probability-flow ODE.

    z of a flow    z = f(x; σ, c),  x = f⁻¹(z; σ, c), at one noise level σ: exact
    ddim           dx/dσ = (x − D(x, σ, c))/σ from the smallest level of a grid up to its largest, and back down

Euler's steps of the ODE are those of DDIM. Up and down they ask D at different points, so that the way back does not
end where it began; the error falls as the steps become smaller.

Source: Song, Meng, Ermon, Denoising diffusion implicit models, 2021; for the error: Mokady et al., Null-text inversion
for editing real images using guided diffusion models, 2023.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from itertools import pairwise
from typing import Literal, final

import torch
from torch import Tensor

from flowdiff.diffusion.denoiser import Denoise
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.diffusion.schedules import Schedule
from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.networks.base import FlowDensity
from flowdiff.shapes import append_dims

Through = Literal["z", "ddim"]


class Inversion(ABC):
    """A map between samples x and points z, given a condition; x and z are (B, *shape)."""

    @abstractmethod
    def encode(self, x: Tensor, cond: Conditioning | None) -> Tensor:
        """The point of x."""

    @abstractmethod
    def decode(self, z: Tensor, cond: Conditioning | None) -> Tensor:
        """The sample of z, the inverse of `encode`."""


@final
class ByFlow(Inversion):
    """The base points of a flow, exact.

    z = f(x; σ, c)

    Args:
        network: the flow.
        sigma: σ > 0.
    """

    def __init__(self, network: FlowDensity, sigma: float):
        self.network = network
        self.sigma = sigma

    @torch.no_grad()
    def encode(self, x: Tensor, cond: Conditioning | None) -> Tensor:
        return self.network.encode(x, x.new_full((len(x),), self.sigma), cond)

    @torch.no_grad()
    def decode(self, z: Tensor, cond: Conditioning | None) -> Tensor:
        return self.network.decode(z, z.new_full((len(z),), self.sigma), cond)


@final
class ByDdim(Inversion):
    """The probability-flow ODE by Euler's steps, upwards and downwards.

    x ← x + (σ' − σ)·(x − D(x, σ, c))/σ

    Args:
        denoise: D.
        sigmas: the levels (N+1,), decreasing, > 0.
    """

    def __init__(self, denoise: Denoise, sigmas: Tensor):
        self.denoise = denoise
        self.sigmas = sigmas.tolist()

    def encode(self, x: Tensor, cond: Conditioning | None) -> Tensor:
        return self._along(self.sigmas[::-1], x, cond)

    def decode(self, z: Tensor, cond: Conditioning | None) -> Tensor:
        return self._along(self.sigmas, z, cond)

    @torch.no_grad()
    def _along(self, sigmas: list[float], x: Tensor, cond: Conditioning | None) -> Tensor:
        for sigma, following in pairwise(sigmas):
            levels = x.new_full((len(x),), sigma)
            d = (x - self.denoise(x, levels, cond)) / append_dims(levels, x.ndim)
            x = x + (following - sigma) * d
        return x


def inversion_of(
    model: ConditionedDenoiser, through: Through, num_steps: int, schedule: Schedule | None = None
) -> Inversion:
    """The inversion of a model: `z`, of its flow at the schedule's smallest level, or `ddim`, along the schedule.

    Args:
        model: the model.
        through: which.
        num_steps: Euler's steps of ddim, ≥ 1; z takes none.
        schedule: the noise levels; by default the model's own.

    Raises:
        ConfigurationError: the model is no flow, or does not denoise.
    """
    schedule = schedule or model.sampling.schedule
    if not model.can_sample or model.is_autoencoder:
        raise ConfigurationError(
            f"through={through} needs a model that denoises, and this one does not: take another run."
        )
    if through == "z":
        if not isinstance(model.network, FlowDensity):
            raise ConfigurationError(
                "through=z encodes by a flow, and this network is none: set through=ddim, or take a run of "
                "network=score_flow."
            )
        return ByFlow(model.network, schedule.sigma_min)
    return ByDdim(model, schedule(num_steps + 1)[:-1])
