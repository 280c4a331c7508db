"""Glow: when actnorm is initialised, the 1×1 convolutions, the start on whitened data."""

import copy

import pytest
import torch
from flow_cases import perturb
from small_models import flow_of, normal

from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.base import Flow
from flowdiff.models.flows.glow import ActNorm, PerPixel
from flowdiff.models.flows.linear_maps import PLU
from flowdiff.testing.inputs import condition, repeated

EMBED = 4


def make(shape=(1, 4, 4), **settings) -> Flow:
    return flow_of("glow", shape, EMBED, **{"hidden": 8, "n_flows": 2, **settings})


def inputs(n: int, shape=(1, 4, 4), scale: float = 1.0, shift: float = 0.0) -> tuple[torch.Tensor, Conditioning]:
    x, e = normal((n, *shape), (n, EMBED), dtype=torch.float32)
    return shift + scale * x, Conditioning(e)


def norms(flow: Flow) -> list[ActNorm]:
    return [m for m in flow.modules() if isinstance(m, ActNorm)]


def test_the_first_training_batch_standardises_channels_that_are_not_standard():
    """The first actnorm makes mean 0 and deviation 1, later ones nearly so; the next batch changes nothing."""
    flow = make(levels=2).train()
    seen: dict[ActNorm, torch.Tensor] = {}
    for norm in norms(flow):
        norm.register_forward_hook(lambda module, _, out: seen.update({module: out[0]}))
    flow(*inputs(64, scale=30.0, shift=-7.0))
    assert len(seen) == 4
    first, *rest = seen.values()
    torch.testing.assert_close(first.mean((0, 2, 3)), torch.zeros(4), rtol=0, atol=1e-5)
    torch.testing.assert_close(first.std((0, 2, 3)), torch.ones(4), rtol=0, atol=0.01)  # n or n − 1
    for z in rest:
        assert (z.mean((0, 2, 3)).abs() < 0.3).all()
        assert ((z.std((0, 2, 3)) - 1).abs() < 0.3).all()
    before = copy.deepcopy(flow.state_dict())
    flow(*inputs(64, scale=0.01))
    for key, value in flow.state_dict().items():
        assert torch.equal(value, before[key])


def test_only_a_training_batch_initialises_actnorm():
    """Evaluation, training mode without gradients and the inverse leave parameters and flag unchanged."""
    flow = make()
    start = copy.deepcopy(flow.state_dict())
    x, cond = inputs(8, scale=30.0)
    flow.eval()(x, cond)
    flow.train().inverse(x, cond)
    with torch.no_grad():
        flow(x, cond)
    assert all(torch.equal(v, start[k]) for k, v in flow.state_dict().items())
    assert not any(norm.initialised for norm in norms(flow))
    flow(x, cond)
    assert all(norm.initialised for norm in norms(flow))


def test_a_loaded_flow_is_not_initialised_again():
    """A loaded flow continues training without another initialisation, and evaluates like the saved one."""
    trained = make().train()
    trained(*inputs(32, scale=30.0))
    perturb(trained)
    loaded = make()
    loaded.load_state_dict(trained.state_dict())
    x, cond = inputs(32, scale=0.01, shift=3.0)
    torch.testing.assert_close(loaded.train()(x, cond), trained.eval()(x, cond), rtol=0, atol=0)
    assert all(torch.equal(v, trained.state_dict()[k]) for k, v in loaded.state_dict().items())


def test_initialisation_uses_the_batches_of_all_processes(monkeypatch):
    """One of two processes, with half of the batch, initialises like a single process with the whole batch."""
    x, cond = inputs(8, (2, 2, 2), scale=50.0, shift=9.0)
    alone, one_of_two = ActNorm(2, EMBED, 2.0).train(), ActNorm(2, EMBED, 2.0).train()
    alone(x, cond)
    mean = x.mean((0, 2, 3), keepdim=True)
    others = x[4:]
    sums = iter([others, (others - mean) ** 2])  # what the other process would contribute, in order

    def all_reduce(total):
        total += torch.cat([next(sums).sum((0, 2, 3)), torch.tensor([16.0])])

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "all_reduce", all_reduce)
    one_of_two(x[:4], Conditioning(cond.vector[:4]))
    for p, q in zip(one_of_two.parameters(), alone.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_a_whitened_first_batch_leaves_the_flow_the_identity():
    flow = make(levels=2).train()
    x, cond = inputs(64, scale=0.9, shift=-0.4)  # as the digits after isotropic whitening at a usual σ
    z, logdet = flow(x, cond)
    assert all(norm.initialised for norm in norms(flow))
    torch.testing.assert_close(z, x, rtol=0, atol=1e-6)
    assert logdet.abs().max() < 1e-6


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:FutureWarning")  # raised by torch when forward mode is loaded
def test_initialisation_is_not_differentiated():
    """The first training batch may have a graph and a tangent, and need second derivatives."""
    norm = ActNorm(2, EMBED, 2.0).train()
    x, cond = inputs(8, (2, 2, 2), scale=50.0)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x.requires_grad_(), torch.ones_like(x))
        z, _ = norm(dual, cond)
        tangent = torch.autograd.forward_ad.unpack_dual(z).tangent
    scale = norm.log_scale.detach().exp().view(1, 2, 1, 1)
    torch.testing.assert_close(tangent, scale.expand_as(tangent))


def test_a_constant_channel_is_not_initialised_and_actnorm_depends_on_the_noise_level():
    norm = ActNorm(2, EMBED, 2.0).train()
    x, cond = inputs(8, (2, 2, 2), scale=50.0)
    x[:, 1] = 5.0
    z, logdet = norm(x, cond)
    assert float(z[:, 0].detach().std()) == pytest.approx(1.0, abs=0.05)
    assert torch.equal(z[:, 1], x[:, 1])
    assert logdet.isfinite().all()
    z, logdet = perturb(norm).eval()(x, cond)
    assert (norm(x, cond.with_vector(cond.vector.flip(0)))[0] - z).abs().min() > 0
    assert logdet[0] != logdet[1]


def test_a_1x1_convolution_is_the_matrix_at_every_pixel():
    torch.manual_seed(0)
    plu = perturb(PLU(4, torch.tensor([3, 2, 1, 0])).double())
    x, cond = torch.randn(2, 4, 3, 5, dtype=torch.float64), condition(2, EMBED)  # γ = 1 and ½
    z, logdet = PerPixel(plu)(x, cond)
    for i in (0, 1):
        W = plu(torch.eye(4, dtype=torch.float64), repeated(cond, i, 4))[0].T
        torch.testing.assert_close(z[i], torch.nn.functional.conv2d(x[i], W[:, :, None, None]))
        torch.testing.assert_close(logdet[i], 15 * torch.linalg.slogdet(W).logabsdet)
    torch.testing.assert_close(PerPixel(plu).inverse(z, cond)[0], x)


@pytest.mark.parametrize("n_flows", [1, 2])
def test_two_steps_transform_every_channel(n_flows):
    flow = perturb(make((1, 4, 4), levels=1, n_flows=n_flows)).eval()
    for module in flow.modules():  # leave only the couplings
        if isinstance(module, ActNorm | PLU):
            for p in module.parameters():
                torch.nn.init.zeros_(p)
    x, cond = inputs(4)
    moved = ((flow(x, cond)[0] - x).abs().amax(0) > 1e-6)[0]
    assert int(moved.sum()) == 8 * n_flows
