"""Couplings keep one half, transform the other, and a pair of them transforms every entry."""

import math
from functools import partial

import pytest
import torch
from torch import nn

from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.base import Sequential
from flowdiff.models.flows.coupling import Affine, Coupling, Permutation, alternating_couplings, vector_couplings

NO_CONDITION = Conditioning(torch.zeros(1, 1))


class Constant(nn.Module):
    """A net with a constant output: parameter k of transformed entry i is (10·k + i)/10."""

    def __init__(self, kept: int, out: int):
        super().__init__()
        self.kept = kept
        moved = out // 2
        self.values = torch.cat([torch.arange(moved), 10 + torch.arange(moved)]).double() / 10

    def forward(self, x, cond):
        assert x.shape[1] == self.kept
        return self.values.reshape(1, -1, *[1] * (x.ndim - 2)).expand(len(x), -1, *x.shape[2:])


def zero(kept: int, out: int):
    """A net whose output is 0."""
    return lambda x, cond: x.new_zeros(len(x), out)


@pytest.mark.parametrize("grid", [(), (2, 3)], ids=str)
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("size", [2, 5])
def test_a_coupling_transforms_one_half_with_the_parameters_of_the_net(size, first, grid):
    """Entry i gets the log-scale i/10 and the shift 1 + i/10; for an odd size the second half is the larger one."""
    coupling = Coupling(size, first, Affine(100.0), Constant)
    x = torch.randn(4, size, *grid, dtype=torch.float64)
    z, logdet = coupling(x, NO_CONDITION)
    half = size // 2
    kept, moved = (slice(half, size), slice(0, half)) if first else (slice(0, half), slice(half, size))
    assert torch.equal(z[:, kept], x[:, kept])
    i = torch.arange(x[:, moved].shape[1]).double().reshape(1, -1, *[1] * len(grid)) / 10
    s = 100 * torch.tanh(i / 100)
    torch.testing.assert_close(z[:, moved], x[:, moved] * s.exp() + 1 + i)
    torch.testing.assert_close(logdet, s.sum().expand(4) * math.prod(grid))
    back, inverse_logdet = coupling.inverse(z, NO_CONDITION)
    torch.testing.assert_close(back, x)
    torch.testing.assert_close(inverse_logdet, -logdet)


def test_affine_is_the_identity_at_zero_and_bounded_with_a_gradient():
    """|s| < bound for every a, and the derivative is not 0, as it would be with a clamp."""
    transform, x = Affine(1.5), torch.randn(3, 4, dtype=torch.float64)
    y, log_slope = transform.forward(x, torch.zeros(3, 2, 4, dtype=torch.float64))
    assert torch.equal(y, x)
    assert not log_slope.any()
    params = torch.full((3, 2, 4), 6.0, dtype=torch.float64, requires_grad=True)
    y, log_slope = transform.forward(x, params)
    torch.testing.assert_close(log_slope, torch.full_like(x, 1.5 * math.tanh(4)))
    log_slope.sum().backward()
    torch.testing.assert_close(params.grad[:, 0], torch.full_like(x, 1 - math.tanh(4) ** 2), rtol=1e-10, atol=0)


@pytest.mark.parametrize("n_flows", [1, 2, 3, 5])
def test_alternating_couplings_restore_the_order_of_the_entries(n_flows):
    """With nets whose output is 0 they are the identity, whatever the permutations are."""
    shuffle = partial(torch.randperm, 7, generator=torch.Generator().manual_seed(0))
    flows = alternating_couplings(7, n_flows, lambda pair: shuffle(), Affine(1.0), zero)
    flow = Sequential(flows)
    x = torch.randn(3, 7)
    assert torch.equal(flow(x, NO_CONDITION)[0], x)
    assert torch.equal(flow.inverse(x, NO_CONDITION)[0], x)
    couplings = [f for f in flows if isinstance(f, Coupling)]
    assert [c.first for c in couplings] == [i % 2 == 1 for i in range(n_flows)]
    assert len(flows) - n_flows == (n_flows + 1) // 2 + 1  # one permutation per pair, and the last one


def test_permutation_and_its_inverse():
    permutation = Permutation(torch.tensor([2, 0, 1]))
    x = torch.arange(6.0).view(1, 3, 2)
    z, logdet = permutation(x, NO_CONDITION)
    assert torch.equal(z, x[:, [2, 0, 1]])
    assert not logdet.any()
    assert torch.equal(permutation.inverse(z, NO_CONDITION)[0], x)


def test_one_dimension_is_refused_with_the_name_of_the_flow():
    with pytest.raises(ConfigurationError, match=r"flow=mine .*shape \(1,\).*take flow=linear_activation"):
        vector_couplings("mine", (1,), 2, Affine(1.0), zero, False)
