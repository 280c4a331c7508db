"""The smallest eigenvalue of ∂D/∂x against closed forms, and on trajectories."""

import math

import pytest
import torch
from gaussian_flow import GaussianFlow
from small_models import flow_of, normal, score_flow_of

from flowdiff import registry
from flowdiff.evaluation.health.eigenvalues import MOST_LEVELS, smallest_eigenvalue, smallest_on_trajectories
from flowdiff.evaluation.health.trajectories import AtLevel, trajectories_of
from flowdiff.models.networks.base import Network
from flowdiff.shapes import append_dims
from flowdiff.testing.models import ScoreOf, model_of
from flowdiff.testing.oracles import Mixture, two_by_two


def covariances(mixture, x, sigma):
    """Cov[x0|x]/σ² of a mixture, (B, D, D): each component's own, and that of the components' means."""
    flat, means, variances, log_joint = mixture._parts(x, sigma, None)
    posterior = log_joint.softmax(1)  # (B, K)
    share = mixture.stds**2 / variances  # (B, K)
    centres = share[..., None] * flat[:, None] + (1 - share)[..., None] * means  # E[x0 | x, component], (B, K, D)
    apart = centres - (posterior[..., None] * centres).sum(1, keepdim=True)
    between = torch.einsum("bk,bki,bkj->bij", posterior, apart, apart)
    within = (posterior * share).sum(1) * sigma**2  # Σ_k r_k s_k²σ²/(s_k² + σ²)
    return (within[:, None, None] * torch.eye(flat.shape[1], dtype=flat.dtype) + between) / sigma[:, None, None] ** 2


def wide(dim=30):
    """Five bumps in `dim` dimensions, more than the Krylov space has."""
    means, stds = normal((5, dim), (5,), seed=4)
    return Mixture(0.5 * means, 0.1 + 0.1 * stds.abs())


@pytest.mark.parametrize("mixture", [two_by_two(), wide()], ids=["plane", "30 dimensions"])
@pytest.mark.parametrize("as_density", [True, False])
def test_equals_the_posterior_covariance_of_a_mixture(mixture, as_density):
    sigma = torch.tensor([0.05, 0.2, 0.5, 1.0, 3.0], dtype=torch.float64).repeat(4)
    x = mixture.sample(sigma, generator=torch.Generator().manual_seed(0))
    expected = torch.linalg.eigvalsh(covariances(mixture, x, sigma))[:, 0]
    model = model_of(mixture.network if as_density else ScoreOf(mixture.network))
    found = smallest_eigenvalue(model, x, sigma)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-3)
    assert (found > -1e-9).all()  # no distribution has a negative one


class Linear(Network):
    """The score whose denoiser is D = A·x, which no distribution has if A is not symmetric or not positive."""

    def __init__(self, matrix):
        super().__init__()
        self.matrix = matrix

    def forward(self, x, c_noise, cond=None):
        return (x @ self.matrix.T.to(x) - x) / append_dims(c_noise, x.ndim) ** 2


@pytest.mark.parametrize("dim", [6, 50])
def test_a_negative_eigenvalue_of_the_symmetric_part_is_found(dim):
    basis = torch.linalg.qr(normal((dim, dim))[0])[0]
    symmetric = (
        basis @ torch.diag(torch.linspace(0, 1, dim, dtype=torch.float64).index_fill(0, torch.tensor(0), -3)) @ basis.T
    )
    turned = normal((dim, dim), seed=2)[0]
    x = normal((3, dim))[0].float()
    found = smallest_eigenvalue(model_of(Linear(symmetric + turned - turned.T)), x, torch.tensor([0.1, 1.0, 10.0]))
    torch.testing.assert_close(found, torch.full((3,), -3.0, dtype=torch.float64), rtol=0, atol=1e-3)


def test_a_space_that_is_exhausted_is_continued():
    # D = x/2 in 8 dimensions: every vector is an eigenvector.
    found = smallest_eigenvalue(model_of(Linear(0.5 * torch.eye(8))), torch.ones(2, 8), torch.ones(2), iterations=8)
    torch.testing.assert_close(found, torch.full((2,), 0.5, dtype=torch.float64), rtol=0, atol=1e-5)


def far_from_the_start(name):
    """A small score flow, or a small UNet with attention, with random weights."""
    torch.manual_seed(0)
    if name == "realnvp":
        network = score_flow_of(flow_of("realnvp", (6,), embed_dim=8), (6,))
    else:
        settings = {"channels": [8, 8], "attention": [False, True], "norm_groups": 4}
        network = registry.create("network", "unet", shape=(1, 8, 8), cond_dim=0, **settings)
    for parameter in network.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model_of(network).double()


@pytest.mark.parametrize(("name", "shape"), [("realnvp", (6,)), ("unet", (1, 8, 8))])
def test_equals_the_jacobian_by_finite_differences_of_a_flow_and_of_a_unet(name, shape):
    model = far_from_the_start(name)
    (x,), sigma = normal((1, *shape)), torch.ones(1, dtype=torch.float64)
    units = 1e-4 * torch.eye(x.numel(), dtype=torch.float64).view(-1, *shape)
    with torch.no_grad():
        rows = [(model(x + u, sigma) - model(x - u, sigma)).flatten() / 2e-4 for u in units]
    jacobian = torch.stack(rows)
    expected = torch.linalg.eigvalsh((jacobian + jacobian.T) / 2)[0]
    found = smallest_eigenvalue(model, x, sigma, iterations=64)
    assert abs(expected - 1) > 0.01  # the network has changed something
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)


def test_a_sample_does_not_depend_on_its_batch_and_one_that_is_not_finite_has_no_number():
    mixture = wide()
    sigma = torch.full((4,), 0.5, dtype=torch.float64)
    x = mixture.sample(sigma, generator=torch.Generator().manual_seed(1))
    model = model_of(mixture.network)
    together = smallest_eigenvalue(model, x, sigma)
    torch.testing.assert_close(smallest_eigenvalue(model, x[2:3], sigma[2:3]), together[2:3])
    x[1] = math.nan
    found = smallest_eigenvalue(model, x, sigma)
    assert found.isnan().tolist() == [False, True, False, False]
    torch.testing.assert_close(found[[0, 2, 3]], together[[0, 2, 3]])


def test_trajectories_are_those_of_the_models_own_sampler_and_the_curve_is_their_minimum():
    model = model_of(GaussianFlow(std=0.5), shape=(3,))
    steps = trajectories_of(model, 4)
    assert len(steps) == model.sampling.sampler.num_steps
    assert [step.sigma for step in steps] == model.sampling.schedule(len(steps))[:-1].tolist()
    curve = smallest_on_trajectories(model, steps)
    assert curve.sigma == tuple(step.sigma for step in reversed(steps))
    assert curve.value == pytest.approx([0.25 / (0.25 + s**2) for s in curve.sigma], abs=1e-5)
    again = smallest_on_trajectories(model, trajectories_of(model, 4))
    assert again == curve


def test_of_many_steps_some_are_looked_at_and_levels_without_a_number_are_nan():
    model = model_of(two_by_two().network)
    steps = [AtLevel(float(sigma), torch.ones(3, 2), None) for sigma in range(100, 0, -1)]
    steps[0].x.fill_(math.nan)
    curve = smallest_on_trajectories(model, steps)
    assert len(curve.value) == MOST_LEVELS
    assert (curve.sigma[0], curve.sigma[-1]) == (1.0, 100.0)
    assert math.isnan(curve.value[-1])
    assert curve.smallest() == (min(curve.value[:-1]), curve.sigma[-2])  # Cov[x0|x]/σ² falls with σ
