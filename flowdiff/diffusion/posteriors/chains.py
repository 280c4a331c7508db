"""Markov chains for the exact posterior of a density, in coordinates in which its prior is simple.

    π(x) ∝ p_σ(x|c)·N(y; A·x, σ_y²·I)

A flow has x = f⁻¹(z), and z has the density of its base under the prior, N(0, I) in most flows:

    log π(z) = log N(z; 0, I) + log N(y; A·f⁻¹(z), σ_y²·I) + const,

because log p_σ(x) = log N(f(x); 0, I) + log|det ∂z/∂x| and the change of variables takes the determinant away again.
All that the prior knows is in f⁻¹, which autograd differentiates. For another density z = x/√(σ² + σ_data²).

A proposal follows Hamilton's equations for a random momentum by leapfrog steps and is accepted with the probability
min(1, e^{−ΔH}), which makes π stationary whatever the size of the steps. During the warm-up each measurement's chains
find their own size of steps, so that the share of accepted proposals is the wished one, and their own variance of each
number, which scales the steps; both are then kept.

Sources: Duane, Kennedy, Pendleton, Roweth, Hybrid Monte Carlo, 1987; Neal, MCMC using Hamiltonian dynamics, 2011;
Hoffman & Gelman, The no-U-turn sampler, 2014, section 3.2, for the size of the steps; Roberts & Tweedie, Exponential
convergence of Langevin distributions, 1996, for a single leapfrog step, MALA.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from flowdiff.models.conditioning import Conditioning
from flowdiff.models.networks.base import Density, FlowDensity
from flowdiff.noise import randn_like
from flowdiff.shapes import append_dims

JITTER = 0.2  # the size of the steps of a proposal varies by this share, so that no orbit closes
FIRST_STEP = 0.1  # size at the start of the warm-up, in standard deviations
WINDOWS = (0.25, 0.5)  # shares of the warm-up at which the variances are taken from the chains


class Coordinates(ABC):
    """The coordinates z in which chains move; the prior's density of z, and the sample x of z.

    Args:
        sigma: noise level of each chain, (B,).
        cond: the condition of each chain.
    """

    def __init__(self, sigma: Tensor, cond: Conditioning | None):
        self.sigma = sigma
        self.cond = cond

    @abstractmethod
    def of(self, x: Tensor) -> Tensor:
        """z of x, both (B, …)."""

    @abstractmethod
    def sample(self, z: Tensor) -> Tensor:
        """x of z, differentiable in z."""

    @abstractmethod
    def log_prior(self, z: Tensor, x: Tensor) -> Tensor:
        """The log-density of z if x ~ p_σ(·|c), in nats, (B,)."""


class BasePoints(Coordinates):
    """The base points of a flow.

    Args:
        flow: the density.
        sigma: noise level of each chain, (B,).
        cond: the condition of each chain.
    """

    def __init__(self, flow: FlowDensity, sigma: Tensor, cond: Conditioning | None):
        super().__init__(sigma, cond)
        self.flow = flow

    def of(self, x: Tensor) -> Tensor:
        return self.flow.encode(x, self.sigma, self.cond)

    def sample(self, z: Tensor) -> Tensor:
        return self.flow.decode(z, self.sigma, self.cond)

    def log_prior(self, z: Tensor, x: Tensor) -> Tensor:
        return self.flow.log_base(z, self.sigma, self.cond)


class Scaled(Coordinates):
    """x in units of √(σ² + σ_data²), for a density that has no base points.

    Args:
        density: the density.
        sigma_data: root mean square of the data.
        sigma: noise level of each chain, (B,).
        cond: the condition of each chain.
    """

    def __init__(self, density: Density, sigma_data: float, sigma: Tensor, cond: Conditioning | None):
        super().__init__(sigma, cond)
        self.density = density
        self.scale = (sigma**2 + sigma_data**2).sqrt()

    def of(self, x: Tensor) -> Tensor:
        return x / append_dims(self.scale, x.ndim)

    def sample(self, z: Tensor) -> Tensor:
        return z * append_dims(self.scale, z.ndim)

    def log_prior(self, z: Tensor, x: Tensor) -> Tensor:
        return self.density.log_prob(x, self.sigma, self.cond) + z[0].numel() * self.scale.log()


@dataclass(frozen=True)
class Walk:
    """How chains walk.

    Args:
        leapfrog: leapfrog steps of a proposal, ≥ 1.
        warm_up: proposals before states are kept, ≥ 0.
        kept: states of each chain that are kept, ≥ 4.
        accept: wished share of accepted proposals.
    """

    leapfrog: int
    warm_up: int
    kept: int
    accept: float


@dataclass(frozen=True)
class Kept:
    """What is left of chains: their states z (S, G, C, D), and the share of accepted proposals (G,)."""

    z: Tensor
    acceptance: Tensor


class StepSize:
    """The size of the leapfrog steps of each group of chains, found by dual averaging.

    Args:
        groups: number of groups.
        like: a tensor of the chains' type and device.
        accept: wished share of accepted proposals.
    """

    def __init__(self, groups: int, like: Tensor, accept: float):
        self.accept = accept
        self.size = like.new_full((groups,), FIRST_STEP)
        self.restart()

    def restart(self) -> None:
        """Forget what was learned but the size."""
        self.centre = (10 * self.size).log()
        self.average = self.size.log()
        self.error = torch.zeros_like(self.size)
        self.count = 0

    def learn(self, accepted: Tensor) -> None:
        """Take account of a proposal's probability of acceptance in each group, (G,)."""
        self.count += 1
        m = self.count
        self.error = self.error + (self.accept - accepted - self.error) / (m + 10)
        log_size = self.centre - math.sqrt(m) / 0.05 * self.error
        weight = m**-0.75
        self.average = weight * log_size + (1 - weight) * self.average
        self.size = log_size.exp()

    def settle(self) -> None:
        """Keep the average of the sizes."""
        if self.count:
            self.size = self.average.exp()


