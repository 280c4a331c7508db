"""Consistency distillation: its gradient is that of consistency training in the limit; what it learns on a Gaussian."""

import pytest
import torch
from gaussian_consistency import LEVELS, S, gaussian, student, train
from torch import nn

from flowdiff import registry
from flowdiff.diffusion.losses.teacher import Teacher
from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioners.classes import OneHot, Unconditional
from flowdiff.models.conditioners.scaled import Scaled, with_scale
from flowdiff.testing import oracles
from flowdiff.testing.models import ScoreOf, model_of
from flowdiff.training.assembly import guide_by


def distillation(teacher, **settings):
    guided = lambda model, node: guide_by({**registry.completed("guidance", node)})(model)  # noqa: E731
    runtime = {"load": {"teacher": teacher}.get, "guided": guided}
    return registry.create("loss", "consistency_distillation", **{**runtime, "run": "teacher", **settings})


def test_its_gradient_is_that_of_consistency_training_in_the_limit():
    """With a distance that is smooth at 0, for a function that is not yet consistent, and with the exact D.

    Given x, the noise is N(m, v): each x has it at m ± √v·ε, so that what is linear in the noise cancels, and what is
    left falls in proportion to t − r.
    """
    f = student(dim=2).double()
    torch.nn.init.normal_(f.network.scale.weight, std=0.3, generator=torch.Generator().manual_seed(1))

    class Bent(nn.Module):  # a consistency function that is not linear in x
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x, sigma, cond=None):
            return self.inner(torch.tanh(x) + 0.3 * x**2, sigma, cond)

    generator = torch.Generator().manual_seed(2)
    t = torch.linspace(0.3, 3.0, 64, dtype=torch.float64).repeat_interleave(2)
    x = ((S**2 + t**2).sqrt()[:, None]) * torch.randn(64, 2, generator=generator).double().repeat_interleave(2, 0)
    m, v = t[:, None] * x / (S**2 + t**2)[:, None], S**2 / (S**2 + t**2)[:, None]
    signs = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(64)[:, None]
    noise = m + v.sqrt() * signs * torch.randn(64, 2, generator=generator).double().repeat_interleave(2, 0)
    losses = {
        "ct": registry.create("loss", "consistency", huber=1e3),
        "cd": distillation(gaussian(2), huber=1e3),
    }

    def gradient(name, h):
        loss = losses[name]
        loss.pairs = lambda sigma: (sigma, sigma * (1 - h))
        value = loss(Bent(f), x - t[:, None] * noise, t, noise).loss.mean()
        return torch.cat([g.flatten() for g in torch.autograd.grad(value, list(f.parameters()))])

    apart = []
    for h in (0.02, 0.01, 0.005):
        ct, cd = gradient("ct", h), gradient("cd", h)
        apart.append(float((ct - cd).norm() / cd.norm()))
    assert apart[-1] < 0.02
    assert apart[0] / apart[1] == pytest.approx(2, rel=0.1)
    assert apart[1] / apart[2] == pytest.approx(2, rel=0.1)


@pytest.mark.parametrize("solver", ["heun", "euler"])
def test_its_target_is_the_teachers_step_of_that_order(solver):
    """On a Gaussian the trajectory through x is x·√((s² + r²)/(s² + t²)); a step of order p is wrong by O(h^(p+1))."""
    loss = distillation(gaussian(), solver=solver)
    x = torch.ones(1, 4, dtype=torch.float64)
    errors = []
    for h in (0.1, 0.05):
        t = torch.tensor([1.0], dtype=torch.float64)
        r = t - h
        exact = x * ((S**2 + r**2) / (S**2 + t**2)).sqrt()[:, None]
        errors.append(float((loss.nearer(x, x, x, t, r, None) - exact).norm()))
    assert errors[0] / errors[1] == pytest.approx({"heun": 8, "euler": 4}[solver], rel=0.15)


@pytest.mark.slow
def test_it_learns_the_consistency_function_of_a_gaussian():
    """f(x, σ) = x·√((s² + σ_min²)/(s² + σ²)) to 1e-2 of s."""
    f = student()
    train(f, distillation(gaussian()))
    found = f((S**2 + LEVELS**2).sqrt()[:, None].expand(-1, 4), LEVELS) / S
    torch.testing.assert_close(found, torch.full_like(found, (S**2 + 0.002**2) ** 0.5 / S), rtol=0, atol=1e-2)


class OfClasses(oracles.Oracle):
    """N(μ_k, s²) of class k, and N(0, s²) without a class."""

    MEANS = torch.tensor([[0.6, -0.3], [-0.2, 0.5]], dtype=torch.float64)

    def _apart(self, x, cond):
        return x.double() - cond.vector.double() @ self.MEANS

    def score(self, x, sigma, cond=None):
        return (-self._apart(x, cond) / (S**2 + sigma.double() ** 2)[:, None]).to(x)

    def __call__(self, x, sigma, cond=None):
        return x + sigma[:, None] ** 2 * self.score(x, sigma, cond)

    def log_prob(self, x, sigma, cond=None):
        raise NotImplementedError

    def sample(self, sigma, cond=None, generator=None):
        raise NotImplementedError


def of_classes(drop=0.1):
    return model_of(ScoreOf(OfClasses().network), shape=(2,), conditioner=OneHot(2, drop=drop), sigma_data=S)


