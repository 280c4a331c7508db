"""Ranks of truths are uniform exactly where a method draws from the posterior."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch

from flowdiff import registry
from flowdiff.diffusion.posteriors import Draws
from flowdiff.errors import ConfigurationError
from flowdiff.evaluation.restoration.calibration import Calibration, calibrate
from flowdiff.evaluation.restoration.restore import Restoration

ROOT = Path(__file__).parents[3]


def of_ranks(ranks, draws):
    nothing = torch.zeros(len(ranks), 1)
    return Calibration(ranks, draws, Restoration(nothing, nothing, nothing, Draws(nothing[:, None], 0.0)))


def test_p_values_are_uniform_for_uniform_ranks_and_small_for_others():
    ranks = torch.randint(0, 20, (200, 400), generator=torch.Generator().manual_seed(0))
    p = of_ranks(ranks, 19).p_values(10)
    # shares of 400 p-values below a level; 4 standard errors, 5 at 0.05
    assert float((p < 0.5).double().mean()) == pytest.approx(0.5, abs=0.1)
    assert float((p < 0.05).double().mean()) == pytest.approx(0.05, abs=0.055)
    assert of_ranks(ranks[:, :5], 19).p_value(10) > 0.01
    narrow = torch.cat([ranks[:, :1] // 10 * 19, ranks[:, 1:5]], 1)  # one of five is in the outer bins only
    assert of_ranks(narrow, 19).p_value(10) < 1e-6


def test_histogram():
    found = of_ranks(torch.tensor([[0, 3], [1, 3], [2, 3], [3, 3]]), 3)
    assert torch.equal(found.histogram(2), torch.tensor([[2, 2], [0, 4]]))
    with pytest.raises(ConfigurationError, match="bins=3 does not divide the 4 ranks"):
        found.histogram(3)
    with pytest.raises(ConfigurationError, match="4 truths are too few for bins=2: take 10"):
        found.p_values(2)


@pytest.fixture(scope="module")
def bench():
    spec = importlib.util.spec_from_file_location("calibration_benchmark", ROOT / "benchmarks" / "calibration.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_hmc_is_calibrated_on_a_mixture_and_dps_is_not(seed, bench):
    """Eight dimensions, four random projections: the ranks of 1,000 truths by eleven functions."""
    problem = bench.mixture()
    exact = bench.calibration(problem, "hmc", 1000, seed)
    assert exact.p_value(bench.BINS) > bench.LIMIT
    assert exact.found.draws.rhat.max() < 1.2
    assert bench.calibration(problem, "dps", 1000, seed).p_value(bench.BINS) < 1e-6


@pytest.mark.slow
def test_the_ranks_see_draws_that_are_too_wide(bench):
    """HMC for a measurement with twice the noise that there is."""
    problem = bench.mixture()
    wider = registry.create("measurement", "compressed", shape=(8,), share=0.5, sigma_y=2 * bench.SIGMA_Y)
    truth, _ = problem.truths(200, 0)
    method = registry.create("posterior", "hmc", measurement=wider, sigma_data=0.7)
    found = calibrate(problem.model, problem.measurement, method, truth, bench.Drawing(19))
    assert found.p_value(bench.BINS) < 1e-6
