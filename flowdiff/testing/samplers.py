"""The laws of a sampler, on distributions whose denoiser is exact."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from flowdiff import noise
from flowdiff.diffusion.samplers.base import Sampler
from flowdiff.diffusion.schedules.formulas import Karras
from flowdiff.models.conditioning import Conditioning
from flowdiff.testing import oracles
from flowdiff.testing.compare import require, require_at_most, require_close, require_like, require_refused

MIXTURE = oracles.two_by_two()


def check_sampler(sampler: Sampler, order: int | None = None) -> None:
    """Hold a sampler to every law of a sampler.

    One step gives D; the last step gives D to the last bit; D is never asked for at σ = 0; steps of length 0 and
    noise-free samples change nothing; increasing and invalid grids are refused; the callback sees every step; the
    caller's x stays unchanged; a sample with its own generator does not depend on its batch; a fine grid gives the mean
    and the covariance of a Gaussian.

    Args:
        sampler: the sampler, with any number of steps, which the laws replace by grids of their own.
        order: the order of convergence that it claims, measured on a mixture; None for samplers with noise and for
            those that claim none.

    Raises:
        AssertionError: the first law that is broken, by how much and where.
    """
    for law in LAWS:
        law(sampler)
    if order is not None:
        has_order(sampler, order)


def start(n: int, sigma: float, dtype: torch.dtype = torch.float64) -> Tensor:
    """n samples of noise in the plane, (n, 2)."""
    return sigma * torch.randn(n, 2, generator=seeded(0), dtype=dtype)


def seeded(seed: int = 1) -> torch.Generator:
    """A generator in the state of its seed."""
    return torch.Generator().manual_seed(seed)


def one_step_is_the_denoiser(sampler: Sampler) -> None:
    """The grid (σ, 0) gives D(x, σ)."""
    x = start(5, 80.0)
    got = sampler(MIXTURE, x, [80.0, 0.0], generator=seeded())
    require_close(got, MIXTURE(x, x.new_full((5,), 80.0)), "one step to σ = 0 gives D")


def last_step_is_the_denoiser(sampler: Sampler) -> None:
    """Also in float32, where x + (0 − σ)(x − D)/σ would round D at the scale of x: 5e-6 at σ = 80."""
    seen: list[Tensor] = []
    x = start(5, 80.0, torch.float32)
    got = sampler(MIXTURE, x, [80.0, 60.0, 0.0], None, seeded(), lambda *step: seen.append(step[-1]))
    law = "the last step to σ = 0 gives D in float32"
    require_like(got, x, law)
    require_close(got, seen[-1], law)


def denoiser_is_called_for_the_batch_and_never_at_zero(sampler: Sampler) -> None:
    """Each call has one level > 0 per sample, in x's type, under no_grad, and the condition of its samples."""
    law = "the denoiser is called for a batch of samples with one level above 0 each, in x's type, under no_grad"

    def denoiser(x: Tensor, sigma: Tensor, cond: Conditioning | None = None) -> Tensor:
        require(sigma.shape == (len(x),), law, f"the levels of {len(x)} samples have the shape {tuple(sigma.shape)}")
        require(sigma.dtype == x.dtype, law, f"the levels are {sigma.dtype} and x is {x.dtype}")
        require((sigma > 0).all(), law, f"the levels are {sigma.tolist()}")
        require(not torch.is_grad_enabled(), law, "gradients are enabled")
        return MIXTURE(x, sigma, cond)

    k = torch.arange(4).repeat(10)
    given = start(40, 5.0, torch.float32)
    got = sampler(denoiser, given, [5.0, 1.0, 0.2, 0.0], MIXTURE.classes(k), seeded()).double()
    # the last step, from σ = 0.2, puts each sample into its class: the norm of two normal numbers is below 5
    require_at_most(
        (got - MIXTURE.means[k]).norm(dim=1), 5 * MIXTURE.stds[k], "samples are near the mean of their class"
    )


def steps_of_no_length_change_nothing(sampler: Sampler) -> None:
    """Repeated levels of a grid count once."""
    x = start(4, 10.0)
    plain = sampler(MIXTURE, x, [10.0, 3.0, 0.5, 0.0], generator=seeded())
    doubled = sampler(MIXTURE, x, [10.0, 10.0, 3.0, 3.0, 3.0, 0.5, 0.0, 0.0], generator=seeded())
    require_close(doubled, plain, "repeated levels of a grid count once")


def noise_free_x_is_unchanged(sampler: Sampler) -> None:
    """A grid that starts at σ = 0 has nothing to do."""
    x = start(4, 1.0)
    for sigmas in ([0.0], [0.0, 0.0]):
        require_close(sampler(MIXTURE, x, sigmas, generator=seeded()), x, "x at σ = 0 stays as it is")


def increasing_grids_are_refused(sampler: Sampler) -> None:
    """A grid has to decrease."""
    for sigmas in ([1.0, 2.0, 0.0], [2.0, 1.0, 1.5, 0.0]):
        _refused(sampler, sigmas, "have to decrease")


