"""The patchwise flow: its patches, which patch depends on which, and what it refuses."""

import pytest
import torch
from flow_cases import perturb
from small_models import flow_of, normal

from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.patchwise import patch_side

SHAPE, EMBED, TOKENS = (2, 4, 6), 6, 3  # 2×3 patches of side 2
CONTEXTS = pytest.mark.parametrize("context", ["causal", "none"])


def make(shape=SHAPE, **settings):
    """A narrow flow far from the identity, in float64."""
    settings = {"token_dim": TOKENS, "n_flows": 2, "hidden": 16, **settings}
    return perturb(flow_of("patchwise", shape, EMBED, **settings).double().eval())


def inputs(shape=SHAPE, n: int = 3):
    x, e, tokens = normal((n, *shape), (n, EMBED), (n, 2, TOKENS))
    return x, Conditioning(e, tokens, torch.tensor([[True, False], [True, True], [False, False]])[:n])


def patches(x: torch.Tensor) -> torch.Tensor:
    """(B, C, 4, 6) → (B, 6, C·4): squares of side 2, row by row, by explicit slicing."""
    rows = [x[:, :, i : i + 2, j : j + 2].flatten(1) for i in (0, 2) for j in (0, 2, 4)]
    return torch.stack(rows, 1)


@CONTEXTS
def test_which_patch_depends_on_which(context):
    """∂z_i/∂x_j is block triangular with context=causal and block diagonal with context=none."""
    flow, (x, cond) = make(context=context), inputs(n=1)
    J = torch.autograd.functional.jacobian(lambda v: patches(flow(v, cond)[0])[0], x)[..., 0, :, :, :]
    by_patch = patches(J.flatten(0, 1)).abs().amax(2).view(6, -1, 6).amax(1)  # (T of z, T of x)
    ones = torch.ones(6, 6, dtype=torch.bool)
    seen = ones.tril() if context == "causal" else torch.eye(6, dtype=torch.bool)
    assert (by_patch[seen] > 1e-4).all()
    assert (by_patch[~seen] == 0).all()


@CONTEXTS
def test_the_log_determinant_is_the_sum_over_patches(context):
    """It is the sum of the log-determinants of the diagonal blocks, as the chain rule says."""
    flow, (x, cond) = make(context=context), inputs(n=1)
    _, logdet = flow(x, cond)
    J = torch.autograd.functional.jacobian(lambda v: patches(flow(v, cond)[0])[0], x)[..., 0, :, :, :]
    blocks = patches(J.flatten(0, 1)).view(6, 8, 6, 8)
    terms = [torch.linalg.slogdet(blocks[i, :, i]).logabsdet for i in range(6)]
    assert min(abs(float(term)) for term in terms) > 1e-3
    torch.testing.assert_close(logdet[0], torch.stack(terms).sum(), rtol=1e-10, atol=1e-10)


@CONTEXTS
def test_patches_share_their_weights_and_depend_on_their_place(context):
    """Six equal patches become six different ones; without positions and context they stay equal."""
    flow, (x, cond) = make(context=context), inputs(n=1)
    x = x[:, :, :2, :2].repeat(1, 1, 2, 3)
    z = patches(flow(x, cond)[0])[0]
    assert (z[1:] - z[:-1]).abs().amax(1).min() > 1e-2
    with torch.no_grad():
        flow.position.zero_()
    z = patches(flow(x, cond)[0])[0]
    same = (z - z[:1]).abs().max() < 1e-12
    assert same == (context == "none")


@pytest.mark.parametrize("inject", ["film", "concat", "cross_attention"])
@CONTEXTS
def test_tokens_reach_every_patch_of_their_own_sample(inject, context):
    flow, (x, cond) = make(context=context, inject=inject), inputs()
    z, _ = flow(x, cond)
    other, _ = flow(x, Conditioning(cond.vector, cond.tokens + 1, cond.mask))
    moved = patches(other - z).abs().amax(2)  # (B, T)
    if inject == "cross_attention":
        assert (moved[:2] > 1e-4).all()
        assert (moved[2] == 0).all()  # the mask hides all of its tokens
    else:
        assert (moved == 0).all()


def test_the_causal_inverse_computes_each_patch_once():
    """Base → data costs one inverse per patch, and the transformer reads one token at a time."""
    flow, (z, cond) = make(), inputs()
    sizes, inner = [], flow.flow.inverse
    flow.flow.inverse = lambda z, cond: sizes.append(tuple(z.shape)) or inner(z, cond)
    with torch.no_grad():
        x, _ = flow.inverse(z, cond)
    assert sizes == [(3, 8)] * 6
    torch.testing.assert_close(flow(x, cond)[0], z, rtol=1e-10, atol=1e-10)


def test_a_single_patch_is_a_flow_of_the_whole_image():
    shape = (1, 4, 4)
    flow, (x, cond) = make(shape, patch=4), inputs(shape)
    assert flow.context is None
    J = torch.autograd.functional.jacobian(lambda v: flow(v, cond)[0].flatten(1).sum(0), x)
    assert torch.linalg.matrix_rank(J[:, 0].flatten(1)) == 16


@pytest.mark.parametrize(
    ("sides", "expected"), [((8, 8), 4), ((28, 28), 4), ((4, 4), 2), ((6, 9), 3), ((5, 7), 1), ((3, 3), 1), ((1, 1), 1)]
)
def test_the_default_patch(sides, expected):
    assert patch_side((1, *sides), None) == expected
