"""The Metropolis-adjusted Langevin algorithm: exact draws of the posterior of a density, by small steps."""

from __future__ import annotations

from pydantic import NonNegativeInt, PositiveFloat

from flowdiff.diffusion.measurements.base import Measurement
from flowdiff.diffusion.posteriors.chains import Walk
from flowdiff.diffusion.posteriors.hmc import Chains, Probability, Several, States
from flowdiff.registry import register


@register("posterior", "mala")
class MALA(Chains):
    """`hmc` with proposals of a single leapfrog step, which are steps of Langevin dynamics.

    z' = z + ½·ε²·v·∇log π(z) + ε·√v·noise,  v the variance of each number

    A proposal is cheap and the next state is near, so that many are needed.

    Args:
        measurement: A and σ_y.
        sigma_data: root mean square of the data.
        sigma: noise level of p_σ, one that was trained; None for the smallest of the schedule.
        chains: chains of each measurement, ≥ 2.
        warm_up: proposals that tune the steps, ≥ 0; their states are not kept.
        kept: states of each chain that are kept, ≥ 4.
        accept: wished share of accepted proposals, in (0, 1); 0.574 is best in many dimensions.
        warm_start: the posterior whose draws are the first states; none: samples of the model.

    Raises:
        ConfigurationError: warm_start walks chains itself.

    Source: Roberts & Tweedie, Exponential convergence of Langevin distributions and their discrete approximations,
    1996.
    """

    def __init__(
        self,
        measurement: Measurement,
        sigma_data: float,
        *,
        sigma: PositiveFloat | None,
        chains: Several,
        warm_up: NonNegativeInt,
        kept: States,
        accept: Probability,
        warm_start: str,
    ):
        super().__init__(measurement, sigma_data, sigma, chains, Walk(1, warm_up, kept, accept), warm_start)
