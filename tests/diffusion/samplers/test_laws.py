"""Laws that every registered sampler obeys, on distributions whose denoiser is exact."""

import pytest
import torch

from flowdiff import noise, registry
from flowdiff.errors import ConfigurationError
from flowdiff.testing import oracles

SAMPLERS = registry.names("sampler")
MIXTURE = oracles.two_by_two()


def start(n, sigma, dtype=torch.float64):
    return sigma * torch.randn(n, 2, generator=torch.Generator().manual_seed(0), dtype=dtype)


def seeded(seed=1):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(params=SAMPLERS)
def sampler(request):
    return registry.create("sampler", request.param)


def test_one_step_is_the_denoiser(sampler):
    x = start(5, 80.0)
    got = sampler(MIXTURE, x, [80.0, 0.0], generator=seeded())
    assert torch.equal(got, MIXTURE(x, x.new_full((5,), 80.0)))


def test_last_step_is_the_denoiser_also_in_float32(sampler):
    """x + (0 − σ)(x − D)/σ would round D at the scale of x: 5e-6 at σ = 80."""
    seen = []
    x = start(5, 80.0, torch.float32)
    got = sampler(MIXTURE, x, [80.0, 60.0, 0.0], None, seeded(), lambda *step: seen.append(step))
    assert got.dtype == torch.float32
    assert torch.equal(got, seen[-1][-1])


def test_denoiser_is_called_for_the_batch_and_never_at_zero(sampler):
    def denoiser(x, sigma, cond):
        assert sigma.shape == (len(x),)
        assert sigma.dtype == x.dtype
        assert (sigma > 0).all()
        assert not torch.is_grad_enabled()
        return MIXTURE(x, sigma, cond)

    k = torch.arange(4).repeat(10)
    given = start(40, 5.0, torch.float32)
    got = sampler(denoiser, given, [5.0, 1.0, 0.2, 0.0], MIXTURE.classes(k), seeded()).double()
    # the last step, from σ = 0.2, puts each sample into its class: the norm of two normal numbers is below 5
    assert ((got - MIXTURE.means[k]).norm(dim=1) < 5 * MIXTURE.stds[k]).all()


def test_steps_of_no_length_change_nothing(sampler):
    x = start(4, 10.0)
    plain = sampler(MIXTURE, x, [10.0, 3.0, 0.5, 0.0], generator=seeded())
    doubled = sampler(MIXTURE, x, [10.0, 10.0, 3.0, 3.0, 3.0, 0.5, 0.0, 0.0], generator=seeded())
    assert torch.equal(plain, doubled)


def test_noise_free_x_is_unchanged(sampler):
    x = start(4, 1.0)
    assert torch.equal(sampler(MIXTURE, x, [0.0], generator=seeded()), x)
    assert torch.equal(sampler(MIXTURE, x, [0.0, 0.0], generator=seeded()), x)


@pytest.mark.parametrize("sigmas", [[1.0, 2.0, 0.0], [2.0, 1.0, 1.5, 0.0]])
def test_increasing_grid_is_refused(sampler, sigmas):
    with pytest.raises(ConfigurationError, match="have to decrease"):
        sampler(MIXTURE, start(2, 1.0), sigmas)


@pytest.mark.parametrize("sigmas", [[float("inf"), 1.0, 0.0], [1.0, -1.0], [float("nan"), 0.0], []])
def test_invalid_levels_are_refused(sampler, sigmas):
    with pytest.raises(ConfigurationError, match="finite and not negative"):
        sampler(MIXTURE, start(2, 1.0), sigmas)


def test_callback_sees_every_step(sampler):
    seen = []
    x = start(3, 10.0)
    got = sampler(MIXTURE, x, [10.0, 2.0, 0.3, 0.0], None, seeded(), lambda *step: seen.append(step))
    assert [(index, sigma) for index, sigma, _, _ in seen] == [(0, 10.0), (1, 2.0), (2, 0.3)]
    assert torch.equal(seen[0][2], x)
    assert torch.equal(seen[-1][3], got)


