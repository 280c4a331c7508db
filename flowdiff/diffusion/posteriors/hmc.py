"""Hamiltonian Monte Carlo: exact draws of the posterior of a density."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import torch
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor

from flowdiff.diffusion.guidance.base import Guidance
from flowdiff.diffusion.guidance.none import NoGuidance
from flowdiff.diffusion.measurements.base import Measurement
from flowdiff.diffusion.model import ConditionedDenoiser, check_trained_at
from flowdiff.diffusion.posteriors.base import Drawing, Draws, Posterior
from flowdiff.diffusion.posteriors.chains import BasePoints, Coordinates, Scaled, Walk, walk
from flowdiff.diffusion.posteriors.diagnostics import effective_size, split_rhat
from flowdiff.errors import ConfigurationError
from flowdiff.models.networks.base import Density, FlowDensity
from flowdiff.noise import randn_like, step_generator
from flowdiff.registry import create, name_of, register

Several = Annotated[int, Field(ge=2)]
States = Annotated[int, Field(ge=4)]
Probability = Annotated[float, Field(gt=0, lt=1)]
CHAIN_SEED = 5  # separates the numbers of the chains from those of the warm start


class Chains(Posterior):
    """Draws of p(x|y) ∝ p_σ(x|c)·N(y; A·x, σ_y²·I) from several Markov chains in the space of the base points.

    Args:
        measurement: A and σ_y.
        sigma_data: root mean square of the data.
        sigma: noise level of p_σ; None for the smallest of the schedule.
        chains: chains of each measurement.
        walk: how they walk.
        warm_start: the posterior whose draws are the first states; none: samples of the model.
    """

    def __init__(
        self,
        measurement: Measurement,
        sigma_data: float,
        sigma: float | None,
        chains: int,
        walk: Walk,
        warm_start: str,
    ):
        super().__init__(measurement)
        self.sigma_data = sigma_data
        self.sigma = sigma
        self.chains = chains
        self.walk = walk
        first: Posterior = create("posterior", warm_start, measurement=measurement, sigma_data=sigma_data)
        if isinstance(first, Chains):
            raise ConfigurationError(
                f"posterior.warm_start={warm_start} walks chains itself: choose a method that steers, e.g. mmps, or "
                "none."
            )
        self.first = first

    def check(self, model: ConditionedDenoiser, guidance: Guidance) -> None:
        super().check(model, guidance)
        name = name_of("posterior", self)
        if not isinstance(model.network, Density):
            raise ConfigurationError(
                f"posterior={name} walks on a density, and network={type(model.network).__name__} does not have one: "
                "set posterior=mmps, or take a run of network=score_flow."
            )
        if not isinstance(guidance, NoGuidance):
            raise ConfigurationError(
                f"posterior={name} draws from the density of the model, which guidance={name_of('guidance', guidance)} "
                "does not change: set guidance=none."
            )
        if self.measurement.sigma_y == 0:
            raise ConfigurationError(
                f"posterior={name} needs p(y|x), and without noise that is no density: set measurement.sigma_y > 0, "
                "e.g. measurement.sigma_y=0.01."
            )
        if self.sigma is not None:
            check_trained_at(self.sigma, model.sampling.trained_levels)
        self.first.check(model, guidance)

    def draw(self, model: ConditionedDenoiser, y: Tensor, drawing: Drawing) -> Draws:
        """Draws of each of N measurements y (N, …); the chains of all of them walk together.

        Raises:
            ConfigurationError: more draws than the chains keep states.
        """
        self.check(model, drawing.guidance or model.sampling.guide(model))
        groups, chains, how = len(y), self.chains, self.walk
        if drawing.count > chains * how.kept:
            raise ConfigurationError(
                f"draws={drawing.count} is more than the {chains * how.kept} states that {chains} chains keep: set "
                "posterior.kept or posterior.chains higher, or draws lower."
            )
        warm = self.first.draw(model, y, replace(drawing, count=chains, progress=None))
        x = warm.x.flatten(0, 1)  # (N·chains, *shape)
        generator = step_generator(drawing.seed, CHAIN_SEED)
        level = (drawing.schedule or model.sampling.schedule).sigma_min if self.sigma is None else self.sigma
        coordinates = self._coordinates(model, x, level, drawing)
        z = coordinates.of(x + level * randn_like(x, generator)).detach()
        seen = y.repeat_interleave(chains, 0)

        def log_density(flat: Tensor) -> Tensor:
            z = flat.view_as(x)
            sample = coordinates.sample(z)
            found = coordinates.log_prior(z, sample) + self.measurement.log_likelihood(seen, sample)
            return found.view(groups, chains)

        was_training = model.training
        model.eval()
        try:
            kept = walk(log_density, z.view(groups, chains, -1), how, generator, drawing.progress)
            with torch.no_grad():
                states = torch.stack([coordinates.sample(one.view_as(x)) for one in kept.z])  # (S, N·chains, *shape)
        finally:
            model.train(was_training)
        states = states.view(how.kept, groups, chains, -1)
        each = states.transpose(1, 2)  # (S, chains, N, D)
        chosen = torch.randperm(how.kept * chains, generator=generator)[: drawing.count].to(x.device)
        draws = each.flatten(0, 1)[chosen].transpose(0, 1).reshape(groups, drawing.count, *x.shape[1:])
        walked = chains * (1 + (how.warm_up + how.kept) * how.leapfrog)
        return Draws(
            draws,
            (chains * warm.evaluations + walked) / drawing.count,
            # One measurement after the other: the autocorrelations of all of them at once would fill the memory.
            torch.stack([split_rhat(each[:, :, i]).amax() for i in range(groups)]),
            torch.stack([effective_size(each[:, :, i]).amin() for i in range(groups)]),
            kept.acceptance,
        )

    def _coordinates(self, model: ConditionedDenoiser, x: Tensor, level: float, drawing: Drawing) -> Coordinates:
        labels = None if drawing.labels is None else [label for label in drawing.labels for _ in range(self.chains)]
        prompts = None if drawing.prompts is None else [text for text in drawing.prompts for _ in range(self.chains)]
        given = model.given(len(x), labels, prompts)
        cond = None if given is None else model.cond_of(given)
        sigma = x.new_full((len(x),), level)
        network = model.network
        if isinstance(network, FlowDensity):
            return BasePoints(network, sigma, cond)
        assert isinstance(network, Density)  # `check` asks for it
        return Scaled(network, self.sigma_data, sigma, cond)


@register("posterior", "hmc")
class HMC(Chains):
    """Hamiltonian Monte Carlo in the space of the base points: the exact posterior of a density, at any σ.

    π(z) ∝ N(z; 0, I)·N(y; A·f⁻¹(z), σ_y²·I),  x = f⁻¹(z; σ, c)

    It needs σ_y > 0 and a density. Every proposal costs `leapfrog` inversions of the flow with their derivatives.

    Args:
        measurement: A and σ_y.
        sigma_data: root mean square of the data.
        sigma: noise level of p_σ, one that was trained; None for the smallest of the schedule.
        chains: chains of each measurement, ≥ 2.
        leapfrog: leapfrog steps of a proposal, ≥ 1.
        warm_up: proposals that tune the steps, ≥ 0; their states are not kept.
        kept: states of each chain that are kept, ≥ 4.
        accept: wished share of accepted proposals, in (0, 1).
        warm_start: the posterior whose draws are the first states; none: samples of the model.

    Raises:
        ConfigurationError: warm_start walks chains itself.

    Source: Neal, MCMC using Hamiltonian dynamics, 2011.
    """

    def __init__(
        self,
        measurement: Measurement,
        sigma_data: float,
        *,
        sigma: PositiveFloat | None,
        chains: Several,
        leapfrog: PositiveInt,
        warm_up: NonNegativeInt,
        kept: States,
        accept: Probability,
        warm_start: str,
    ):
        super().__init__(measurement, sigma_data, sigma, chains, Walk(leapfrog, warm_up, kept, accept), warm_start)
