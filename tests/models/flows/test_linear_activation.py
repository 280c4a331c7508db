"""linear_activation starts as the identity with every map, and refuses maps that would not fit in memory."""

import re
import warnings

import pytest
import torch
from small_models import flow_of

from flowdiff import registry
from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioning import Conditioning

LATENT = (4, 64, 64)  # shape of a Stable Diffusion latent of 512×512 pixels


def make(shape=(1, 3, 3), act="softplus", **settings):
    return flow_of("linear_activation", shape, act=act, **settings)


@pytest.mark.parametrize("activation", registry.names("activation"))
@pytest.mark.parametrize("linear", ["rotation", "plu", "householder", "kronecker"])
def test_starts_as_the_identity_for_every_condition(activation, linear):
    flow = make(act=activation, linear=linear, n_flows=2)
    if activation == "leakyrelu":
        warnings.filterwarnings("ignore", "activation=leakyrelu")
    x = torch.randn(5, 1, 3, 3)
    z, logdet = flow(x, Conditioning(torch.randn(5, 4)))
    assert torch.allclose(z, x, atol=1e-5)  # float32; householder's solve leaves 1e-6
    assert logdet.abs().max() < 1e-5


@pytest.mark.parametrize("settings", [{"linear": "kronecker"}, {"linear": "householder", "reflections": 4}], ids=str)
def test_a_large_latent_is_recovered_by_the_inverse(settings):
    flow = make(LATENT, n_flows=2, **settings)
    with torch.no_grad():
        for p in flow.parameters():
            p += 0.3 * torch.randn_like(p) / p.shape[-1] ** 0.5
        x, cond = torch.randn(2, *LATENT), Conditioning(torch.randn(2, 4))
        z, logdet = flow(x, cond)
        back, inverse_logdet = flow.inverse(z, cond)
    assert (z - x).abs().mean() > 0.1
    torch.testing.assert_close(back, x, rtol=0, atol=1e-3)  # rounding, 1.2e-7, with slopes from 0.05 to 1.95
    torch.testing.assert_close(inverse_logdet, -logdet, rtol=1e-4, atol=0.1)  # sums of 16,384 numbers of order one


@pytest.mark.parametrize(("linear", "held"), [("rotation", 8), ("plu", 12), ("householder", 6)])
def test_dense_maps_of_a_large_latent_are_refused_before_they_are_built(linear, held):
    """held: in GiB; 16,384² numbers of four bytes are 1 GiB. Dense maps of 32×32 colour images are allowed."""
    with torch.device("meta"):  # allocates no memory
        assert make((3, 32, 32), linear=linear).flow is not None
    with pytest.raises(ConfigurationError) as error:
        make(LATENT, linear=linear)
    text = str(error.value)
    assert f"flow.linear={linear} for samples of shape (4, 64, 64), 16,384 dimensions, holds {held} GiB" in text
    assert "1 GiB is allowed" in text
    others = re.findall(r"flow\.linear=.*?(?= or |\.$)", text.partition("take ")[2])
    assert len(others) == 2
    for words in others:  # the recommended settings are accepted
        settings = dict(word.removeprefix("flow.").split("=") for word in words.split())
        own = {"reflections": int(settings["reflections"])} if "reflections" in settings else {}
        with torch.device("meta"):
            make(LATENT, linear=settings["linear"], **own)
