"""TarFlow: its tokens and their order, the three ways to compute its inverse, which attention kernel runs when."""

import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from flow_cases import perturb
from small_models import flow_of, normal, score_flow_of

from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.tarflow import Block, Patches

EMBED, TOKENS = 4, 3
SHAPE = (1, 4, 6)
INJECT = pytest.mark.parametrize("inject", ["film", "concat", "cross_attention"])
READS_TOKENS = pytest.mark.parametrize("inject", ["concat", "cross_attention"])
SMALL = {"hidden": 8, "heads": 2, "n_flows": 2, "n_layers": 1, "deep_layers": 2}


def make(shape=SHAPE, far: bool = True, **settings):
    flow = flow_of("tarflow", shape, EMBED, **{**SMALL, "patch": 2, **settings}).double()
    return perturb(flow) if far else flow


def inputs(n: int = 3, shape=SHAPE, tokens: bool = False) -> tuple[torch.Tensor, Conditioning]:
    x, e, words = normal((n, *shape), (n, EMBED), (n, 4, TOKENS))
    mask = torch.arange(4) < torch.arange(n)[:, None] + 1
    return x, Conditioning(e, words, mask) if tokens else Conditioning(e)


def score_flow(flow, shape=SHAPE, gate=True):
    return score_flow_of(flow, shape, embed_dim=EMBED, gate=gate).double()


# Tokens


@pytest.mark.parametrize(("shape", "patch"), [((3, 4, 6), 2), ((1, 4, 6), 1), ((6,), 2), ((5,), 1)])
def test_tokens_contain_the_whole_sample(shape, patch):
    patches = Patches(shape, patch)
    x = torch.arange(2 * math.prod(shape)).view(2, *shape)
    u = patches.split(x)
    assert u.shape == (2, patches.length, patches.width)
    assert torch.equal(patches.join(u), x)
    if shape == (3, 4, 6) and patch == 2:  # squares of the image
        assert torch.equal(u[0, 1], x[0, :, :2, 2:4].flatten())
        assert torch.equal(u[0, 3], x[0, :, 2:, :2].flatten())


@pytest.mark.parametrize(
    ("shape", "patch"),
    [((1, 8, 8), 2), ((1, 28, 28), 4), ((3, 32, 32), 8), ((3, 64, 64), 16), ((5,), 1), ((64,), 2), ((2,), 1)],
)
def test_the_smallest_patch_with_at_most_fifty_tokens(shape, patch):
    assert Patches(shape, None).patch == patch


# The map


def test_layers_and_direction_of_the_blocks_and_their_learned_start():
    flow, (x, cond) = make(n_flows=1), inputs()
    first = flow.patches.split(flow(x, cond)[0])[:, 0]
    assert ((first - flow.patches.split(x)[:, 0]).abs() > 1e-2).all()
    first.sum().backward()
    assert flow.blocks[0].net.start.grad.abs().min() > 1e-5
    flow = make(n_flows=3, n_layers=2, deep_layers=5)
    assert [len(block.net.layers) for block in flow.blocks] == [2, 2, 5]
    assert [block.reverse for block in flow.blocks] == [False, True, False]


@pytest.mark.parametrize("reverse", [False, True])
def test_jacobian_is_triangular_in_the_order_of_the_tokens(reverse):
    flow = make()
    block = flow.blocks[int(reverse)]
    x, cond = inputs(1)
    u = flow.patches.split(x)
    J = torch.autograd.functional.jacobian(lambda u: block(u, cond, None, False)[0], u)[0, :, :, 0]
    reach = J.abs().amax((1, 3))  # (T, T): how much token i of z depends on token j of x
    before = torch.ones_like(reach, dtype=torch.bool).tril(-1)
    before = before.T if reverse else before
    own = torch.eye(len(reach), dtype=torch.bool)
    assert not reach[~before & ~own].any()
    assert (reach[before] > 1e-6).all()
    within = J.diagonal(dim1=0, dim2=2).permute(2, 0, 1)  # (T, d, d): numbers of a token are independent
    assert torch.equal(within, torch.diag_embed(within.diagonal(dim1=1, dim2=2)))


