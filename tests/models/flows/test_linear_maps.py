"""The linear maps equal their formulas, and inverse and log-determinant are right, at the start and far from it."""

import math

import pytest
import torch

from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.linear_maps import (
    PLU,
    TRAINING_COPIES,
    Householder,
    Kronecker,
    LinearMap,
    Rotation,
    rotation_axes,
)

MAPS = [(Rotation, {}), (PLU, {}), (Householder, {}), (Householder, {"reflections": 2}), (Kronecker, {})]
EVERY_MAP = pytest.mark.parametrize(("kind", "settings"), MAPS, ids=["rotation", "plu", "full", "few", "kronecker"])
EVERY_SHAPE = pytest.mark.parametrize("shape", [(1,), (2,), (5,), (8,), (2, 3, 2), (1, 1, 1)], ids=str)
NO_CONDITION = Conditioning(torch.zeros(1, 1))


def perturbed(chain):
    generator = torch.Generator().manual_seed(0)
    for parameter in torch.nn.ModuleList(chain).parameters():
        parameter.data += 0.5 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
    return chain


def matrix(map_: LinearMap, dim: int) -> torch.Tensor:
    """W, column by column."""
    return map_(torch.eye(dim, dtype=next(iter(map_.parameters()), torch.zeros(())).dtype), NO_CONDITION)[0].T


@EVERY_MAP
@EVERY_SHAPE
def test_chains_start_as_the_identity(kind, settings, shape):
    torch.manual_seed(0)
    x = torch.randn(4, math.prod(shape), dtype=torch.float64)
    z = x
    for map_ in kind.chain(shape, 3, **settings):
        z, logdet = map_.double()(z, NO_CONDITION)
        assert not logdet.any()
    torch.testing.assert_close(z, x, rtol=0, atol=1e-12)


@EVERY_MAP
@EVERY_SHAPE
def test_log_determinant_and_inverse_far_from_the_start(kind, settings, shape):
    torch.manual_seed(0)
    dim = math.prod(shape)
    x = torch.randn(4, dim, dtype=torch.float64)
    for map_ in perturbed([m.double() for m in kind.chain(shape, 2, **settings)]):
        z, logdet = map_(x, NO_CONDITION)
        W = matrix(map_, dim).double()
        if dim > 1:
            assert (W - torch.eye(dim)).abs().max() > 0.1  # far from the identity
        torch.testing.assert_close(z, x @ W.T, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(logdet, torch.linalg.slogdet(W).logabsdet.expand(4), rtol=1e-10, atol=1e-10)
        back, logdet_back = map_.inverse(z, NO_CONDITION)
        torch.testing.assert_close(back, x, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(logdet_back, -logdet, rtol=1e-10, atol=1e-10)


@EVERY_MAP
def test_the_matrix_equals_its_formula(kind, settings):
    """W computed from the parameters by its formula."""
    torch.manual_seed(0)
    shape, dim, eye = (2, 1, 3), 6, torch.eye(6, dtype=torch.float64)
    (map_, *_) = perturbed([m.double() for m in kind.chain(shape, 1, **settings)])
    expected = {Rotation: cayley, PLU: plu, Householder: reflections, Kronecker: kronecker}[kind](map_)
    torch.testing.assert_close(matrix(map_, dim), expected, rtol=0, atol=1e-12)
    if kind is not PLU:
        torch.testing.assert_close(expected @ expected.T, eye, rtol=0, atol=1e-12)
    if settings:
        assert torch.linalg.matrix_rank(expected - eye) == 2


def cayley(map_: Rotation) -> torch.Tensor:
    A = map_.weight.tril(-1) - map_.weight.tril(-1).T
    eye = torch.eye(len(A), dtype=A.dtype)
    return torch.linalg.inv(eye + A) @ (eye - A)


def plu(map_: PLU) -> torch.Tensor:
    eye = torch.eye(len(map_.permutation), dtype=torch.float64)
    L, U = map_.lower.tril(-1) + eye, map_.upper.triu(1) + map_.log_diagonal.exp().diag()
    return eye[map_.permutation] @ L @ U


def reflections(map_: Householder) -> torch.Tensor:
    product = torch.eye(map_.vectors.shape[1], dtype=torch.float64)
    for v in map_.vectors:
        product = product - 2 * (product @ v).outer(v) / (v @ v)
    return product


def kronecker(map_: Kronecker) -> torch.Tensor:
    product = torch.eye(1, dtype=torch.float64)
    for turn in map_.turns:
        product = torch.kron(product, cayley(turn))
    return product


@pytest.mark.parametrize(
    ("shape", "expected"), [((4, 64, 64), (4, 64, 64)), ((1, 8, 8), (8, 8)), ((60,), (6, 10)), ((7,), (7,)), ((1,), ())]
)
def test_rotation_axes(shape, expected):
    assert rotation_axes(shape) == expected


@pytest.mark.parametrize(("kind", "settings"), [case for case in MAPS if case[0] is not PLU], ids=str)
def test_orthogonal_maps_are_orthogonal_in_float32(kind, settings):
    torch.manual_seed(0)
    (map_,) = perturbed(kind.chain((64,), 1, **settings))
    W = matrix(map_, 64)
    assert (W @ W.T - torch.eye(64)).abs().max() < 2e-5  # 64 products at eps = 1.2e-7


@EVERY_MAP
def test_numbers_in_training(kind, settings):
    """The copies of the parameters, and what autograd stores for 0 samples, which does not grow with the batch."""
    torch.manual_seed(0)
    shape = (4, 8, 8)
    (map_, *_) = kind.chain(shape, 1, **settings)
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t), t)[1], lambda t: t):
        map_(torch.randn(0, 256, requires_grad=True), NO_CONDITION)
    sizes = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() // 4 for t in kept if t.is_floating_point()}
    parameters = {p.untyped_storage().data_ptr(): p.numel() for p in map_.parameters()}
    exact = TRAINING_COPIES * sum(parameters.values()) + sum(size for at, size in sizes.items() if at not in parameters)
    assert kind.numbers_in_training(shape, **settings) == pytest.approx(exact, rel=0.02)  # diagonals are left out


@pytest.mark.parametrize(("kind", "settings"), [(Kronecker, {}), (Householder, {"reflections": 16})], ids=str)
def test_no_matrix_is_formed_for_many_dimensions(kind, settings):
    torch.manual_seed(0)
    shape, dim = (4, 64, 64), 16_384
    (map_,) = kind.chain(shape, 1, **settings)
    map_ = perturbed([map_])[0]
    x = torch.randn(2, dim)
    largest = 0

    def record(t: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, t.numel())
        return t

    with torch.autograd.graph.saved_tensors_hooks(record, lambda t: t):
        z, _ = map_(x, NO_CONDITION)
    back, _ = map_.inverse(z, NO_CONDITION)
    assert largest <= 16 * dim
    assert (z - x).abs().mean() > 0.01
    torch.testing.assert_close(back, x, rtol=0, atol=1e-4)  # rounding, 1.2e-7, of sums over 16,384 numbers
