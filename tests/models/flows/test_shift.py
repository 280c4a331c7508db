"""The shift by the condition: what it adds, how it is guided, and which score flows have one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from small_models import flow_of, normal, score_flow_of

from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.shift import Shift
from flowdiff.testing.inputs import perturb

SHAPE, EMBED = (1, 4, 4), 6
IMAGE_FORM = {"form": "image", "n_flows": 2, "hidden": 8}


def inputs(n: int = 4) -> tuple[Shift, torch.Tensor, Conditioning]:
    """A shift with random parameters, and its input."""
    x, e = normal((n, *SHAPE), (n, EMBED))
    gate = torch.linspace(1, 0.1, n, dtype=torch.float64)
    return perturb(Shift(SHAPE, EMBED).double(), 0.5), x, Conditioning(e, gate=gate)


def test_it_is_the_identity_at_the_start_and_then_a_translation_by_the_gate():
    flow, x, cond = inputs()
    z, logdet = flow(x, cond)
    shift = flow.steer(cond.vector).unflatten(1, SHAPE)
    torch.testing.assert_close(z - x, cond.gate[:, None, None, None] * shift)
    assert shift.abs().min(0).values.max() > 0.1
    assert not logdet.any()
    back, _ = flow.inverse(z, cond)
    torch.testing.assert_close(back, x)
    start, _ = Shift(SHAPE, EMBED).double()(x, cond)
    assert torch.equal(start, x)


def test_guidance_moves_it_along_the_difference_of_the_two_conditions():
    """Translations have equal scales, s = 1, so that the guided shift is t_c + w·(t_c − t_∅)."""
    flow, x, cond = inputs(2)
    guided = replace(cond, gate=None, guidance=torch.full((2, 2), 1.5, dtype=torch.float64))
    t_c, t_null = flow.steer(cond.vector).unflatten(1, SHAPE)
    z = x[:1].expand(2, *SHAPE)
    found, _ = flow.inverse(z, guided)
    torch.testing.assert_close(z - found, (t_c + 1.5 * (t_c - t_null)).expand(2, *SHAPE))


@pytest.mark.parametrize(
    ("name", "settings"), [("glow", {}), ("hybrid", {}), ("realnvp", IMAGE_FORM), ("realnvp", {}), ("patchwise", {})]
)
def test_a_score_flow_has_one_if_the_nets_share_their_weights_and_there_is_a_gate(name, settings):
    shares = name in ("glow", "hybrid") or settings == IMAGE_FORM
    gated, without = (
        score_flow_of(flow_of(name, SHAPE, EMBED, **settings), SHAPE, embed_dim=EMBED, gate=gate)
        for gate in (True, False)
    )
    assert (gated.shift is not None) == shares
    assert without.shift is None
    assert not [key for key in without.state_dict() if key.startswith("shift")]


def test_at_high_noise_d_contains_an_image_for_each_condition():
    """D → μ − √v·(W e + b) as σ → ∞, here for a trained W and an untrained glow; and decode inverts encode."""
    model = score_flow_of(flow_of("glow", SHAPE, EMBED, n_flows=1, hidden=8), SHAPE, embed_dim=EMBED).double().eval()
    (x0,) = normal((50, *SHAPE), seed=1)
    model.fit([0.5 * x0 + 0.2])
    perturb(model.shift, 0.5)
    sigma = torch.full((3,), 1e4, dtype=torch.float64)
    x = 1e4 * x0[:3]
    D = x + sigma.view(-1, 1, 1, 1) ** 2 * model(x, sigma)
    shift = model.shift.steer(model._embed(sigma, None).vector).unflatten(1, SHAPE)
    expected = model.whitening.mean - model.variance.sqrt() * shift
    torch.testing.assert_close(D, expected, rtol=0, atol=1e-3)  # the filter itself adds v/σ²·x, about 1e-4
    torch.testing.assert_close(model.decode(model.encode(x, sigma), sigma), x)


def test_at_high_noise_d_of_an_untrained_flow_is_the_mean_of_the_class():
    """D → μ_c as σ → ∞ for a label, μ for the label −1 and for a class without data."""
    flow = flow_of("glow", SHAPE, EMBED, n_flows=1, hidden=8)
    model = score_flow_of(flow, SHAPE, embed_dim=EMBED, num_classes=3).double().eval()
    (x0,) = normal((60, *SHAPE), seed=1)
    label = torch.arange(60) % 2
    x0 = 0.5 * x0 + label.view(-1, 1, 1, 1) + 0.2
    model.fit([x0])
    model.fit_classes((x0[i : i + 7], label[i : i + 7]) for i in range(0, 60, 7))
    sigma = torch.full((4,), 1e4, dtype=torch.float64)
    x = 1e4 * x0[:4]
    D = x + sigma.view(-1, 1, 1, 1) ** 2 * model(x, sigma, Conditioning(label=torch.tensor([0, 1, 2, -1])))
    expected = torch.stack([x0[label == 0].mean(0), x0[label == 1].mean(0), x0.mean(0), x0.mean(0)])
    torch.testing.assert_close(D, expected, rtol=0, atol=1e-3)  # the filter itself adds v/σ²·x, about 1e-4


def test_weights_without_a_shift_load_as_a_shift_of_zero():
    """A run with a gate that was trained before there was a shift is what it was."""
    model = score_flow_of(flow_of("glow", SHAPE, EMBED, n_flows=1, hidden=8), SHAPE, embed_dim=EMBED)
    older = {key: value for key, value in model.state_dict().items() if not key.startswith("shift")}
    perturb(model.shift, 0.5)
    model.load_state_dict(older)
    assert not any(parameter.any() for parameter in model.shift.parameters())
    with pytest.raises(RuntimeError, match="flow"):  # anything else that is missing is an error
        model.load_state_dict({key: value for key, value in older.items() if not key.startswith("flow")})
