"""test_public.py compares ddpm with diffusers."""

import torch

from flowdiff import registry
from flowdiff.testing import oracles

MIXTURE = oracles.two_by_two()


def test_is_ancestral_at_eta_one():
    x = 5 * torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigmas = [5.0, 1.0, 0.1, 0.0]
    samplers = registry.create("sampler", "ddpm"), registry.create("sampler", "ancestral", eta=1.0)
    got, expected = (s(MIXTURE, x, sigmas, generator=torch.Generator().manual_seed(2)) for s in samplers)
    assert torch.equal(got, expected)
