"""A number that is none is found: the step, the samples, the layer, forward and backward; and the weights are kept."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from flowdiff.models.conditioning import Conditioning
from flowdiff.training.divergence import Sentinel, first_not_finite, is_fused, locate, not_finite, take


class Forward(nn.Module):
    """NaN where the first coordinate is above 10."""

    def forward(self, h):
        return torch.where(h[:, :1] > 10, torch.nan, h)


class Backward(nn.Module):
    """The identity, by 0·√0 where the first coordinate is above 10, whose derivative is 0/0."""

    def forward(self, h):
        return h + 0 * torch.where(h[:, :1] > 10, 0 * h, 1 + h**2).sqrt()


class Second(nn.Module):
    """Softplus, whose derivative torch can take, but not its derivative's at exactly −100."""

    def forward(self, h):
        h = h + torch.where(h[:, :1] > 10, -100 - h, 0).detach()
        return torch.logaddexp(h, h.new_zeros(()))


class Weight(nn.Module):
    """The identity, by 0·√(0·w): the value is right, and the weight's derivative is 0/0."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.ones(()))

    def forward(self, h):
        return h + 0 * torch.sqrt(0 * self.w)


class Between(nn.Module):
    """Two layers with a NaN made between them."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, h):
        return self.last(self.first(h) / torch.where(h[:, :1] > 10, 0, 1) * 0)


def model(bad):
    """A linear layer that begins as the identity, so that the bad one sees the sample's own coordinates."""
    torch.manual_seed(0)
    first = nn.Linear(2, 2)
    nn.init.eye_(first.weight)
    nn.init.zeros_(first.bias)
    return nn.Sequential(first, nn.Sequential(bad, nn.Linear(2, 3)), nn.Tanh(), nn.Linear(3, 1))


X = torch.tensor([[0.3, -1.0], [-2.0, 0.1], [11.0, 1.0], [0.5, 0.2], [1.0, 1.0]])


def score_loss(net, x):
    """The square of a gradient in x: its own gradient is a second derivative."""
    x = x.clone().requires_grad_(True)
    (s,) = torch.autograd.grad(net(x).sum(), x, create_graph=True)
    return s.square().mean()


def value_loss(net, x):
    return net(x.clone().requires_grad_(True)).square().mean()


@pytest.mark.parametrize(
    ("bad", "loss", "where"),
    [
        (Forward, value_loss, "in 1.0 (Forward)"),
        (Forward, score_loss, "in 1.0 (Forward)"),
        (Backward, value_loss, "in the derivative of 1.0 (Backward)"),
        (Backward, score_loss, "in the derivative of 1.0 (Backward)"),
        (Second, score_loss, "in the second derivative of 1.0 (Second)"),
        (Between, value_loss, "in 1.0 (Between), before 1.0.last (Linear)"),
        (Weight, value_loss, "in the derivative of 1.0 (Weight)"),
    ],
)
def test_the_layer_and_the_sample_are_named(bad, loss, where):
    net = model(bad())
    found, rows = locate(net, lambda rows: loss(net, X[rows]), len(X))
    assert found == where
    assert rows.tolist() == [2] or (bad is Weight and len(rows) == 1)  # a bad weight concerns every sample


def test_what_only_the_whole_batch_does_is_left_to_the_whole_batch():
    net = model(nn.Identity())
    found, rows = locate(net, lambda rows: value_loss(net, X[rows]) + (torch.nan if len(rows) == 5 else 0), len(X))
    assert (found, rows.tolist()) == ("after all layers", [0, 1, 2, 3, 4])


def test_a_sound_step_is_not_accused():
    net = model(Second())
    assert locate(net, lambda rows: value_loss(net, X[rows]), len(X)) is None


def test_compiled_layers_are_looked_into_and_hooks_are_gone_afterwards():
    net = model(Forward())
    compiled = torch.compile(net.forward, backend="eager")
    assert first_not_finite(net, lambda: value_loss(compiled, X).backward()) == "in 1.0 (Forward)"
    assert not any(layer._forward_hooks or layer._forward_pre_hooks for layer in net.modules())
    assert not any(p._backward_hooks for p in net.parameters())


OPTIMIZERS = {
    "fused": lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    "foreach": lambda p: torch.optim.AdamW(p, lr=0.1, foreach=True),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
}


def step(sentinel, net, optimizer, number, x):
    optimizer.zero_grad()
    loss = value_loss(net, x)
    sentinel.add_loss(loss)
    loss.backward()
    norm = torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)  # spoils all gradients if one is bad
    sentinel.check_step(norm, number, number - 1, optimizer)
    optimizer.step()


@pytest.mark.parametrize("kind", OPTIMIZERS)
@pytest.mark.parametrize("bad", [Forward, Backward])
def test_the_weights_stay_those_of_the_first_bad_step(kind, bad):
    net = model(bad())
    optimizer, sentinel = OPTIMIZERS[kind](net.parameters()), Sentinel()
    assert is_fused(optimizer) == (kind == "fused")
    good = X[[0, 1, 3]]
    for number in (1, 2):
        step(sentinel, net, optimizer, number, good)
    assert sentinel.found() is None
    before = [p.detach().clone() for p in net.parameters()]
    step(sentinel, net, optimizer, 3, X)
    for number in (4, 5):  # nobody has looked yet
        step(sentinel, net, optimizer, number, good)
    found = sentinel.found()
    assert (found.step, found.batch_idx) == (3, 2)
    assert found.norm != found.norm
    assert (found.loss != found.loss) == (bad is Forward)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), before, strict=True))
    assert not_finite(net) is None


class NoWaiting(TorchDispatchMode):
    """Fails where a number would be brought from the device to the host."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default, "waits for the device"
        return func(*args, **(kwargs or {}))


def test_a_fused_optimiser_is_held_without_waiting():
    net = model(Forward())
    optimizer, sentinel = OPTIMIZERS["fused"](net.parameters()), Sentinel()
    norm = torch.tensor(torch.nan)
    with NoWaiting():
        for number in (1, 2):
            sentinel.add_loss(torch.ones(()))
            sentinel.check_step(norm, number, number, optimizer)
    assert sentinel.found().step == 1
    with pytest.raises(AssertionError, match="waits for the device"), NoWaiting():
        sentinel.found()


def test_losses_of_the_batches_of_a_step_are_judged_together():
    net = model(nn.Identity())
    optimizer, sentinel = OPTIMIZERS["fused"](net.parameters()), Sentinel()
    for loss in (torch.tensor(torch.inf), torch.zeros(())):
        sentinel.add_loss(loss)
    sentinel.check_step(torch.ones(()), 7, 13, optimizer)
    assert sentinel.found() == (7, 13, torch.inf, 1.0)


def test_a_weight_that_is_not_finite_is_named():
    net = model(nn.Identity())
    assert not_finite(net) is None
    with torch.no_grad():
        net[3].weight[0, 1] = torch.inf
    assert not_finite(net) == "3.weight"


def test_conditions_of_some_samples():
    cond = Conditioning(torch.arange(6.0).view(3, 2).requires_grad_(True), torch.ones(3, 4, 2))
    part = take(cond, torch.tensor([2, 0]))
    assert part.vector.tolist() == [[4, 5], [0, 1]]
    assert not part.vector.requires_grad
    assert part.tokens.shape == (2, 4, 2)
    assert part.mask is None
    assert take(None, torch.tensor([0])) is None
