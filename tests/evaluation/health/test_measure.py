"""What is measured of which model: nothing without D, and a reason where autograd does not reach."""

import math

import pytest
from gaussian_flow import GaussianFlow
from small_models import small_vae

from flowdiff import config, registry
from flowdiff.evaluation.health.measure import ONLY_ONCE
from flowdiff.models.networks.base import Network
from flowdiff.testing.models import ScoreOf, model_of

OFF = dict.fromkeys(("denoising", "eigenvalue", "fokker_planck"), False)
NUMBERS = {
    *("denoising_worst", "denoising_worst_sigma", "denoising_worst_ratio", "data_mean_error", "levels_visited"),
    *("levels_worse_than_means", "min_eigenvalue", "min_eigenvalue_sigma"),
}


@pytest.fixture
def health_of(points, cache_dir):
    def measure(model, data=points, **settings):
        node = {**config.defaults("metrics", "default")["health"], **settings}
        metrics = registry.create("metrics", "default", data=data, cache_dir=str(cache_dir), health=node)
        return metrics.health(model)

    return measure


def test_of_a_density_all_three_and_of_a_raw_network_the_first_two(health_of):
    density = model_of(GaussianFlow(std=0.45), shape=(2,))
    numbers = health_of(density).numbers()
    assert set(numbers) == NUMBERS | {"fokker_planck"}
    assert all(math.isfinite(value) for value in numbers.values())
    assert numbers["denoising_worst_ratio"] == pytest.approx(1, abs=0.05)
    assert numbers["levels_worse_than_means"] == 0
    assert numbers["levels_visited"] == 14  # of 16: Heun's 18 levels are dense at small σ and skip two
    assert numbers["min_eigenvalue"] == pytest.approx(0.45**2 / 80**2, abs=1e-5)
    assert numbers["fokker_planck"] < 1e-3
    raw = health_of(model_of(ScoreOf(GaussianFlow(std=0.45)), shape=(2,)))
    assert set(raw.numbers()) == NUMBERS
    assert raw.denoising == health_of(density).denoising
    assert health_of(density, levels=5).fokker_planck.sigma == pytest.approx((0.002, 0.4, 80))


def test_what_is_switched_off_is_not_measured(health_of):
    model = model_of(GaussianFlow(), shape=(2,))
    assert health_of(model, **OFF).is_empty
    assert set(health_of(model, **{**OFF, "eigenvalue": True}).numbers()) == {"min_eigenvalue", "min_eigenvalue_sigma"}
    assert set(health_of(model, **{**OFF, "fokker_planck": True}).numbers()) == {"fokker_planck"}


def test_a_network_that_autograd_differentiates_only_once_has_a_reason(health_of):
    model = model_of(GaussianFlow(), shape=(2,))
    model.network.twice_differentiable = False
    found = health_of(model)
    assert found.eigenvalues is None
    assert found.fokker_planck is None
    numbers = found.numbers()
    assert numbers["min_eigenvalue"].reason == numbers["fokker_planck"].reason == ONLY_ONCE
    assert math.isfinite(numbers["denoising_worst"])


class Undeclared(Network):
    """A network with an operation that torch does not differentiate, as it would raise it."""

    def forward(self, x, c_noise, cond=None):
        if x.requires_grad:
            raise RuntimeError("derivative for aten::it is not implemented")
        return -x


def test_an_undeclared_one_only_loses_the_number(health_of, caplog):
    found = health_of(model_of(Undeclared(), shape=(2,)))
    reason = "it cannot be measured (derivative for aten::it is not implemented)"
    assert found.numbers()["min_eigenvalue"].reason == reason
    assert "no min_eigenvalue: derivative for" in caplog.text
    assert found.denoising is not None


def test_networks_without_a_denoiser_have_no_health(health_of, tiny):
    classifier = registry.create(
        "network",
        "classifier",
        shape=(3, 8, 8),
        cond_dim=4,
        num_classes=4,
        activation=registry.create("activation", "swish"),
        whitening=registry.create("whitening", "isotropic", shape=(3, 8, 8)),
    )
    for network in (classifier, small_vae((3, 8, 8))):
        found = health_of(model_of(network, shape=(3, 8, 8)), data=tiny)
        assert found.is_empty
        assert found.numbers() == {}


def test_the_model_is_in_eval_mode_meanwhile_and_the_numbers_repeat(health_of):
    model = model_of(GaussianFlow(), shape=(2,))
    model.train()
    found = health_of(model)
    assert model.training
    assert health_of(model) == found
