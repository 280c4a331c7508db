"""test_public.py compares ddim with diffusers."""

import torch

from flowdiff import registry
from flowdiff.testing import oracles


def test_is_euler():
    x = 5 * torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sigmas = [5.0, 1.0, 0.1, 0.0]
    euler, ddim = (registry.create("sampler", name)(oracles.two_by_two(), x, sigmas) for name in ("euler", "ddim"))
    assert torch.equal(euler, ddim)
