"""The gate: D of a score flow stays near the Wiener filter at every σ, for every flow, whitening and way to inject."""

import math
from functools import partial

import pytest
import torch
from flow_cases import label, make_flow, takes, variants
from runs import train
from small_models import flow_of, normal, score_flow_of

import flowdiff
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.flows.base import Flow
from flowdiff.models.flows.gate import gate, gated, log_saturating
from flowdiff.models.networks.score_flow import ScoreFlow
from flowdiff.testing.inputs import perturb

EMBED = 8
SIGMAS = (1.0, 1e1, 1e2, 1e3, 1e4)
# Every variant of every flow with the isotropic whitening, which includes every way to inject, and two flows with all.
CASES = [
    (case, whitening)
    for case in variants()
    for whitening in ("isotropic", "zca", "dct")
    if whitening == "isotropic" or case in [("realnvp", {}), ("linear_activation", {})]
]


def data(shape: tuple[int, ...], n: int = 512) -> torch.Tensor:
    """Training data with a mean and correlations, so that every statistic matters."""
    D = math.prod(shape)
    mixing, z = normal((D, D), (n, D), seed=0)
    return (0.4 * z @ mixing / D**0.5 + 0.2).reshape(n, *shape)


def far_score_flow(flow: Flow, whitening: str, shape: tuple[int, ...], **settings) -> ScoreFlow:
    """The score flow of random parameters and measured statistics."""
    model = score_flow_of(flow, shape, whitening, EMBED, **settings).double().eval()
    model.fit([data(shape)])
    perturb(model.flow, 0.5)
    perturb(model.embedding, 0.5)
    return model


def distances(model: ScoreFlow, shape: tuple[int, ...]) -> list[float]:
    """‖D − Wiener‖/σ_data, root mean square over noised data, at each of SIGMAS."""
    x0 = data(shape)[:32]
    (noise,) = normal(x0.shape)
    found = []
    for level in SIGMAS:
        sigma = torch.full((len(x0),), level, dtype=torch.float64)
        x = (x0 + level * noise).requires_grad_()
        y, _ = model.whitening(x, sigma)
        (wiener,) = torch.autograd.grad(-0.5 * y.square().sum(), x)
        change = level**2 * (model(x, sigma) - wiener)
        found.append(float(change.square().mean().sqrt() / data(shape).std()))
    return found


@pytest.mark.parametrize(("case", "whitening"), CASES, ids=label)
def test_d_is_bounded_for_any_parameters(case, whitening):
    """Its distance to the Wiener filter does not grow with σ; without a gate it grows by 100 times."""
    shape = next(shape for shape in [(3,), (1, 2, 2), (1, 4, 4)] if takes(case, shape))
    make = partial(make_flow, case, shape, EMBED, token_dim=0)
    with_gate = distances(far_score_flow(make(), whitening, shape), shape)
    assert max(with_gate) < 1e3
    assert with_gate[4] < 1.1 * with_gate[2]
    without = distances(far_score_flow(make(), whitening, shape, gate=False), shape)
    assert without[4] > max(1e4, 10 * without[2])


def test_the_gate_is_the_share_of_the_data_in_the_variance():
    sigma = torch.tensor([0.1, 2.0, 80.0], dtype=torch.float64)
    square = gate(torch.tensor(0.25, dtype=torch.float64), sigma)
    torch.testing.assert_close(square, 0.25 / (0.25 + sigma**2))
    params = torch.ones(3, 2, 4, dtype=torch.float64)
    assert torch.equal(gated(params, Conditioning(sigma[:, None])), params)
    found = gated(params, Conditioning(sigma[:, None], gate=square))
    assert torch.equal(found, square[:, None, None].expand_as(params))
    level = log_saturating(torch.tensor(4.0, dtype=torch.float64), sigma).exp()
    torch.testing.assert_close(1 / level**2, 1 / sigma**2 + 1 / 4)


def test_a_constant_and_a_slope_of_a_flow_count_by_the_powers_of_the_gate():
    """u′ = u + γ²·(a + b·u + c·u²) gives z = y + γ·a + γ²·b·y + γ³·c·y² with u = γ·y and z = u′/γ."""

    class Polynomial(Flow):
        takes_gate = True

        def forward(self, x, cond):
            a, b, c = (gated(torch.full_like(x, value), cond) for value in (0.3, 0.2, 0.1))
            return x + a + b * x + c * x**2, torch.log(1 + b + 2 * c * x).sum(1)

        def inverse(self, z, cond):
            raise NotImplementedError

    model = score_flow_of(Polynomial(), (1,), "isotropic").double()
    model.variance.fill_(0.5)
    y = torch.tensor([[0.7], [-0.4]], dtype=torch.float64)
    sigma = torch.tensor([0.3, 20.0], dtype=torch.float64)
    x, _ = model.whitening.inverse(y, sigma)
    gamma = (0.5 / (0.5 + sigma**2)).sqrt()[:, None]
    expected = y + 0.3 * gamma + 0.2 * gamma**2 * y + 0.1 * gamma**3 * y**2
    torch.testing.assert_close(model.encode(x, sigma), expected, rtol=1e-10, atol=1e-10)