@pytest.mark.parametrize("n_flows", [1, 3])
def test_log_scales_are_bounded_over_all_blocks(n_flows):
    """Nothing is scaled by more than e^scale_bound, for all outputs of the nets and any number of blocks."""
    bound = 1.5
    flow = make(n_flows=n_flows, scale_bound=bound)
    x, cond = inputs()
    d = flow.patches.width
    with torch.no_grad():
        for block in flow.blocks:
            block.net.outer.weight.zero_()
            block.net.outer.bias[:d] = -3 * bound / n_flows
    _, logdet = flow(x, cond)
    expected = torch.full_like(logdet, x[0].numel() * bound * math.tanh(3))
    torch.testing.assert_close(logdet, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("sigma", [0.002, 0.1, 10.0, 80.0])
def test_gradients_of_a_score_loss_stay_in_the_range_of_float32(sigma):
    """With every log-scale at the default bound, the sum of squares that gradient clipping computes is finite.

    The loss and its gradients grow like e^{4·scale_bound}; at twice the bound and without a gate the sum overflows at
    every σ.
    """

    def gradient_norm(gate: bool, **settings) -> torch.Tensor:
        flow = make((1, 8, 8), hidden=16, n_flows=4, patch=None, **settings)
        with torch.no_grad():
            for block in flow.blocks:
                block.net.outer.bias[: flow.patches.width] = -100.0
        model = score_flow(flow, (1, 8, 8), gate).float().train()
        generator = torch.Generator().manual_seed(3)
        x0, noise = torch.rand(8, 1, 8, 8, generator=generator), torch.randn(8, 1, 8, 8, generator=generator)
        D = x0 + sigma * noise + sigma**2 * model(x0 + sigma * noise, torch.full((8,), sigma))
        ((1 + sigma**-2) * (D - x0).square().mean()).backward()
        return torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])

    assert gradient_norm(True).isfinite()
    assert gradient_norm(False).isfinite()
    assert not gradient_norm(False, scale_bound=16.0).isfinite()


@READS_TOKENS
def test_the_mask_selects_the_condition_tokens(inject):
    flow = make(inject=inject, token_dim=TOKENS)
    x, cond = inputs(tokens=True)
    z, _ = flow(x, cond)
    hidden = torch.where(cond.mask[..., None], cond.tokens, 1e3)
    torch.testing.assert_close(flow(x, Conditioning(cond.vector, hidden, cond.mask))[0], z, rtol=1e-12, atol=1e-12)
    seen, _ = flow(x, Conditioning(cond.vector, -cond.tokens, cond.mask))
    assert ((seen - z).flatten(1).abs().amax(1) > 1e-3).all()
    nothing, _ = flow(x, Conditioning(cond.vector, cond.tokens, torch.zeros_like(cond.mask)))
    assert nothing.isfinite().all()
    without, _ = flow(x, Conditioning(cond.vector))
    torch.testing.assert_close(without, nothing, rtol=1e-12, atol=1e-12)  # tokens may be left out
    everything = torch.ones_like(cond.mask)
    unmasked, masked = (flow(x, Conditioning(cond.vector, cond.tokens, mask))[0] for mask in (None, everything))
    assert torch.equal(unmasked, masked)


@pytest.mark.parametrize("token_dim", [0, TOKENS + 1])
def test_condition_tokens_that_do_not_fit_are_refused(token_dim):
    with pytest.raises(ValueError, match=f"token_dim={token_dim}"):
        make(token_dim=token_dim)(*inputs(tokens=True))


# The inverse


def naive(block: Block, z: torch.Tensor, cond: Conditioning, context) -> torch.Tensor:
    """The definition: the whole transformer for every token, given the tokens so far."""
    z = z.flip(1) if block.reverse else z
    x = torch.zeros_like(z)
    for i in range(z.shape[1]):
        a, b = block._scale_shift(block.net(x, cond.vector, context, False), cond)
        x[:, i] = z[:, i] * a[:, i].exp() + b[:, i]
    return x.flip(1) if block.reverse else x