@pytest.mark.slow
def test_the_teachers_guidance_becomes_part_of_the_function():
    """By w·D_c + (1 − w)·D_∅ class k is N(w·μ_k, s²), whose consistency function is the same around another mean."""
    scale, own = 2.0, OneHot(2, drop=0.0)
    f = student(2, cond_dim=2)

    def cond_of(generator):
        return own(torch.randint(2, (512,), generator=generator))

    loss = distillation(of_classes(), guidance={"name": "cfg", "scale": scale})
    train(f, loss, cond_of, OfClasses.MEANS.float(), dim=2)
    for k in range(2):
        mean = scale * OfClasses.MEANS[k].float()
        x = mean + (S**2 + LEVELS**2).sqrt()[:, None]
        found = (f(x, LEVELS, own(torch.full((5,), k))) - mean) / S
        # 2e-2: what is learned of the mean travels up from level to level, and 10 is drawn rarely.
        torch.testing.assert_close(found, torch.full_like(found, 1.0), rtol=0, atol=2e-2)


def test_the_scale_of_guidance_is_read_by_the_function():
    """The consistency function of N(w·μ_k, s²), with the w that the condition carries, has no loss but Heun's error.

    With the w of another sample it has one, and guidance=embedded asks for it at its own scale.
    """
    own = Scaled(OneHot(2, drop=0.0), (1.0, 4.0))

    class Guided(nn.Module):
        sigma_data = torch.tensor(S)
        shift = 0.0

        def forward(self, x, sigma, cond=None):
            w = torch.sinh(cond.vector[:, 2:3].double()) + self.shift
            mean = w * (cond.vector[:, :2].double() @ OfClasses.MEANS)
            return mean + (x - mean) * ((S**2 + 0.002**2) / (S**2 + sigma**2)).sqrt()[:, None]

    loss = distillation(of_classes(), scales=[1.0, 4.0], num_steps=80)
    x0 = torch.randn(256, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = loss.draw_noise(x0, torch.Generator().manual_seed(1))
    assert noise.shape == (256, 3)
    sigma, cond = torch.logspace(-2, 1, 256, dtype=torch.float64), own(torch.arange(256) % 2)
    cond = cond.with_vector(cond.vector.double())
    f = Guided()
    exact = loss(f, x0, sigma, noise, cond).loss
    f.shift = torch.linspace(0, 0.5, 256, dtype=torch.float64)[:, None].flip(0)
    assert float(exact.mean()) < 0.1 * float(loss(f, x0, sigma, noise, cond).loss.mean())
    f.shift = 0.0
    guide = registry.create("guidance", "embedded", denoiser=f, scales=own.scales, scale=3.0)
    expected = f(x0, sigma, with_scale(cond, torch.full((256,), 3.0, dtype=torch.float64)))
    torch.testing.assert_close(guide(x0, sigma, cond), expected)
    torch.testing.assert_close(cond.vector[:, 2], torch.full((256,), 1.0).double().asinh(), atol=1e-6, rtol=0)


def test_a_teacher_is_asked_in_its_own_conditions():
    teacher = Teacher({"t": of_classes()}.get, "t", "consistency_distillation")
    mine = OneHot(2, drop=0.0)
    labels = torch.tensor([1, -1, 0])
    cond = mine(labels.clamp(min=0))
    cond = type(cond)(cond.vector + 7, label=labels)  # another embedding
    assert torch.equal(teacher.cond(cond).vector, torch.tensor([[0.0, 1.0], [0.0, 0.0], [1.0, 0.0]]))
    x, sigma = torch.ones(3, 2), torch.ones(3)
    torch.testing.assert_close(teacher(x, sigma, cond), of_classes()(x, sigma, teacher.cond(cond)))
    assert Teacher({"t": gaussian()}.get, "t", "x").cond(None) is None


@pytest.mark.parametrize(
    ("scales", "scale", "sentence"),
    [
        (None, 2.0, "guidance=embedded sets the scale that a distilled model reads, and this model reads none"),
        ((1.0, 4.0), 5.0, r"guidance\.scale=5 is not allowed: .* from 1 to 4"),
    ],
)
def test_a_scale_that_was_not_learned_is_a_sentence(scales, scale, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        registry.create("guidance", "embedded", denoiser=gaussian(), scales=scales, scale=scale)
    with pytest.raises(ConfigurationError, match=r"loss\.scales is the range of a guidance towards classes"):
        Scaled(Unconditional(), (1.0, 4.0))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"run": None}, r"loss=consistency_distillation needs a run that teaches: give loss\.run=<run folder>"),
        ({"guidance": {"name": "autoguidance", "run": "x"}}, "take cfg or flow_classifier"),
        ({"load": lambda run: of_classes(drop=0.0), "guidance": {"name": "cfg"}}, "trained without label dropout"),
        ({"load": lambda run: gaussian(2)}, r"loss\.run=teacher knows no classes, and the model in training 2"),
        ({"load": lambda run: gaussian(3)}, r"of samples of shape 3, and the model in training is one of .* shape 2:"),
        ({"num_steps": 1}, "num_steps=1 is not allowed"),
        ({"scales": [2.0, 1.0]}, r"loss\.scales=\[2.0, 1.0\] is not allowed: .* low < high"),
        ({"scales": [1.0, 2.0], "guidance": {"name": "cfg"}}, "were both given"),
        ({"load": lambda run: of_classes(drop=0.0), "scales": [1.0, 2.0]}, "without classes or label dropout"),
    ],
)
def test_what_does_not_fit_is_a_sentence(settings, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        distillation(of_classes(), **settings).check(of_classes())
