"""The mixture of logistics: its formula and tails, the search for the inverse, separating components, attention."""

import math

import pytest
import torch
from flow_cases import perturb
from small_models import flow_of, normal
from torch.autograd import gradcheck, gradgradcheck

from flowdiff.errors import InverseDidNotConverge
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.mixture_logistic import Blend, MixtureCDF

BOUND = 2.0
K = 3


def draw(*size: int, scale: float = 1.0, seed: int = 0) -> torch.Tensor:
    return scale * normal(size, seed=seed)[0]


def blend(w: float | torch.Tensor, n: int = 40, spread: float = 2.0) -> Blend:
    """n mixtures of K components, each for one number."""
    logits, mean, log_scale = draw(3, n, K, 1)
    w = torch.as_tensor(w, dtype=torch.float64).expand(n, 1)
    return Blend(w, logits.log_softmax(1), spread * mean, BOUND * log_scale.tanh())


@pytest.mark.parametrize("w", [-0.05, 0.0, 0.5, 0.99])
def test_it_blends_x_and_the_logit_of_the_distribution_function(w):
    mixture, x = blend(w), draw(40, 1, seed=1).requires_grad_()
    F = (mixture.log_weight.exp() * ((x[:, None] - mixture.mean) / mixture.log_scale.exp()).sigmoid()).sum(1)
    expected = (1 - w) * x + w * (F / (1 - F)).log()
    value, log_slope = mixture.value(x)
    torch.testing.assert_close(value, expected, rtol=1e-8, atol=1e-8)  # 1 − F loses digits in the tail
    (slope,) = torch.autograd.grad(value.sum(), x)
    torch.testing.assert_close(log_slope.exp(), slope, rtol=1e-10, atol=1e-10)


def test_one_component_is_an_affine_map():
    transform = MixtureCDF(1, BOUND)
    x, params = draw(20, 4, seed=1), draw(20, transform.num_params, 1).expand(-1, -1, 4)
    _, log_slope = transform.forward(x, params)
    torch.testing.assert_close(log_slope, log_slope[:, :1].expand(-1, 4), rtol=0, atol=1e-12)


@pytest.mark.parametrize("radius", [1e3, -1e3, 1e6, -1e6, 1e9])
@pytest.mark.parametrize("w", [-0.07, 0.7])
def test_both_tails_are_straight_lines_in_float32(radius, w):
    """Where F or 1 − F is far below the smallest float, the slope is that of the widest component, and the score 0."""
    mixture = blend(w)
    x = torch.full((40, 1), radius, requires_grad=True)
    parts = [t.float().requires_grad_() for t in mixture]
    value, log_slope = Blend(*parts).value(x)
    exact, exact_slope = mixture.value(x.detach().double())
    torch.testing.assert_close(value.double(), exact, rtol=1e-6, atol=0)
    torch.testing.assert_close(log_slope.double(), exact_slope, rtol=0, atol=1e-5)  # rounding
    widest = (1 - w + w * (-mixture.log_scale.amax(1)).exp()).log()
    # Two scales within 1e-3 of each other both contribute at 1e3, but not further out.
    torch.testing.assert_close(exact_slope, widest, rtol=0, atol=1e-3 if abs(radius) == 1e3 else 1e-12)
    (score,) = torch.autograd.grad(log_slope.sum(), x, create_graph=True)
    assert score.abs().max() < 1e-4
    for gradient in torch.autograd.grad(score.sum() + value.sum() + log_slope.sum(), [x, *parts]):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("scale", [1.0, 10.0, 1000.0])
def test_slopes_are_bounded_for_every_output_of_the_net(scale):
    transform = MixtureCDF(K, BOUND)
    x, params = draw(500, 1, scale=3.0, seed=1), draw(500, transform.num_params, 1, scale=scale)
    _, log_slope = transform.forward(x, params)
    assert log_slope.max() < 2 * BOUND
    assert log_slope.min() > math.log(0.01) - BOUND - 1e-9


