"""The laws of the score flow for every flow and every whitening, at the start and with perturbed parameters."""

from __future__ import annotations

import math

import pytest
import torch
from flow_cases import label, make_flow, perturb, takes, variants

from flowdiff import noise, registry
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.networks.score_flow import ScoreFlow

EMBED, CLASSES = 8, 3
# Every flow of vectors with its default settings; tests/models/flows/test_laws.py covers its variants and images.
DEFAULT = "linear_activation"
VECTOR_FLOWS = [case for case in variants() if not case[1] and takes(case, (3,))]
ALL_CASES = pytest.mark.parametrize("case", VECTOR_FLOWS, ids=label)


def pairs(attribute: str | None = None) -> pytest.MarkDecorator:
    """Every flow with the isotropic whitening, and the default flow with every whitening."""
    kept = [c for c in VECTOR_FLOWS if attribute is None or getattr(make_flow(c, (3,), 2), attribute)]
    found = [(c, w) for c in kept for w in registry.names("whitening") if w == "isotropic" or c[0] == DEFAULT]
    return pytest.mark.parametrize(("case", "whitening"), found, ids=label)


def having(attribute: str) -> pytest.MarkDecorator:
    """Only the flows for which the attribute is true."""
    kept = [case for case in VECTOR_FLOWS if getattr(make_flow(case, (3,), 2), attribute)]
    return pytest.mark.parametrize("case", kept, ids=label)


# A spline is the identity beyond its ends, which large σ reaches, and its score jumps at the knots, which makes sums
# over a grid and means of scores inaccurate. tests/models/flows/test_laws.py integrates its density on a finer grid.
SMOOTH_PAIRS = pairs("smooth")
PAIRS = pairs()
STATES = pytest.mark.parametrize("far", [False, True], ids=["start", "far"])
COND_DIMS = pytest.mark.parametrize("cond_dim", [0, CLASSES], ids=["unconditional", "class"])
SIGMA = torch.tensor([0.01, 0.3, 2.0, 30.0], dtype=torch.float64)


def data(shape) -> torch.Tensor:
    """Training data with a mean and correlations, so that every statistic of a whitening matters."""
    generator = torch.Generator().manual_seed(0)
    D = math.prod(shape)
    mixing = torch.randn((D, D), generator=generator, dtype=torch.float64) / D**0.5
    x = 0.4 * torch.randn((512, D), generator=generator, dtype=torch.float64) @ mixing + 0.2
    return x.reshape(-1, *shape)


def make(case, whitening: str, shape=(3,), cond_dim: int = 0, far: bool = True) -> ScoreFlow:
    fitted = registry.create("whitening", whitening, shape=shape).double()
    fitted.fit([data(shape)])
    flow = make_flow(case, shape, EMBED, token_dim=0)
    runtime = {"flow": flow, "whitening": fitted, "shape": shape, "cond_dim": cond_dim, "embed_dim": EMBED}
    model = registry.create("network", "score_flow", **runtime).double().eval()
    return perturb(model) if far else model


def noised(shape=(3,), cond_dim: int = 0) -> tuple[torch.Tensor, torch.Tensor, Conditioning | None]:
    generator = torch.Generator().manual_seed(1)
    eps = torch.randn((len(SIGMA), *shape), generator=generator, dtype=torch.float64)
    x = data(shape)[: len(SIGMA)] + SIGMA.reshape(-1, *[1] * len(shape)) * eps
    c = torch.randn((len(SIGMA), cond_dim), generator=generator, dtype=torch.float64) if cond_dim else None
    return x, SIGMA, None if c is None else Conditioning(c)