def walk(
    log_density: Callable[[Tensor], Tensor],
    z: Tensor,
    how: Walk,
    generator: torch.Generator | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Kept:
    """Walk chains of several targets at once: G groups of C chains each, whose target they share.

    Args:
        log_density: z (G, C, D) → log π(z) up to a constant of each group, (G, C), differentiable.
        z: the first states, (G, C, D).
        how: the steps, and how many.
        generator: source of the momenta and of what decides about proposals.
        progress: called with (proposals made, proposals in all).
    """

    def value_and_slope(z: Tensor) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            inner = z.detach().requires_grad_(True)
            value = log_density(inner)
            (slope,) = torch.autograd.grad(value.sum(), inner)
        return value.detach(), slope

    groups, chains, _ = z.shape
    step = StepSize(groups, z, how.accept)
    variance = torch.ones_like(z[:, :1])
    value, slope = value_and_slope(z)
    window: list[Tensor] = []
    states, accepted = [], torch.zeros_like(step.size)
    windows = [round(share * how.warm_up) for share in WINDOWS]
    for i in range(how.warm_up + how.kept):
        uniform = torch.rand(groups, chains + 1, generator=generator, dtype=z.dtype).to(z.device)
        size = (step.size * (1 + JITTER * (2 * uniform[:, -1] - 1)))[:, None, None]
        momentum = randn_like(z, generator) / variance.sqrt()
        energy = value - 0.5 * (variance * momentum**2).sum(2)
        to, value_to, slope_to = z, value, slope
        for _ in range(how.leapfrog):
            momentum = momentum + 0.5 * size * slope_to
            to = to + size * variance * momentum
            value_to, slope_to = value_and_slope(to)
            momentum = momentum + 0.5 * size * slope_to
        gain = value_to - 0.5 * (variance * momentum**2).sum(2) - energy
        probability = gain.nan_to_num(-torch.inf, -torch.inf, -torch.inf).clamp(max=0).exp()  # an overflow is rejected
        moves = uniform[:, :-1] < probability
        z = torch.where(moves[..., None], to, z)
        value, slope = torch.where(moves, value_to, value), torch.where(moves[..., None], slope_to, slope)
        if i < how.warm_up:
            step.learn(probability.mean(1))
            window.append(z)
            if i + 1 in windows:
                variance = _variance(torch.cat(window[len(window) // 2 :], 1))
                step.restart()
            if i + 1 == how.warm_up:
                step.settle()
        else:
            states.append(z)
            accepted = accepted + probability.mean(1) / how.kept
        if progress is not None:
            progress(i + 1, how.warm_up + how.kept)
    return Kept(torch.stack(states), accepted)


def _variance(z: Tensor) -> Tensor:
    """The variance of each number over the states (G, N, D) of a group, (G, 1, D), drawn to 1e-3 where N is small."""
    n = z.shape[1]
    return (n * z.var(1, keepdim=True, correction=0) + 5e-3) / (n + 5)