def test_x_of_the_caller_is_unchanged(sampler):
    x = start(3, 10.0)
    before = x.clone()
    sampler(MIXTURE, x, [10.0, 1.0, 0.0], generator=seeded())
    assert torch.equal(x, before)


def test_a_sample_with_its_own_generator_does_not_depend_on_its_batch(sampler):
    x = start(5, 10.0)
    sigmas = [10.0, 2.0, 0.3, 0.0]
    together = sampler(MIXTURE, x, sigmas, generator=noise.generators(7, range(5)))
    alone = [sampler(MIXTURE, x[i : i + 1], sigmas, generator=noise.generators(7, [i])) for i in range(5)]
    # 1e-12: another batch size may sum in another order
    torch.testing.assert_close(torch.cat(alone), together, rtol=1e-12, atol=1e-12)


def test_fine_grid_gives_the_distribution(sampler):
    """Mean and covariance of a correlated Gaussian, from noise."""
    oracle = oracles.Gaussian(torch.tensor([0.3, -0.2]), torch.tensor([[0.3, 0.1], [0.1, 0.1]]))
    n = 4000
    sigmas = registry.create("schedule", "karras", sigma_max=20.0)(150)
    x = sampler(oracle, start(n, 20.0), sigmas, generator=seeded())
    spread = oracle.covariance.diagonal().sqrt()
    # 5 standard errors, and for a first-order method at 150 steps 2 % of the covariance; 0.02 standard deviations of
    # the mean, because the start has the mean 0 instead of the data's
    assert ((x.mean(0) - oracle.mean).abs() < (5 / n**0.5 + 0.02) * spread).all()
    error = (x.T.cov() - oracle.covariance).abs()
    assert (error < (5 * (2 / n) ** 0.5 + 0.02) * torch.outer(spread, spread)).all()


# The module of dpmpp_3m_sde explains its order. lms of higher order is left out: its first step, Euler's, has an error
# of order 2.
ORDERS = [
    ("euler", {}, 1),
    ("ddim", {}, 1),
    ("dpm_solver_1", {}, 1),
    ("ancestral", {"eta": 0.0}, 1),
    ("heun", {}, 2),
    ("dpm_solver_2", {}, 2),
    ("dpmpp_2s", {}, 2),
    ("dpmpp_2m", {}, 2),
    ("dpmpp_2m_sde", {"eta": 0.0}, 2),
    ("dpmpp_3m_sde", {"eta": 0.0}, 2),
    ("lms", {"order": 2}, 2),
    ("unipc", {"order": 1}, 2),
    ("unipc", {"order": 2}, 3),
    ("unipc", {"order": 2, "variant": "bh1"}, 3),
]


@pytest.mark.parametrize(("name", "settings", "order"), ORDERS)
def test_order_of_convergence(name, settings, order):
    """Richardson: ‖x_N − x_2N‖ falls by 2^order when N doubles.

    The last step, from 0.05 to 0, is the same denoiser for every N. At N = 128, 256, 512 the next term of the error
    still shifts the measured order by about 1/N times a constant of the problem: 0.1 covers it.
    """
    sampler = registry.create("sampler", name, **settings)
    x = MIXTURE.sample(torch.full((64,), 3.0, dtype=torch.float64), generator=seeded())
    ends = []
    for num_steps in (128, 256, 512):
        grid = 3.0 * (0.05 / 3.0) ** torch.linspace(0, 1, num_steps + 1, dtype=torch.float64)
        ends.append(sampler(MIXTURE, x, torch.cat([grid, torch.zeros(1)])))
    coarse, fine = (ends[0] - ends[1]).norm(), (ends[1] - ends[2]).norm()
    assert torch.log2(coarse / fine).item() == pytest.approx(order, abs=0.1)
