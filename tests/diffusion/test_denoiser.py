"""The denoiser: Tweedie's identity, and refusals of what a raw network cannot give."""

import pytest
import torch

from flowdiff import registry
from flowdiff.diffusion.denoiser import Denoiser
from flowdiff.errors import NotADensity
from flowdiff.models.networks.base import Network
from flowdiff.shapes import append_dims, mean_except_batch, sum_except_batch


class Half(Network):
    def forward(self, x, c_noise, cond=None):
        return 0.5 * x


@pytest.mark.parametrize("scaling", registry.names("scaling"))
def test_score_is_tweedie(scaling):
    denoiser = Denoiser(Half(), registry.create("scaling", scaling))
    x, sigma = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.tensor([0.1, 1.0, 10.0])
    s, D = denoiser.score(x, sigma), denoiser(x, sigma)
    assert torch.allclose(x + append_dims(sigma**2, 4) * s, D, atol=1e-5)
    denoiser.sigma_data.fill_(0.37)  # which travels with the weights
    other = Denoiser(Half(), registry.create("scaling", scaling))
    other.load_state_dict(denoiser.state_dict())
    assert other.sigma_data == denoiser.sigma_data


def test_raw_networks_have_no_density():
    denoiser = Denoiser(Half(), registry.create("scaling", "edm"))
    assert not denoiser.is_density
    for method in (denoiser.log_prob, denoiser.log_prob_and_denoised):
        with pytest.raises(NotADensity, match="network=Half does not have a log-density"):
            method(torch.zeros(1, 2), torch.ones(1))


def test_shapes():
    assert append_dims(torch.ones(3), 4).shape == (3, 1, 1, 1)
    assert torch.equal(sum_except_batch(torch.ones(2, 3, 4)), torch.tensor([12.0, 12.0]))
    assert torch.equal(mean_except_batch(torch.ones(2, 3, 4)), torch.ones(2))
