"""Every registered network with random parameters obeys the laws of networks, in each of its conditioning modes."""

import pytest
import torch
from flow_cases import make_flow

from flowdiff import registry
from flowdiff.testing import check_network

UNET = {"channels": [8, 8], "attention": [False, True], "norm_groups": 4}
VAE = {"channels": [4, 8], "norm_groups": 2, "latent_dim": 5}
# (name, shape, cond_dim, token_dim, settings)
CASES = [
    *[
        ("mlp", shape, cond_dim, token_dim, {"width": 32})
        for shape in [(2,), (1, 8, 8)]
        for cond_dim, token_dim in [(0, 0), (5, 0), (5, 3)]
    ],
    *[("unet", (1, 8, 8), cond_dim, token_dim, UNET) for cond_dim, token_dim in [(0, 0), (5, 0), (5, 3), (0, 3)]],
    *[("unet", shape, cond_dim, 0, UNET) for shape in [(3, 8, 12), (1, 28, 28)] for cond_dim in (0, 5)],
    ("classifier", (2,), 4, 0, {"width": 32, "depth": 1, "embed_dim": 16}),
    *[("vae", (1, 8, 12), 0, 0, {**VAE, "reconstruction": law}) for law in ("mse", "l1", "bce")],
    *[("score_flow", (2,), cond_dim, token_dim, {"embed_dim": 8}) for cond_dim, token_dim in [(0, 0), (3, 3)]],
]


@pytest.mark.parametrize(("name", "shape", "cond_dim", "token_dim", "settings"), CASES, ids=str)
def test_laws(name, shape, cond_dim, token_dim, settings):
    torch.manual_seed(0)
    runtime = {
        "shape": shape,
        "cond_dim": cond_dim,
        "token_dim": token_dim,
        "num_classes": cond_dim,
        "activation": registry.create("activation", "swish"),
        "whitening": registry.create("whitening", "isotropic", shape=shape),
        "flow": make_flow(("realnvp", {}), (2,), 8, token_dim=token_dim),
    }
    network = registry.create("network", name, **runtime, **settings)
    check_network(network, shape, cond_dim=cond_dim, token_dim=token_dim)


def test_every_network_has_a_case():
    assert {name for name, *_ in CASES} == {*registry.names("network")} - {"clip"}  # it has no D; see test_clip.py
