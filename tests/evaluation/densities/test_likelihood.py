import math

import pytest
import torch
from gaussian_flow import GaussianFlow

from flowdiff.errors import NotADensity
from flowdiff.evaluation.densities.likelihood import bits_per_dim
from flowdiff.noise import generators


@pytest.mark.parametrize("batch_size", [1, 7, 297])
def test_dequantised_images_fill_their_bins_independently_of_the_batch(digits, batch_size):
    x_raw = digits.test.x
    parts = [digits.dequantize(x_raw[i], generators(3, i.tolist())) for i in torch.arange(297).split(batch_size)]
    x = torch.cat(parts)
    assert torch.equal(x, digits.dequantize(x_raw, generators(3, range(297))))
    u = (x + 1) / 2 * digits.levels - x_raw
    # float32 at 17 levels rounds to about 1e-6 of a bin
    assert u.min() >= -1e-5
    assert u.max() <= 1 + 1e-5
    # 19,008 uniform numbers: standard error 0.0021 of the mean, 0.0019 of the variance's root
    assert u.mean().item() == pytest.approx(0.5, abs=0.01)
    assert u.std().item() == pytest.approx(math.sqrt(1 / 12), abs=0.01)


def test_uniform_density_on_the_cube_costs_log2_of_the_levels(digits, gaussian):
    class Uniform(GaussianFlow):
        def log_prob(self, x, sigma, cond=None):
            assert torch.equal(sigma, torch.full((len(x),), 0.02))
            return torch.full((len(x),), -x[0].numel() * math.log(2))  # 1/2 per dimension on [−1, 1]

    found = bits_per_dim(gaussian(network=Uniform), digits, 0.02, seed=0, batch_size=100)
    assert found == ("bpd", pytest.approx(math.log2(17), rel=1e-6), pytest.approx(0, abs=1e-6), 297)


def test_known_gaussian_in_nats(points, gaussian):
    sigma, model = 0.3, gaussian(mean=0.1, std=0.5)
    found = bits_per_dim(model, points, sigma, seed=0, batch_size=64)
    exact = torch.distributions.Normal(0.1, math.sqrt(0.5**2 + sigma**2))
    nats = -exact.log_prob(points.test.x.double()).mean(1)
    assert (found.metric, found.n) == ("nats_per_dim", 300)
    assert found.mean == pytest.approx(nats.mean().item(), rel=1e-6)
    assert found.standard_error == pytest.approx(nats.std().item() / math.sqrt(300), rel=1e-6)


def test_known_gaussian_in_bits(digits, gaussian):
    found = bits_per_dim(gaussian(std=0.9), digits, 0.1, seed=5, batch_size=50)
    # E over u of (x/s)² is (midpoint² + (2/17)²/12)/s²
    midpoints = digits.quantize(digits.to_model(digits.test.x)).double()
    variance = 0.9**2 + 0.1**2
    second_moment = (midpoints**2 + (2 / 17) ** 2 / 12).mean().item()
    nats = 0.5 * (second_moment / variance + math.log(2 * math.pi * variance))
    # From the drawn u: standard error about (2/17)·√(1/12)·|x|/s² /√19008 ≈ 2.5e-4 nats
    assert found.mean == pytest.approx(nats / math.log(2) + math.log2(17 / 2), abs=1.5e-3)
    assert found.metric == "bpd"
    again, other = (bits_per_dim(gaussian(std=0.9), digits, 0.1, seed=s, batch_size=b) for s, b in ((5, 7), (6, 50)))
    assert again.mean == pytest.approx(found.mean, rel=1e-6)
    assert other.mean != found.mean


def test_a_density_gets_every_label_and_a_raw_network_is_refused(tiny, gaussian, labels_as_vectors, raw):
    with pytest.raises(NotADensity):
        bits_per_dim(raw(), tiny, 0.1, seed=0, batch_size=25)
    bits_per_dim(gaussian(conditioner=labels_as_vectors), tiny, 0.1, seed=0, batch_size=25)
    assert torch.equal(torch.cat(labels_as_vectors.seen), tiny.test.label)