@PAIRS
@STATES
@COND_DIMS
def test_score_is_the_gradient_of_log_prob(case, whitening, far, cond_dim):
    model = make(case, whitening, cond_dim=cond_dim, far=far)
    x, sigma, cond = noised(cond_dim=cond_dim)
    score = model(x, sigma, cond)
    h = 1e-5 * sigma  # central differences: error h²·third derivative, about 1e-10 of the score
    slopes = []
    with torch.no_grad():
        for unit in torch.eye(3, dtype=x.dtype):
            step = h[:, None] * unit
            rise = model.log_prob(x + step, sigma, cond) - model.log_prob(x - step, sigma, cond)
            slopes.append(rise / (2 * h))
    torch.testing.assert_close(score, torch.stack(slopes, 1), rtol=1e-5, atol=1e-5)


@SMOOTH_PAIRS
def test_perturbed_parameters_change_the_score(case, whitening):
    """With perturbed parameters the score differs from the Gaussian's, and the condition changes it."""
    x, sigma, cond = noised(cond_dim=CLASSES)
    score = make(case, whitening, cond_dim=CLASSES)(x, sigma, cond)
    start = make(case, whitening, cond_dim=CLASSES, far=False)(x, sigma, cond)
    assert ((score - start).norm(dim=1) > 0.1 * start.norm(dim=1)).all()
    other = make(case, whitening, cond_dim=CLASSES)(x, sigma, Conditioning(cond.vector.flip(0)))
    assert ((score - other).norm(dim=1) > 1e-3 * score.norm(dim=1)).all()


@ALL_CASES
def test_the_flow_itself_depends_on_the_noise_level(case):
    """With the identity whitening, which ignores σ, the density still depends on σ."""
    model = make(case, "identity")
    x, sigma, _ = noised()
    with torch.no_grad():
        change = model.log_prob(x, 2 * sigma) - model.log_prob(x, sigma)
    assert (change.abs() > 1e-4).all()


@PAIRS
@STATES
def test_score_is_a_gradient_field(case, whitening, far):
    """∂s/∂x is symmetric, because it is the Hessian of log p."""
    model = make(case, whitening, far=far)
    x, sigma, _ = noised()

    def score(x):  # ScoreFlow.forward detaches x: its score has no graph to x, so take it from log_prob
        return torch.autograd.grad(model.log_prob(x, sigma).sum(), x, create_graph=True)[0].sum(0)

    J = torch.autograd.functional.jacobian(score, x).transpose(0, 1)  # (B, 3, 3)
    size = J.abs().amax((1, 2), keepdim=True)
    torch.testing.assert_close(J / size, J.mT / size, rtol=0, atol=1e-9)


@PAIRS
def test_score_works_without_gradients(case, whitening):
    """The score is the same under no_grad and in eval mode, without a graph, and in train mode, with a graph."""
    model = make(case, whitening)
    x, sigma, _ = noised()
    expected = model(x, sigma)
    assert not expected.requires_grad
    model.train()
    with torch.no_grad():
        silent = model(x, sigma)
    assert not silent.requires_grad
    training = model(x, sigma)
    assert training.requires_grad
    for score in (silent, training):
        torch.testing.assert_close(score, expected, rtol=1e-12, atol=1e-12)
    log_prob, score = model.eval().log_prob_and_score(x, sigma)
    assert not log_prob.requires_grad
    torch.testing.assert_close(score, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(log_prob, model.log_prob(x, sigma).detach(), rtol=1e-12, atol=1e-12)
    assert all(p.grad is None for p in model.parameters())  # computing the score accumulates no gradients


@PAIRS
@COND_DIMS
def test_the_gradient_of_a_score_loss_equals_central_differences(case, whitening, cond_dim):
    """Double backward gives the derivative of a score loss along a random direction in parameter space."""
    model = make(case, whitening, cond_dim=cond_dim).train()
    x, sigma, cond = noised(cond_dim=cond_dim)

    def loss() -> torch.Tensor:
        # Scaled by σ, like every score loss; otherwise the smallest σ would dominate the sum.
        return (sigma[:, None] * model(x, sigma, cond)).square().sum()

    loss().backward()
    parameters = list(model.parameters())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in parameters)
    generator = torch.Generator().manual_seed(2)
    v = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    slope = sum(float((p.grad * d).sum()) for p, d in zip(parameters, v, strict=True))
    h, ends = 1e-6, []
    for sign in (1, -1):
        with torch.no_grad():
            for p, d in zip(parameters, v, strict=True):
                p += sign * h * d
            ends.append(float(loss()))
            for p, d in zip(parameters, v, strict=True):
                p -= sign * h * d
    assert slope == pytest.approx((ends[0] - ends[1]) / (2 * h), rel=1e-4)


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


