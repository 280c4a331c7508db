"""The laws of the score flow for every flow and every whitening, at the start and with perturbed parameters."""

import math

import pytest
import torch
from flow_cases import label, make_flow, perturb, takes, variants
from small_models import normal, score_flow_of

from flowdiff import registry
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.networks.score_flow import ScoreFlow
from flowdiff.testing import networks as laws

EMBED, CLASSES = 8, 3
# Every flow of vectors with its default settings; tests/models/flows/test_laws.py covers its variants and images.
DEFAULT = "linear_activation"
VECTOR_FLOWS = [case for case in variants() if not case[1] and takes(case, (3,))]


def pairs(having=lambda flow: True, slow: tuple[str, ...] = ()) -> pytest.MarkDecorator:
    """Every flow with the isotropic whitening, and linear_activation with every whitening."""
    kept = [case for case in VECTOR_FLOWS if having(make_flow(case, (3,), 2))]
    found = [
        pytest.param(case, whitening, marks=pytest.mark.slow if case[0] in slow else ())
        for case in kept
        for whitening in registry.names("whitening")
        if whitening == "isotropic" or case[0] == DEFAULT
    ]
    return pytest.mark.parametrize(("case", "whitening"), found, ids=label)


# A spline is the identity beyond its ends, which large σ reaches, and its score jumps at the knots, which makes sums
# over a grid and means of scores inaccurate. tests/models/flows/test_laws.py integrates its density on a finer grid.
SMOOTH_PAIRS = pairs(lambda flow: flow.smooth)
PAIRS = pairs()
STATES = pytest.mark.parametrize("far", [False, True], ids=["start", "far"])
COND_DIMS = pytest.mark.parametrize("cond_dim", [0, CLASSES], ids=["unconditional", "class"])
SIGMA = torch.tensor([0.01, 0.3, 2.0, 30.0], dtype=torch.float64)


def data(shape) -> torch.Tensor:
    """Training data with a mean and correlations, so that every statistic of a whitening matters."""
    D = math.prod(shape)
    mixing, z = normal((D, D), (512, D), seed=0)
    return (0.4 * z @ mixing / D**0.5 + 0.2).reshape(-1, *shape)


def noised(cond_dim: int = 0) -> tuple[torch.Tensor, torch.Tensor, Conditioning | None]:
    eps, c = normal((len(SIGMA), 3), (len(SIGMA), cond_dim))
    return data((3,))[: len(SIGMA)] + SIGMA[:, None] * eps, SIGMA, Conditioning(c) if cond_dim else None


def make(case, whitening: str, shape=(3,), cond_dim: int = 0, far: bool = True) -> ScoreFlow:
    fitted = registry.create("whitening", whitening, shape=shape).double()
    fitted.fit([data(shape)])
    flow = make_flow(case, shape, EMBED, token_dim=0)
    model = score_flow_of(flow, shape, fitted, EMBED, cond_dim=cond_dim).double().eval()
    return perturb(model) if far else model


@PAIRS
@STATES
@COND_DIMS
def test_laws_of_the_score(case, whitening, far, cond_dim):
    """The score is the gradient of log p and its Jacobian symmetric, and a far flow obeys the other laws too."""
    model = make(case, whitening, cond_dim=cond_dim, far=far)
    of_far = (
        *(laws.works_without_gradients, laws.score_has_a_graph_only_in_training, laws.log_prob_and_score_agree),
        laws.score_loss_gradient_is_exact,
    )
    for law in (laws.score_is_gradient, laws.score_jacobian_is_symmetric, *(of_far if far else ())):
        law(model, *noised(cond_dim))


@PAIRS
def test_laws_of_samples(case, whitening):
    """A sample depends only on its generator; samples follow a smooth density."""
    model = make(case, whitening, shape=(1, 2, 2))
    laws.samples_depend_only_on_their_generators(model, SIGMA[1:], None, (1, 2, 2))
    if model.flow.smooth:
        laws.samples_follow_the_density(make(case, whitening))


@SMOOTH_PAIRS
def test_perturbed_parameters_change_the_score(case, whitening):
    """With perturbed parameters the score differs from the Gaussian's, and the condition changes it."""
    x, sigma, cond = (given[torch.arange(3)] for given in noised(CLASSES))  # at high noise the gate makes it Gaussian
    score, start = (make(case, whitening, cond_dim=CLASSES, far=far)(x, sigma, cond) for far in (True, False))
    assert ((score - start).norm(dim=1) > 0.1 * start.norm(dim=1)).all()
    other = make(case, whitening, cond_dim=CLASSES)(x, sigma, Conditioning(cond.vector.roll(1, 0)))
    assert ((score - other).norm(dim=1) > 1e-3 * score.norm(dim=1)).all()


@pytest.mark.parametrize("case", VECTOR_FLOWS, ids=label)
def test_the_flow_itself_depends_on_the_noise_level(case):
    """With the identity whitening, which ignores σ, the density still depends on σ."""
    model = make(case, "identity")
    x, sigma, _ = noised()
    with torch.no_grad():
        change = model.log_prob(x, 2 * sigma) - model.log_prob(x, sigma)
    assert (change.abs() > 1e-4).all()


@PAIRS
@STATES
def test_autocast_leaves_density_and_score_in_float32(case, whitening, far):
    """They differ from float32 only by the rounding of the nets in bfloat16, whose output is 0 at the start."""
    model = make(case, whitening, far=far).float()
    x, sigma, _ = noised()
    x, sigma = x.float(), sigma.float()
    expected = model.log_prob_and_score(x, sigma)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = model.log_prob_and_score(x, sigma)
        z = model.encode(x, sigma)
        back = model.decode(z, sigma)
    at_start = not far and model.flow.identity_at_start
    for low, full in zip((*found, back), (*expected, x), strict=True):
        assert low.dtype == torch.float32
        error, size = (v.reshape(len(x), -1).norm(dim=1) for v in (low - full, full))
        # Rounding errors, 4e-3 in bfloat16, are amplified by the large derivatives at σ = 0.01. A score that jumps may
        # be on the other side of its jump.
        if at_start or model.flow.smooth or low is not found[1]:
            assert (error <= (1e-4 if at_start else 0.1) * (1 + size)).all()


@pairs(lambda flow: flow.smooth, slow=("ffjord", "tarflow"))
@STATES
def test_density_integrates_to_one(case, whitening, far):
    laws.density_integrates_to_one(make(case, whitening, shape=(2,), far=far))


@pytest.mark.parametrize(
    "case", [case for case in VECTOR_FLOWS if make_flow(case, (3,), 2).identity_at_start], ids=label
)
def test_starts_as_the_gaussian_fit(case):
    """At the start the density is N(μ, Σ + σ²I) of the data with zca, and N(μ, (tr Σ/D + σ²)·I) with isotropic."""
    x0 = data((3,))
    x, sigma, _ = noised()
    eye = torch.eye(3, dtype=x.dtype)
    variance = x0.var(0, correction=0).mean()
    for whitening, mean, covariance in (
        ("zca", x0.mean(0), torch.cov(x0.T, correction=0)),
        ("isotropic", x0.mean(0), variance * eye),
    ):
        noisy = covariance + sigma[:, None, None] ** 2 * eye
        gaussian = torch.distributions.MultivariateNormal(mean.expand(4, 3), noisy)
        log_prob = make(case, whitening, far=False).log_prob(x, sigma).detach()
        # Statistics in float32 have relative errors of 1e-7, divided by small eigenvalues.
        torch.testing.assert_close(log_prob, gaussian.log_prob(x), rtol=1e-4, atol=1e-4)
