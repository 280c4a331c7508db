"""The closed forms of the posterior, compared with sampling."""

import math

import pytest
import torch

from flowdiff.models.autoencoder.posterior import LOG_VARIANCE, Posterior, standard_normal

MEAN = torch.tensor([[0.0, 1.3, -0.4], [2.0, 0.0, 0.7]], dtype=torch.float64)
LOG_VARIANCES = torch.tensor([[0.0, -1.0, 0.5], [-3.0, 1.0, 0.0]], dtype=torch.float64)
N = 40_000


def noise():
    return torch.randn(N, *MEAN.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_kl_is_the_mean_of_the_log_ratio():
    q = Posterior(MEAN, LOG_VARIANCES)
    latent = q.sample(noise())  # (N, 2, 3)
    ratios = torch.stack([q.log_prob(part) - standard_normal(part) for part in latent])  # (N, 2)
    error = ratios.std(0) / math.sqrt(N)
    assert bool(((ratios.mean(0) - q.kl().sum(1)).abs() < 4 * error).all())
    assert bool((q.kl() >= 0).all())


def test_kl_is_zero_at_the_prior_accurate_near_it_and_finite_far_from_it():
    assert Posterior(torch.zeros(1, 3), torch.zeros(1, 3)).kl().abs().max() == 0
    near = Posterior(torch.zeros(1, 1), torch.full((1, 1), 1e-3))
    # v²/4; computed as e^v − 1 − v it would have no correct digit
    assert near.kl().item() == pytest.approx(1e-6 / 4, rel=1e-3)
    clamped = Posterior.of(torch.zeros(1, 2), torch.tensor([[-1e3, 1e3]]))
    assert clamped.log_variance.tolist() == [list(LOG_VARIANCE)]
    assert bool(clamped.kl().isfinite().all())


def test_the_mean_gradient_of_samples_is_the_gradient_of_the_mean():
    """E[a·ℓ²] = a·(m² + e^v), so reparameterised samples give ∂/∂m = 2am and ∂/∂v = a·e^v on average."""
    mean, log_variance = MEAN.clone().requires_grad_(True), LOG_VARIANCES.clone().requires_grad_(True)
    a = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
    value = (a * Posterior(mean, log_variance).sample(noise()) ** 2).sum() / N
    by_mean, by_log_variance = torch.autograd.grad(value, (mean, log_variance))
    # Standard errors of 2am + 2a·e^{v/2}·ε and of a·(m·e^{v/2}·ε + e^v·ε²).
    sd = (0.5 * LOG_VARIANCES).exp()
    error_of_mean = 2 * a.abs() * sd / math.sqrt(N)
    error_of_log_variance = a.abs() * (MEAN**2 * sd**2 + 2 * sd**4).sqrt() / math.sqrt(N)
    assert bool(((by_mean - 2 * a * MEAN).abs() < 4 * error_of_mean).all())
    assert bool(((by_log_variance - a * sd**2).abs() < 4 * error_of_log_variance).all())


def test_log_prob_is_the_normal_density():
    q = Posterior(MEAN, LOG_VARIANCES)
    at = torch.ones(2, 3, dtype=torch.float64)
    expected = torch.distributions.Normal(MEAN, (0.5 * LOG_VARIANCES).exp()).log_prob(at).sum(1)
    torch.testing.assert_close(q.log_prob(at), expected)
    torch.testing.assert_close(standard_normal(at), torch.distributions.Normal(0, 1).log_prob(at).sum(1))