@pytest.mark.parametrize("scale", [0.0, 1.0, 3.0, 10.0, 100.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_inverse_is_found_to_rounding_in_few_steps(scale, dtype, monkeypatch):
    """Also for staircases with long flat steps, for which Newton's method alone does not converge."""
    transform = MixtureCDF(8, BOUND)
    params = draw(300, transform.num_params, 5, scale=scale).to(dtype)
    y = torch.cat([draw(150, 5, scale=2.0, seed=1), draw(150, 5, scale=1e3, seed=2)]).to(dtype)
    calls, value = [], Blend.value
    monkeypatch.setattr(Blend, "value", lambda *args: calls.append(1) or value(*args))
    with torch.no_grad():
        x, log_slope = transform.inverse(y, params)
    assert len(calls) <= 40
    forward_y, forward_log_slope = transform.forward(x, params)
    # μ_k, and so the rounding of x − μ_k, is of order `scale`; a slope is at most e⁴.
    close = 16 * torch.finfo(dtype).eps * (1 + scale) * math.exp(2 * BOUND)
    torch.testing.assert_close(forward_y, y, rtol=close, atol=close)
    torch.testing.assert_close(forward_log_slope, -log_slope, rtol=0, atol=0)  # computed from the same x


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_without_an_inverse_are_reported(bad):
    transform = MixtureCDF(K, BOUND)
    y = torch.tensor([[0.0, bad]], dtype=torch.float64)
    with pytest.raises(InverseDidNotConverge, match=r"1 of 2 numbers.*NaN or Inf"):
        transform.inverse(y, draw(1, transform.num_params, 2))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:FutureWarning")  # raised by torch's forward mode
@pytest.mark.parametrize("direction", ["forward", "inverse"])
def test_derivatives(direction):
    """First and second derivatives in x and in the parameters, of the inverse by the implicit function theorem."""
    transform = MixtureCDF(2, BOUND)
    x, params = draw(2, 2).requires_grad_(), draw(2, transform.num_params, 2, seed=1).requires_grad_()
    function = getattr(transform, direction)
    assert gradcheck(function, (x, params), check_forward_ad=True)
    assert gradgradcheck(function, (x, params))


def test_the_inverse_is_the_same_with_and_without_a_graph():
    transform = MixtureCDF(K, BOUND)
    y, params = draw(20, 2), draw(20, transform.num_params, 2, scale=3.0, seed=1).requires_grad_()
    with torch.no_grad():
        x, log_slope = transform.inverse(y, params)
    graphed, graphed_log_slope = transform.inverse(y, params)
    assert graphed.requires_grad
    assert torch.equal(graphed, x)
    assert torch.equal(graphed_log_slope, log_slope)


def test_components_separate():
    """From the identity one transform learns a density with two modes, in small steps.

    The loss of the best affine map is 1.59 nats, the entropy of the density 0.91.
    """
    transform, halves = MixtureCDF(4, BOUND), draw(200, 1, scale=0.3)
    x = torch.cat([halves[:100] - 1, halves[100:] + 1.3])
    params = torch.zeros(1, transform.num_params, 1, dtype=x.dtype, requires_grad=True)
    optimizer = torch.optim.Adam([params], lr=0.04)
    for _ in range(80):
        z, log_slope = transform.forward(x, params.expand(len(x), -1, -1))
        loss = (0.5 * z**2 - log_slope).mean() + 0.5 * math.log(2 * math.pi)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 1.15


def test_attention_reaches_across_the_image():
    """One corner affects the opposite one, which is beyond the reach of the convolutions of one net."""
    settings = {"hidden": 8, "heads": 2, "form": "image", "n_flows": 1, "levels": 1}
    flow = perturb(flow_of("mixture_logistic", (1, 16, 16), **settings).double())
    x, cond = draw(1, 1, 16, 16), Conditioning(draw(1, 4, seed=1))
    other = x.clone()
    other[..., :2, :2] += 1.0
    change = (flow(other, cond)[0] - flow(x, cond)[0])[..., -2:, -2:]
    assert change.abs().max() > 1e-6
