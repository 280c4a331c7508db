"""The ways in which a condition enters a net: the output depends on it in each; tokens are masked and optional."""

import typing

import pytest
import torch
from flow_cases import perturb
from small_models import normal

from flowdiff import registry
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.nn.conv import ResidualConv
from flowdiff.models.nn.inject import CrossAttention, FiLM, Inject
from flowdiff.models.nn.mlp import ResidualMLP
from flowdiff.models.nn.residual import NetSettings

EMBED, TOKEN = 6, 5
INJECTS = pytest.mark.parametrize("inject", typing.get_args(Inject))
NETS = pytest.mark.parametrize(("kind", "grid"), [(ResidualMLP, ()), (ResidualConv, (2, 3))], ids=["mlp", "conv"])


def make(kind, inject: str, token_dim: int = TOKEN, far: bool = True):
    torch.manual_seed(0)
    net = kind(3, 4, NetSettings(10, 2, EMBED, registry.create("activation", "swish"), inject, token_dim)).double()
    return perturb(net) if far else net


def inputs(n: int, grid=()) -> tuple[torch.Tensor, Conditioning]:
    x, e, tokens = normal((n, 3, *grid), (n, EMBED), (n, 3, TOKEN))
    mask = torch.ones(n, 3, dtype=torch.bool)
    mask[0, 1:] = False
    return x, Conditioning(e, tokens, mask)


@pytest.mark.parametrize("grid", [(), (2, 3)], ids=str)
def test_film_starts_as_the_identity_and_then_scales_and_shifts(grid):
    u, e = torch.randn(2, 5, *grid), torch.randn(2, 3)
    film = FiLM(3, 5)
    assert torch.equal(film(u, e), u)
    perturb(film)
    scale, shift = (v.reshape(2, 5, *[1] * len(grid)) for v in film.scale_shift(e).split(5, dim=1))
    torch.testing.assert_close(film(u, e), u * (1 + scale) + shift)
    assert (film(u, e) - u).abs().min() > 0


@INJECTS
@NETS
def test_the_net_depends_on_noise_level_and_class_in_every_mode(kind, grid, inject):
    """At the start it is 0; then it depends on the vector, and each sample only on its own condition."""
    net, (x, cond) = make(kind, inject, far=False), inputs(2, grid)
    start = net(x, cond)
    assert not start.any()
    start.sum().backward()
    assert net.outer.weight.grad.abs().min() > 0
    for net, tokens in [(make(kind, inject), True), (make(kind, inject), False), (make(kind, inject, 0), False)]:
        x, cond = inputs(2, grid)
        cond = cond if tokens else Conditioning(cond.vector)
        y = net(x, cond)
        assert y.shape == (2, 4, *grid)
        assert (net(x, cond.with_vector(cond.vector.flip(0))) - y).abs().amax(1).min() > 0.01
        alone = net(x[1:], Conditioning(*(None if t is None else t[1:] for t in vars(cond).values())))
        torch.testing.assert_close(alone, y[1:], rtol=1e-12, atol=1e-12)


@INJECTS
@NETS
def test_only_cross_attention_reads_tokens_and_only_tokens_that_count(kind, grid, inject):
    net = make(kind, inject)
    x, cond = inputs(2, grid)
    y = net(x, cond)
    first, hidden = cond.tokens.clone(), cond.tokens.clone()
    first[0, 0] += 1
    hidden[0, 1:] = 1e4
    assert torch.equal(net(x, Conditioning(cond.vector, hidden, cond.mask)), y)
    changed = (net(x, Conditioning(cond.vector, first, cond.mask)) - y).abs().amax(1)
    assert (changed[0] > 1e-3).all() == (inject == "cross_attention")
    assert not changed[1].any()


def test_concatenation_is_one_linear_map_of_input_and_embedding():
    net = make(ResidualMLP, "concat")
    x, cond = inputs(2)
    seen = []
    net.blocks[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    net(x, cond)
    weight = torch.cat([net.inner.weight, net.entry.weight], dim=1)
    together = torch.cat([x, cond.vector], dim=1)
    torch.testing.assert_close(seen[0], together @ weight.T + net.inner.bias, rtol=1e-12, atol=1e-12)


def test_cross_attention_is_softmax_over_zero_vector_and_tokens():
    """Compared with the explicit sum, for a sample in which one of three tokens counts."""
    torch.manual_seed(0)
    block = perturb(CrossAttention(8, EMBED, TOKEN).double())
    _, cond = inputs(1)
    h = torch.randn(1, 8, dtype=torch.float64)
    q = block.query(h).view(4, 2)
    memory = torch.cat([block.from_vector(cond.vector), block.from_tokens(cond.tokens[:, 0])])
    memory = torch.cat([torch.zeros(1, 16, dtype=torch.float64), memory])
    k, v = (part.reshape(3, 4, 2) for part in memory.chunk(2, dim=1))  # 3 entries, 4 heads of 2
    weights = torch.einsum("hd,lhd->hl", q, k).div(2**0.5).softmax(1)
    expected = h + block.outer(torch.einsum("hl,lhd->hd", weights, v).reshape(1, 8))
    torch.testing.assert_close(block(h, cond), expected, rtol=1e-12, atol=1e-12)
    with torch.no_grad():  # the fused kernel
        torch.testing.assert_close(block(h, cond), expected, rtol=1e-9, atol=1e-9)


def test_tokens_of_another_width_are_refused():
    x, cond = inputs(2)
    with pytest.raises(ValueError, match=r"width 5 .*token_dim=0"):
        make(ResidualMLP, "cross_attention", 0)(x, cond)


@INJECTS
def test_derivatives_in_input_vector_and_tokens(inject):
    net = make(ResidualMLP, inject)
    x, cond = inputs(2)
    leaves = tuple(t.requires_grad_() for t in (x, cond.vector, cond.tokens)[: 3 if inject == "cross_attention" else 2])

    def function(x, e, tokens=cond.tokens):
        return net(x, Conditioning(e, tokens, cond.mask))

    assert torch.autograd.gradcheck(function, leaves)
    assert torch.autograd.gradgradcheck(function, leaves, fast_mode=True)