@SMOOTH_PAIRS
@STATES
def test_density_integrates_to_one(case, whitening, far):
    model = make(case, whitening, shape=(2,), far=far)
    sigma = torch.full((20_000,), 0.5, dtype=torch.float64)
    draws = model.sample(sigma, generator=torch.Generator().manual_seed(3))
    low, high = draws.amin(0), draws.amax(0)
    margin = 0.15 * (high - low)
    ends = zip(low - margin, high + margin, strict=True)
    axes = [torch.linspace(a, b, 256, dtype=torch.float64) for a, b in ends]
    grid = torch.cartesian_prod(*axes)
    with torch.no_grad():
        p = model.log_prob(grid, sigma[:1].expand(len(grid))).exp()
    cell = math.prod(float(axis[1] - axis[0]) for axis in axes)
    # The box omits about one sample in 20,000.
    assert float(p.sum()) * cell == pytest.approx(1.0, abs=5e-4)


@SMOOTH_PAIRS
def test_samples_follow_the_density(case, whitening):
    """With x ~ p of D dimensions E[s(x)] = 0 and E[(x − μ)·s(x)] = −D for any μ (Stein's identity)."""
    model = make(case, whitening)
    n = 4000
    sigma = torch.full((n,), 0.5, dtype=torch.float64)
    x = model.sample(sigma, generator=torch.Generator().manual_seed(4))
    score = model(x, sigma)
    inner = ((x - x.mean(0)) * score).sum(1)
    five_errors = 5 * float(inner.std()) / n**0.5
    assert five_errors < 0.6  # the check can tell a wrong scale of 20% from the right one
    assert float(inner.mean()) == pytest.approx(-3.0, abs=five_errors)
    assert (score.mean(0).abs() < 5 * score.std(0) / n**0.5).all()


@PAIRS
def test_a_sample_depends_only_on_its_generator(case, whitening):
    """With one generator per sample, sample i is the same in every batch; images keep their shape."""
    shape = (1, 2, 2)
    model = make(case, whitening, shape=shape)
    sigma = torch.tensor([0.1, 1.0, 5.0], dtype=torch.float64)
    together = model.sample(sigma, generator=noise.generators(7, range(3)))
    assert together.shape == (3, *shape)
    assert not together.requires_grad
    for i in range(3):
        alone = model.sample(sigma[i : i + 1], generator=noise.generators(7, [i]))
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-8, atol=1e-8)


@having("identity_at_start")
def test_starts_as_the_gaussian_fit(case):
    """At the start the density is N(μ, Σ + σ²I) of the data with zca, and N(0, (E[x0²] + σ²)·I) with isotropic."""
    x0 = data((3,))
    x, sigma, _ = noised()
    eye = torch.eye(3, dtype=x.dtype)
    power = x0.square().mean()
    for whitening, mean, covariance in (
        ("zca", x0.mean(0), torch.cov(x0.T, correction=0)),
        ("isotropic", torch.zeros(3, dtype=x.dtype), power * eye),
    ):
        noisy = covariance + sigma[:, None, None] ** 2 * eye
        gaussian = torch.distributions.MultivariateNormal(mean.expand(4, 3), noisy)
        log_prob = make(case, whitening, far=False).log_prob(x, sigma).detach()
        # Statistics in float32 have relative errors of 1e-7, divided by small eigenvalues.
        torch.testing.assert_close(log_prob, gaussian.log_prob(x), rtol=1e-4, atol=1e-4)
