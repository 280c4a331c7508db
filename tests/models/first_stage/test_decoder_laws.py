"""Every law of the decoder is a density of a pixel, and `image` is its mean."""

import pytest
import torch

from flowdiff.models.autoencoder.decoder_laws import GAIN, LAWS, GaussianLaw

# On both sides of |a| = 0.02, where the formulas switch to a series.
A = torch.tensor([-30.0, -2.0, -0.021, -0.019, 0.0, 0.5, 7.0], dtype=torch.float64)


def made(name):
    law = LAWS[name]().double()
    for p in law.parameters():
        p.data.fill_(-0.1)  # s = e^(−1)
    return law


def grid(name):
    """Points and weight of the midpoint rule on an interval that contains all mass of the law."""
    if name == "bce":
        edges = torch.linspace(-1, 1, 20_001, dtype=torch.float64)
    else:
        edges = torch.linspace(-50, 30, 800_001, dtype=torch.float64)
    return (edges[1:] + edges[:-1]) / 2, edges[1] - edges[0]


@pytest.mark.parametrize("name", LAWS)
def test_it_is_a_density_and_image_is_its_mean(name):
    law = made(name)
    x, width = grid(name)
    for a in A:
        density = law.log_prob(x[:, None], a.expand(len(x), 1)).exp()
        # The error of the midpoint rule, the sum of width²·p″/24, is 1e-6 for the steepest law here.
        assert (density.sum() * width).item() == pytest.approx(1, abs=1e-5)
        assert (x * density).sum().item() * width.item() == pytest.approx(law.image(a).item(), abs=1e-4)


@pytest.mark.parametrize("name", LAWS)
def test_its_gradient_is_correct_and_finite(name):
    law = made(name)
    x = torch.full((len(A), 1), 0.3, dtype=torch.float64)
    at = A[:, None].clone().requires_grad_(True)
    assert torch.autograd.gradcheck(lambda a: law.log_prob(x, a), at)
    huge = torch.tensor([[-200.0], [0.0], [200.0]], requires_grad=True)
    law.float().log_prob(x[:3].float(), huge).sum().backward()
    assert bool(huge.grad.isfinite().all())


def test_the_fitted_scale_is_the_error_and_a_stationary_point():
    generator = torch.Generator().manual_seed(0)
    law, error = GaussianLaw(), 0.2 * torch.randn(400, 5, generator=generator)
    law.fit(error.square().mean().item())
    assert (GAIN * law.log_scale).exp().item() == pytest.approx(error.square().mean().sqrt().item())
    law.log_prob(torch.zeros(400, 5), error).sum().backward()
    assert abs(law.log_scale.grad.item()) < 1e-1  # a sum of 2,000 terms of size GAIN