def test_the_variance_is_measured_with_the_whitening_in_one_pass_and_kept():
    """v is the mean over the numbers of a sample of their variance about their own mean."""
    x0 = data((2, 3)) + 5 * torch.arange(6.0).reshape(2, 3)
    model = score_flow_of(flow_of("realnvp", (2, 3), EMBED), (2, 3), "zca", EMBED).double()
    model.fit(iter(x0.split(100)))  # an iterator can be read once
    assert float(model.variance) == pytest.approx(float(x0.var(0, correction=0).mean()), rel=1e-6)
    torch.testing.assert_close(model.whitening.mean, x0.mean(0).flatten(), rtol=1e-6, atol=1e-6)
    other = score_flow_of(flow_of("realnvp", (2, 3), EMBED), (2, 3), "zca", EMBED).double()
    other.load_state_dict(model.state_dict())
    assert torch.equal(other.variance, model.variance)


def test_constant_data_have_a_finite_density():
    model = score_flow_of(flow_of("realnvp", (3,), EMBED), (3,), "zca", EMBED)
    x0 = torch.full((8, 3), 0.7)
    model.fit([x0])
    log_p, score = model.log_prob_and_score(x0 + 1, torch.logspace(-2, 2, 8))
    assert log_p.isfinite().all()
    assert score.isfinite().all()


class NotGated(Flow):
    """A flow of a time before there was a gate."""

    def forward(self, x, cond):
        assert cond.gate is None
        return x + 1, x.new_zeros(len(x))

    def inverse(self, z, cond):
        assert cond.gate is None
        return z - 1, z.new_zeros(len(z))


def test_there_is_no_gate_where_it_is_off_or_has_no_meaning():
    """The model is what it was: no entry in the state dict, and γ = 1."""
    flow = partial(flow_of, "realnvp", (3,), EMBED)
    x, sigma = data((3,))[:4], torch.full((4,), 3.0, dtype=torch.float64)
    for model in (
        score_flow_of(flow(), (3,), "zca", EMBED, gate=False),
        score_flow_of(flow(), (3,), "identity", EMBED),
        score_flow_of(NotGated(), (3,), "zca", EMBED),
    ):
        model = perturb(model.double())
        model.fit([data((3,))])
        assert "variance" not in model.state_dict()
        cond = model.embedding(0.25 * sigma.log())
        z, _ = model.flow(model.whitening(x, sigma)[0], cond)
        assert torch.equal(model.encode(x, sigma), z)
        torch.testing.assert_close(model.decode(z, sigma), x)


def test_the_gate_is_computed_in_full_precision_and_can_be_differentiated():
    """∂ log p/∂σ, which the Fokker–Planck equation contains, agrees with finite differences; autocast changes no γ."""
    model = far_score_flow(flow_of("realnvp", (3,), EMBED), "zca", (3,))
    x = data((3,))[:4]
    sigma = torch.tensor([0.1, 1.0, 10.0, 50.0], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda s: model.log_prob(x, s), sigma.clone().requires_grad_())
    low = model.float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = low._embed(sigma.float(), None).gate
    torch.testing.assert_close(found.double(), low.variance / (low.variance + sigma**2), rtol=1e-6, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("flow", ["realnvp", "linear_activation", "glow"])
def test_a_trained_flow_knows_the_class_means_at_the_largest_noise_level(flow, tmp_path):
    """At σ = 80, of which training by nll sees next to none, D of test images errs at most 1.1 × the class means."""
    run = ["dataset=digits", f"flow={flow}", "loss=nll", "trainer.max_steps=1000", "logger=csv", "accelerator=cpu"]
    train(tmp_path, *run, "metrics.frechet=false", "metrics.likelihood=false", "metrics.every_n_steps=1000")
    denoiser = flowdiff.load(tmp_path)
    data = flowdiff.build(*run).data
    data.setup()
    (x0, label), (x, of) = ((data.to_model(split[:].x), split[:].label) for split in (data.train, data.test))
    means = torch.stack([x0[label == k].mean(0) for k in range(10)])[of]
    (noise,) = normal(x.shape, dtype=x.dtype)
    with torch.no_grad():
        D = denoiser(x + 80 * noise, torch.full((len(x),), 80.0), denoiser.cond_of(of))
    assert (D - x).square().mean() < 1.1 * (means - x).square().mean()
