"""The causal transformer: it depends on all earlier tokens and no others, is the same token by token, and is smooth."""

import pytest
import torch
from flow_cases import perturb
from small_models import normal

from flowdiff import registry
from flowdiff.models.nn.transformer import Context, PastTransformer

B, T, WIDTH, EMBED, IN, OUT = 2, 5, 8, 4, 3, 2
INJECT = pytest.mark.parametrize("inject", ["film", "concat", "cross_attention"])
FUSED = pytest.mark.parametrize("fused", [True, False], ids=["fused", "explicit"])


def make(inject: str = "film", far: bool = True, checkpoint: bool = False) -> PastTransformer:
    torch.manual_seed(0)
    act = registry.create("activation", "swish")
    net = PastTransformer(T, IN, OUT, WIDTH, 2, 2, EMBED, act, inject, checkpoint).double()
    return perturb(net) if far else net


def inputs(inject: str):
    """u, e, and a context with masked tokens."""
    u, e, tokens = normal((B, T, IN), (B, EMBED), (B, 3, WIDTH))
    mask = torch.tensor([[True, True, False], [True, False, False]])
    return u, e, None if inject == "film" else Context(tokens, mask)


@INJECT
@FUSED
def test_outputs_depend_on_exactly_the_earlier_tokens_and_are_the_same_token_by_token(inject, fused):
    net, (u, e, context) = make(inject), inputs(inject)
    output = net(u, e, context, fused)
    reader = net.reader(e, context, fused)
    by_token = torch.stack([reader.first(B), *(reader.after(u[:, i]) for i in range(T - 1))], 1)
    torch.testing.assert_close(by_token, output, rtol=1e-12, atol=1e-12)
    J = torch.autograd.functional.jacobian(lambda u: net(u, e, context, fused), u)  # (B, T, OUT, B, T, IN)
    reach = J.abs().amax((2, 5))  # (B, T, B, T)
    for b in range(B):
        assert not reach[b, :, 1 - b].any()  # samples are independent
        past = torch.ones(T, T, dtype=torch.bool).tril(-1)
        assert not reach[b, :, b][~past].any()
        assert (reach[b, :, b][past] > 1e-6).all()


@INJECT
def test_zero_at_the_start_then_every_output_depends_on_the_embedding_and_the_first_on_the_start_token(inject):
    net, (u, e, context) = make(inject, far=False), inputs(inject)
    assert not net(u, e, context, False).any()
    output = perturb(net)(u, e, context, False)
    assert ((net(u, -e, context, False) - output).abs().amax(2) > 1e-2).all()
    output[:, 0].sum().backward()
    assert net.start.grad.abs().max() > 1e-3
    assert not net.inner.weight.grad.any()  # no token of u is used


@pytest.mark.parametrize("inject", ["concat", "cross_attention"])
def test_only_context_tokens_that_count_change_the_output(inject):
    net, (u, e, context) = make(inject), inputs(inject)
    output = net(u, e, context, False)
    other = torch.where(context.mask[..., None], context.tokens, 1e3)
    assert torch.equal(net(u, e, Context(other, context.mask), False), output)
    seen = net(u, e, Context(context.tokens.flip(-1), context.mask), False)
    assert ((seen - output).abs().amax(2) > 1e-4).all()  # every output depends on the context, even the first


@INJECT
def test_derivatives(inject):
    net, (u, e, context) = make(inject), inputs(inject)
    u = u.requires_grad_()
    assert torch.autograd.gradcheck(lambda u: net(u, e, context, False), u)
    assert torch.autograd.gradgradcheck(lambda u: net(u, e, context, False), u)


def test_derivatives_are_finite_if_a_normalisation_gets_zero_variance():
    """If all tokens are embedded to a constant vector, the variance in LN is zero."""
    net, (u, e, _) = make(), inputs("film")
    with torch.no_grad():
        for p in (net.inner.weight, net.inner.bias, net.start, net.positions):
            p.zero_()
    u = u.requires_grad_()
    (slope,) = torch.autograd.grad(net(u, e, None, False).sum(), u, create_graph=True)
    grads = torch.autograd.grad(slope.square().sum() + slope.sum(), list(net.parameters()), allow_unused=True)
    assert all(g.isfinite().all() for g in grads if g is not None)


@INJECT
@pytest.mark.parametrize("order", [1, 2])
def test_checkpointing_changes_nothing(inject, order):
    """Outputs, gradients of a loss, and gradients of a loss of gradients stay the same."""
    u, e, context = inputs(inject)
    found = []
    for checkpoint in (False, True):
        net, x = make(inject, checkpoint=checkpoint), u.clone().requires_grad_()
        output = net(x, e, context, False)
        loss = output.square().sum()
        if order == 2:
            (slope,) = torch.autograd.grad(loss, x, create_graph=True)
            loss = slope.square().sum()
        loss.backward()
        found.append([output.detach(), x.grad, *(p.grad for p in net.parameters())])
    for plain, saved in zip(*found, strict=True):
        torch.testing.assert_close(saved, plain, rtol=1e-12, atol=1e-12)


def test_outputs_keep_their_precision_under_autocast():
    net, (u, e, _) = make().float(), inputs("film")
    u, e = u.float(), e.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = net(u, e, None, True)
    assert output.dtype == torch.float32
    # a few roundings in bfloat16, 4e-3 each
    torch.testing.assert_close(output, net(u, e, None, True), rtol=0.1, atol=0.1)
