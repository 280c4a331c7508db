"""The UNet: it tells noise levels apart and reads tokens; unsuitable images and settings are refused."""

import copy
from dataclasses import replace

import pytest
import torch
from flow_cases import perturb
from small_models import normal

from flowdiff import registry
from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.nn import control
from flowdiff.models.nn.control import HintPart

SMALL = {"channels": [8, 8], "attention": [False, True], "norm_groups": 4}
TOKENS = 3


def make(shape, cond_dim=0, **settings):
    torch.manual_seed(0)
    return registry.create("network", "unet", shape=shape, cond_dim=cond_dim, **settings)


@pytest.mark.parametrize("kind", ["log", "sigma"])
def test_noise_levels_are_distinguished(kind):
    """Neighbours on a grid of σ, five per decade, give different outputs for either kind of c_noise."""
    sigma = torch.logspace(-2.7, 1.9, 24)
    c_noise = 0.25 * sigma.log() if kind == "log" else sigma
    net = perturb(make((1, 8, 8), **SMALL)).eval()
    with torch.no_grad():
        F = net(torch.ones(len(sigma), 1, 8, 8), c_noise).flatten(1)
    moved = (F[1:] - F[:-1]).norm(dim=1) / F.norm(dim=1).mean()
    assert (moved > 1e-3).all()
    assert (moved < 2).all()


@pytest.mark.parametrize(("shape", "levels"), [((1, 8, 8), 4), ((1, 28, 28), 3), ((1, 7, 7), 1)], ids=str)
def test_the_largest_number_of_levels_works_and_one_more_is_refused(shape, levels):
    def of(n):
        return make(shape, channels=[8] * n, attention=[False] * n, norm_groups=4)

    assert of(levels)(torch.zeros(1, *shape), torch.zeros(1)).shape == (1, *shape)
    with pytest.raises(ConfigurationError, match=rf"multiples of {2**levels} .*at most {levels} "):
        of(levels + 1)


@pytest.mark.parametrize(
    ("shape", "settings", "message"),
    [
        ((2,), {}, r"\(2,\), which are not images"),
        ((1, 8, 8), {"attention": [True]}, "one true or false for each level"),
        ((1, 8, 8), {"channels": [8, 12], "norm_groups": 8}, "multiples of norm_groups"),
        ((1, 8, 8), {"channels": []}, "network.channels"),
        ((1, 8, 8), {"dropout": 1.0}, "network.dropout"),
        ((1, 8, 8), {"norm_groups": 0}, "network.norm_groups"),
        ((1, 8, 8), {"token_dim": 3, "attention": [False, False]}, "has no level that reads the condition's tokens"),
    ],
)
def test_unsuitable_shapes_and_settings_are_refused(shape, settings, message):
    with pytest.raises(ConfigurationError, match=message):
        make(shape, **settings)


def test_dropout_is_off_outside_training():
    net = perturb(make((1, 8, 8), **SMALL, dropout=0.5))
    x, c_noise = torch.ones(1, 1, 8, 8), torch.zeros(1)
    with torch.no_grad():
        assert not torch.equal(net(x, c_noise), net(x, c_noise))
        net.eval()
        assert torch.equal(net(x, c_noise), net(x, c_noise))


def words(cond_dim: int, n: int = 3) -> Conditioning:
    """n sequences of four tokens; the first i tokens of sample i count."""
    vector, tokens = normal((n, cond_dim), (n, 4, TOKENS), seed=3, dtype=torch.float32)
    return Conditioning(vector if cond_dim else None, tokens, torch.arange(4) < torch.arange(n)[:, None])