def invalid_levels_are_refused(sampler: Sampler) -> None:
    """The levels have to be finite and not negative, and there has to be one."""
    for sigmas in ([float("inf"), 1.0, 0.0], [1.0, -1.0], [float("nan"), 0.0], []):
        _refused(sampler, sigmas, "finite and not negative")


def _refused(sampler: Sampler, sigmas: list[float], words: str) -> None:
    require_refused(lambda: sampler(MIXTURE, start(2, 1.0), sigmas), f"the grid {sigmas} is refused", words)


def callback_sees_every_step(sampler: Sampler) -> None:
    """It gets number, σ and x of every step; the D of the last is the result."""
    seen: list[tuple[int, float, Tensor, Tensor]] = []
    x = start(3, 10.0)
    got = sampler(MIXTURE, x, [10.0, 2.0, 0.3, 0.0], None, seeded(), lambda *step: seen.append(step))
    law = "the callback sees every step"
    steps = [(index, sigma) for index, sigma, _, _ in seen]
    require(steps == [(0, 10.0), (1, 2.0), (2, 0.3)], law, f"it sees the steps {steps}")
    require_close(seen[0][2], x, f"{law}, the first with the given x")
    require_close(seen[-1][3], got, f"{law}, the last with the D that is returned")


def x_of_the_caller_is_unchanged(sampler: Sampler) -> None:
    """The given x is not written to."""
    x = start(3, 10.0)
    before = x.clone()
    sampler(MIXTURE, x, [10.0, 1.0, 0.0], generator=seeded())
    require_close(x, before, "the caller's x is unchanged")


def a_sample_with_its_own_generator_does_not_depend_on_its_batch(sampler: Sampler) -> None:
    """Sample i of seed s is the same alone and in a batch."""
    x = start(5, 10.0)
    sigmas = [10.0, 2.0, 0.3, 0.0]
    together = sampler(MIXTURE, x, sigmas, generator=noise.generators(7, range(5)))
    alone = [sampler(MIXTURE, x[i : i + 1], sigmas, generator=noise.generators(7, [i])) for i in range(5)]
    law = "a sample with its own generator does not depend on its batch"
    # 1e-12: another batch size may sum in another order
    require_close(torch.cat(alone), together, law, rtol=1e-12, atol=1e-12)


def fine_grid_gives_the_distribution(sampler: Sampler) -> None:
    """Mean and covariance of a correlated Gaussian, from noise."""
    oracle = oracles.Gaussian(torch.tensor([0.3, -0.2]), torch.tensor([[0.3, 0.1], [0.1, 0.1]]))
    n = 4000
    sigmas = Karras(sigma_min=0.002, sigma_max=20.0, rho=7.0)(150)
    x = sampler(
        oracle.end_of_trajectory if sampler.of_consistency else oracle, start(n, 20.0), sigmas, generator=seeded()
    )
    spread = oracle.covariance.diagonal().sqrt()
    # 5 standard errors, and for a first-order method at 150 steps 2 % of the covariance; 0.02 standard deviations of
    # the mean, because the start has the mean 0 instead of the data's
    law = "150 steps give the {} of a Gaussian: the error"
    require_at_most((x.mean(0) - oracle.mean).abs(), (5 / n**0.5 + 0.02) * spread, law.format("mean"))
    allowed = (5 * (2 / n) ** 0.5 + 0.02) * torch.outer(spread, spread)
    require_at_most((x.T.cov() - oracle.covariance).abs(), allowed, law.format("covariance"))


def has_order(sampler: Sampler, order: int) -> None:
    """Richardson: ‖x_N − x_2N‖ falls by 2^order when N doubles.

    The last step, from 0.05 to 0, is the same denoiser for every N. At N = 128, 256, 512 the next term of the error
    still shifts the measured order by about 1/N times a constant of the problem: 0.1 covers it.
    """
    x = MIXTURE.sample(torch.full((64,), 3.0, dtype=torch.float64), generator=seeded())
    ends = []
    for num_steps in (128, 256, 512):
        grid = 3.0 * (0.05 / 3.0) ** torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
        ends.append(sampler(MIXTURE, x, torch.cat([grid, torch.zeros(1)])))
    coarse, fine = float((ends[0] - ends[1]).norm()), float((ends[1] - ends[2]).norm())
    found = math.log2(coarse / fine) if fine else math.inf
    require(abs(found - order) <= 0.1, f"the order of convergence is {order}", f"it is measured as {found:.3g}")


LAWS: tuple[Callable[[Sampler], None], ...] = (
    one_step_is_the_denoiser,
    last_step_is_the_denoiser,
    denoiser_is_called_for_the_batch_and_never_at_zero,
    steps_of_no_length_change_nothing,
    noise_free_x_is_unchanged,
    increasing_grids_are_refused,
    invalid_levels_are_refused,
    callback_sees_every_step,
    x_of_the_caller_is_unchanged,
    a_sample_with_its_own_generator_does_not_depend_on_its_batch,
    fine_grid_gives_the_distribution,
)
