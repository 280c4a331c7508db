"""The default flow's parts: its linear maps are what they say, and it starts as the identity."""

import warnings

import pytest
import torch

from flowdiff import registry
from flowdiff.conditioning import Conditioning
from flowdiff.flows.linear_activation import PLU, Householder, Rotation

MAPS = [Rotation, PLU, Householder]
NO_CONDITION = Conditioning(torch.zeros(1, 1))


def perturbed(chain):
    generator = torch.Generator().manual_seed(0)
    for parameter in torch.nn.ModuleList(chain).parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return chain


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("dim", [1, 2, 5, 8])
def test_chains_start_as_the_identity(kind, dim):
    torch.manual_seed(0)
    x = torch.randn(4, dim, dtype=torch.float64)
    z = x
    for map_ in kind.chain(dim, 3):
        z, logdet = map_.double()(z, NO_CONDITION)
        assert not logdet.any()
    assert torch.allclose(z, x, atol=1e-12)


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("dim", [1, 2, 5, 8])
def test_log_determinant_and_inverse_far_from_the_start(kind, dim):
    torch.manual_seed(0)
    x = torch.randn(4, dim, dtype=torch.float64)
    for map_ in perturbed([m.double() for m in kind.chain(dim, 2)]):
        W = map_.matrix()
        if dim > 1:
            assert (W - torch.eye(dim)).abs().max() > 0.1  # really far
        z, logdet = map_(x, NO_CONDITION)
        assert torch.allclose(z, x @ W.T)
        assert torch.allclose(logdet, torch.linalg.slogdet(W).logabsdet.expand(4), atol=1e-10)
        back, logdet_back = map_.inverse(z, NO_CONDITION)
        assert torch.allclose(back, x, atol=1e-10)
        assert torch.allclose(logdet + logdet_back, torch.zeros(4, dtype=torch.float64))


@pytest.mark.parametrize("kind", [Rotation, Householder])
def test_orthogonal_maps_are_orthogonal_in_float32(kind):
    torch.manual_seed(0)
    (map_,) = perturbed(kind.chain(64, 1))
    W = map_.matrix()
    assert (W @ W.T - torch.eye(64)).abs().max() < 2e-5  # 64 products at eps = 1.2e-7


def test_householder_equals_the_product_of_its_reflections():
    torch.manual_seed(0)
    (map_,) = perturbed([m.double() for m in Householder.chain(6, 1)])
    product = torch.eye(6, dtype=torch.float64)
    for v in map_.vectors:
        product = product @ (torch.eye(6, dtype=torch.float64) - 2 * torch.outer(v, v) / (v @ v))
    assert torch.allclose(map_.matrix(), product, atol=1e-12)


@pytest.mark.parametrize("activation", registry.names("activation"))
@pytest.mark.parametrize("linear", ["rotation", "plu", "householder"])
def test_starts_as_the_identity_whatever_the_condition(activation, linear):
    torch.manual_seed(0)
    flow = registry.build(
        "flow",
        "linear_activation",
        shape=(1, 3, 3),
        embed_dim=4,
        activation=registry.build("activation", activation),
        linear=linear,
        n_flows=2,
    )
    if activation == "leakyrelu":
        warnings.filterwarnings("ignore", "activation=leakyrelu")
    x = torch.randn(5, 1, 3, 3)
    z, logdet = flow(x, Conditioning(torch.randn(5, 4)))
    assert torch.allclose(z, x, atol=1e-5)  # float32; householder's solve leaves 1e-6
    assert logdet.abs().max() < 1e-5


def test_n_flows_is_the_number_of_layers():
    flows = [
        registry.build("flow", "linear_activation", shape=(4,), embed_dim=4, activation=None, n_flows=n) for n in (1, 2)
    ]
    sizes = [sum(p.numel() for p in flow.parameters()) for flow in flows]
    assert sizes[1] - sizes[0] == 4 * 4 + (4 + 1) * 16  # one rotation and one steering layer more