@pytest.mark.parametrize("settings", [SMALL, {**SMALL, "attention": [True, False]}], ids=["deep", "shallow"])
@pytest.mark.parametrize("cond_dim", [0, 5])
@torch.no_grad()
def test_only_tokens_that_count_change_the_output(settings, cond_dim):
    net = make((1, 8, 8), cond_dim, token_dim=TOKENS, **settings).eval()
    x, c_noise, cond = torch.randn(3, 1, 8, 8), torch.linspace(-1, 1, 3), words(cond_dim)
    assert torch.equal(net(x, c_noise, cond), torch.zeros_like(x))
    perturb(net)
    F = net(x, c_noise, cond)
    seen = net(x, c_noise, Conditioning(cond.vector, -cond.tokens, cond.mask))
    assert ((seen - F).flatten(1).abs().amax(1) > 0.01).tolist() == [False, True, True]
    close = {"rtol": 1e-4, "atol": 1e-4}  # float32 rounds differently in another batch or order
    for junk in (1e6, torch.nan):
        hidden = torch.where(cond.mask[..., None], cond.tokens, junk)
        torch.testing.assert_close(net(x, c_noise, Conditioning(cond.vector, hidden, cond.mask)), F, rtol=0, atol=0)
    order = torch.tensor([2, 0, 3, 1])
    permuted = Conditioning(cond.vector, cond.tokens[:, order], cond.mask[:, order])
    torch.testing.assert_close(net(x, c_noise, permuted), F, **close)
    short = Conditioning(cond.vector, cond.tokens[:, :2], cond.mask[:, :2])
    torch.testing.assert_close(net(x, c_noise, short), F, **close)
    without = net(x, c_noise, None if cond.vector is None else Conditioning(cond.vector))
    torch.testing.assert_close(without[:1], F[:1], **close)
    all_count, unmasked = (Conditioning(cond.vector, cond.tokens, m) for m in (torch.ones_like(cond.mask), None))
    assert torch.equal(net(x, c_noise, all_count), net(x, c_noise, unmasked))


@pytest.mark.parametrize(
    ("token_dim", "cond", "message"),
    [
        (0, words(0), r"width 3 .*token_dim=0"),
        (2, words(0), r"width 3 .*token_dim=2"),
        (3, Conditioning(None, torch.zeros(3, 4, 3), torch.ones(3, 4)), r"mask is torch.float32 .*\(B, L\) of bool"),
        (3, Conditioning(None, torch.zeros(3, 4, 3), torch.ones(3, 5, dtype=torch.bool)), r"shape \(3, 5\)"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(token_dim, cond, message):
    net = make((1, 8, 8), token_dim=token_dim, **SMALL)
    with pytest.raises(ValueError, match=message):
        net(torch.zeros(3, 1, 8, 8), torch.zeros(3), cond)


@pytest.mark.parametrize("token_dim", [pytest.param(0, marks=pytest.mark.slow), 3])
def test_a_control_is_0_at_the_start_and_reads_its_hint(token_dim):
    base = (
        perturb(make((1, 8, 8), 3, token_dim=token_dim, **{**SMALL, "channels": [8, 16]})).eval().requires_grad_(False)
    )
    found = copy.deepcopy(base)
    assert control.attach(found, HintPart(1, (1, 8, 8))) == 1
    x, c_noise, hint = torch.randn(2, 1, 8, 8), torch.randn(2), torch.rand(2, 2, 8, 8)
    tokens = (
        {"tokens": torch.randn(2, 4, 3), "mask": torch.tensor([[True] * 4, [True, False] * 2])} if token_dim else {}
    )
    cond = Conditioning(torch.randn(2, 3), **tokens)
    hinted = replace(cond, hint=hint)
    right = base(x, c_noise, cond)
    assert torch.equal(found(x, c_noise, hinted), right)
    (own,) = control.controls(found)
    for p in own.parameters():
        assert p.requires_grad
        p.data += 0.1 * torch.randn_like(p)
    far = found(x, c_noise, hinted)
    assert (far - right).abs().max() > 1e-3
    assert torch.equal(found(x, c_noise, replace(cond, hint=torch.stack([-hint[:, 0], hint[:, 1]], 1))), far)
    assert not torch.equal(found(x, c_noise, replace(cond, hint=-hint)), far)
    far.sum().backward()
    assert all(p.grad is not None and bool(p.grad.any()) for p in own.parameters() if p.ndim > 1)
    own.strength = 0.0
    assert torch.equal(found(x, c_noise, hinted), right)