@INJECT
@torch.no_grad()
def test_cache_and_jacobi_equal_the_naive_loop(inject):
    tolerance = 1e-9
    flow = make(inject=inject, token_dim=TOKENS, patch=1)
    z, cond = inputs(tokens=True)
    own, context = flow.condition(replace(cond, gate=torch.linspace(1, 0.3, len(z)).double()))
    u = flow.patches.split(z)
    for block in flow.blocks:
        expected = naive(block, u, own, context)
        found, logdet = block.inverse_sequential(u, own, context, True)
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)
        torch.testing.assert_close(logdet, -block(found, own, context, True)[1], rtol=1e-10, atol=1e-10)
        found, logdet = block.inverse_jacobi(u, own, context, tolerance)
        torch.testing.assert_close(found, expected, rtol=100 * tolerance, atol=100 * tolerance)
        torch.testing.assert_close(logdet, -block(found, own, context, True)[1], rtol=1e-7, atol=1e-7)
        sweeps = []  # with a tolerance below rounding it is exact after one sweep per token
        block.net.register_forward_hook(lambda *_, sweeps=sweeps: sweeps.append(1))
        found, _ = block.inverse_jacobi(u, own, context, 1e-300)
        assert len(sweeps) <= u.shape[1]
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@torch.no_grad()
def test_jacobi_stops_early_and_separately_for_each_sample():
    """A flow near the identity needs few sweeps, and samples do not depend on their batch."""
    flow = make(far=False, inverse="jacobi", tolerance=1e-6, patch=1)
    for p in flow.parameters():
        p.add_(0.03 * torch.randn(p.shape, generator=torch.Generator().manual_seed(2)).double())
    z, cond = inputs()
    sizes = []
    flow.blocks[0].net.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    together, logdet = flow.inverse(z, cond)
    assert len(sizes) < flow.patches.length / 2
    for i in range(len(z)):
        alone, alone_logdet = flow.inverse(z[i : i + 1], Conditioning(cond.vector[i : i + 1]))
        torch.testing.assert_close(alone, together[i : i + 1], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(alone_logdet, logdet[i : i + 1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("inverse", "calls"), [("cache", 0), ("jacobi", 1), ("auto", 0)])
def test_the_setting_inverse_chooses_the_method(inverse, calls, monkeypatch):
    flow, sweeps, jacobi = make(inverse=inverse, n_flows=1), [], Block.inverse_jacobi
    monkeypatch.setattr(Block, "inverse_jacobi", lambda *args: sweeps.append(1) or jacobi(*args))
    z, cond = inputs()
    with torch.no_grad():
        x, _ = flow.inverse(z, cond)
    assert len(sweeps) == calls
    graphed, _ = flow.inverse(z, cond)
    assert len(sweeps) == calls  # with autograd on the inverse is sequential
    assert graphed.requires_grad
    torch.testing.assert_close(graphed, x, rtol=1e-4, atol=1e-4)  # jacobi's tolerance


# The attention kernel


@pytest.mark.parametrize(
    ("what", "training", "fused"),
    [("nll", True, True), ("score", True, False), ("score", False, True), ("log_prob of a leaf", False, False)],
)
def test_attention_is_fused_unless_a_second_derivative_may_follow(what, training, fused, monkeypatch):
    calls, kernel = [], F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda *a, **k: calls.append(1) or kernel(*a, **k))
    model = score_flow(make()).train(training)
    x, sigma = inputs()[0], torch.tensor([0.01, 0.5, 10.0], dtype=torch.float64)
    if what == "nll":
        model.log_prob(x, sigma).sum().backward()
    elif what == "score":
        score = model(x, sigma)
        if training:
            score.square().sum().backward()
    else:
        x = x.requires_grad_()
        (score,) = torch.autograd.grad(model.log_prob(x, sigma).sum(), x, create_graph=True)
        score.square().sum().backward()
    assert bool(calls) == fused
    explicit, fast = model.train()(x, sigma), model.eval()(x, sigma)
    torch.testing.assert_close(fast, explicit.detach(), rtol=1e-10, atol=1e-10)
