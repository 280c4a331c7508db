"""CountCalls changes nothing but its counters."""

import torch

from flowdiff.models.conditioning import Conditioning
from flowdiff.testing import oracles
from flowdiff.testing.count_calls import CountCalls


def test_passes_everything_on():
    mixture = oracles.two_by_two()
    counted = CountCalls(mixture)
    x, sigma = torch.ones(3, 2), torch.ones(3)
    cond = Conditioning(torch.eye(4)[:3])
    assert torch.equal(counted(x, sigma, cond), mixture(x, sigma, cond))
    assert counted.network is mixture.network
    assert (counted.calls, counted.rows) == (1, 3)
