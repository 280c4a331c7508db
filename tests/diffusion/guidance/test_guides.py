"""Guides on a mixture whose posterior is known: each is D_r + w·(D_c − D_r), and Bayes makes three of them one."""

import pytest
import torch
from torch import Tensor

from flowdiff import registry
from flowdiff.diffusion.guidance import Guide
from flowdiff.diffusion.samplers.generate import generate
from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.first_stage.identity import IdentityFirstStage
from flowdiff.models.networks.base import NoisyClassifier
from flowdiff.testing import oracles
from flowdiff.testing.count_calls import CountCalls
from flowdiff.testing.models import ScoreOf, model_of


class ExactNetwork(oracles.OracleDensity, NoisyClassifier):
    """A density and a classifier at once."""

    def class_log_prob(self, x, sigma):
        return self.oracle.class_log_prob(x, sigma)


class Exact(oracles.Mixture):
    """The mixture as a model of four equally likely classes, and as their exact classifier."""

    num_classes = 4

    def __init__(self, *args):
        super().__init__(*args)
        self.network = ExactNetwork(self)
        self.first_stage = IdentityFirstStage((2,))
        self.evaluations = 0

    def cond_of(self, label: Tensor) -> Conditioning:
        return self.classes(label)

    def log_prob_and_denoised(self, x, sigma, cond=None):
        self.evaluations += len(x)
        return self.log_prob(x, sigma, cond), super().__call__(x, sigma, cond)

    def class_log_prob(self, x, sigma):
        self.evaluations += len(x)
        joint = [self.log_prob(x, sigma, self.classes(torch.full((len(x),), k))) for k in range(4)]
        return torch.stack(joint, 1).log_softmax(1)

    def __call__(self, x, sigma, cond=None):
        self.evaluations += len(x)
        return super().__call__(x, sigma, cond)


def exact():
    bumps = oracles.two_by_two()
    return Exact(bumps.means, bumps.stds)


MODEL, WEAK = exact(), Exact(exact().means, exact().stds + 0.2)
RUNS = {"itself": MODEL, "weak": WEAK, "classifier": exact()}
GUIDES = [name for name in registry.names("guidance") if issubclass(registry.resolve("guidance", name), Guide)]
GUIDE_RUN = {"autoguidance": "weak", "classifier": "classifier"}

X = torch.randn(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SIGMA = torch.tensor([0.1, 0.5, 1.0, 3.0], dtype=torch.float64)
COND = MODEL.classes(torch.tensor([0, 1, 2, 2]))


def guided(name, denoiser=MODEL, load=RUNS.get, **settings):
    if name in GUIDE_RUN:
        settings = {"run": GUIDE_RUN[name], **settings}
    runtime = {"null": MODEL.null, "classes": lambda: MODEL.classes(torch.arange(4)), "num_classes": 4}
    runtime["guided"] = lambda inner: guided(denoiser=denoiser, load=load, **inner)
    return registry.create("guidance", name, denoiser=denoiser, load=load, **{**runtime, **settings})


def reference(name):
    """D_r in closed form: the denoiser of all classes together, or the weak model."""
    return WEAK(X, SIGMA, COND) if name == "autoguidance" else MODEL(X, SIGMA, MODEL.null(4))


@pytest.mark.parametrize("name", ["none", *GUIDES])
def test_keeps_the_network_and_at_scale_one_the_model(name):
    """At scale 1 every guide, and none at any scale, is the model bit for bit, and asks it once."""
    limits = {} if name == "none" else {"scale": 1.0, "rescale": 0.7, "dynamic_threshold": 0.5}
    assert guided(name).network is MODEL.network
    assert guided(name)(X, SIGMA, COND).shape == X.shape
    guide, plain = guided(name, **limits), MODEL(X, SIGMA, COND)
    before = guide.evaluations
    assert torch.equal(guide(X, SIGMA, COND), plain)
    assert guide.evaluations - before == len(X)
    if name in ("none", "autoguidance"):
        assert torch.equal(guide(X, SIGMA), MODEL(X, SIGMA))
    else:
        with pytest.raises(ConfigurationError, match="no condition to guide towards"):
            guide(X, SIGMA)


@pytest.mark.parametrize("scale", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("name", GUIDES)
def test_a_guide_leads_along_the_line_from_its_reference(name, scale):
    """By Bayes' rule D_c − σ²·∇ log p(c|x, σ) = Σ_k p(k|x, σ)·D(x, σ, k) = D(x, σ, ∅): three guides agree."""
    bound, free = MODEL(X, SIGMA, COND), reference(name)
    torch.testing.assert_close(guided(name, scale=scale)(X, SIGMA, COND), free + scale * (bound - free))


@pytest.mark.parametrize(("name", "more"), [("cfg", 2), ("autoguidance", 2), ("classifier", 2), ("flow_classifier", 4)])
def test_what_a_guide_costs(name, more):
    model, weak = exact(), exact()
    guide = guided(name, model, load=lambda run: weak)
    guide(X, SIGMA, COND)
    assert guide.evaluations == more * len(X)


@pytest.mark.parametrize("name", GUIDES)
def test_off_the_interval_is_the_conditional_model_and_each_sample_has_its_own_level(name):
    interval = guided(name, scale=3.0, interval=[0.5, 2.0])(X, SIGMA, COND)
    everywhere, plain = guided(name, scale=3.0)(X, SIGMA, COND), MODEL(X, SIGMA, COND)
    inside = torch.tensor([False, True, True, False])
    torch.testing.assert_close(interval[inside], everywhere[inside])
    assert torch.equal(interval[~inside], plain[~inside])
    assert not torch.allclose(plain[inside], everywhere[inside])  # it would have mattered
    outside = guided(name, scale=3.0, interval=[4.0, 5.0])
    before = outside.evaluations
    assert torch.equal(outside(X, SIGMA, COND), plain)
    assert outside.evaluations - before == len(X)


def test_an_unconditional_model_is_guided_by_a_weaker_one_and_not_by_itself():
    guide = guided("autoguidance", run="itself", scale=5.0)
    torch.testing.assert_close(guide(X, SIGMA, COND), MODEL(X, SIGMA, COND))

    class Unconditional(Exact):
        num_classes = None

    weak = Unconditional(WEAK.means, WEAK.stds)
    settings = {"classes": None, "num_classes": None, "load": lambda run: weak}
    found = guided("autoguidance", scale=2.0, **settings)(X, SIGMA)
    torch.testing.assert_close(found, 2 * MODEL(X, SIGMA) - weak(X, SIGMA))


@pytest.mark.parametrize("inner", ["cfg", "flow_classifier"])
@pytest.mark.parametrize("outer", ["autoguidance", "classifier"])
def test_a_guide_leads_on_what_another_has_led(outer, inner):
    """First D' = D_∅ + 3·(D_c − D_∅); then D_weak + 2·(D' − D_weak), or D' + (2 − 1)·σ²·∇ log p(c|x, σ) by Bayes."""
    bound, free = MODEL(X, SIGMA, COND), MODEL(X, SIGMA, MODEL.null(4))
    led = free + 3 * (bound - free)
    expected = 2 * led - WEAK(X, SIGMA, COND) if outer == "autoguidance" else led + (bound - free)
    around = guided(outer, scale=2.0, inner={"name": inner, "scale": 3.0})
    torch.testing.assert_close(around(X, SIGMA, COND), expected)


def test_each_guide_keeps_its_own_bounds():
    around = guided("autoguidance", scale=2.0, interval=[0.4, 9.0], inner={"name": "cfg", "interval": [0.0, 0.7]})
    cfg, auto, plain = (guided(name, scale=2.0)(X, SIGMA, COND) for name in ("cfg", "autoguidance", "none"))
    found = around(X, SIGMA, COND)  # at σ = 0.1, 0.5, 1, 3
    torch.testing.assert_close(found[0], cfg[0])
    torch.testing.assert_close(found[1], 2 * cfg[1] - (2 * plain[1] - auto[1]))
    torch.testing.assert_close(found[2:], auto[2:])


@pytest.mark.parametrize(("scale", "rows"), [(0.0, 8), (1.0, 4), (2.0, 8)])
def test_cfg_makes_one_call_a_step(scale, rows):
    counted = CountCalls(MODEL)
    sampler, schedule = registry.create("sampler", "euler", num_steps=5), registry.create("schedule", "karras")
    generate(guided("cfg", counted, scale=scale), sampler, schedule, (2,), n=4, seed=0, cond_of=lambda indices: COND)
    assert (counted.calls, counted.rows) == (5, 5 * rows)


@pytest.mark.parametrize("name", GUIDES)
def test_guided_samples_are_clearer_members_of_their_class(name):
    sampler, schedule = registry.create("sampler", "heun", num_steps=10), registry.create("schedule", "karras")

    def log_posterior(scale):
        settings = {"n": 100, "seed": 0, "cond_of": lambda indices: MODEL.classes(torch.full((len(indices),), 2))}
        x = generate(guided(name, scale=scale), sampler, schedule, (2,), batch_size=100, **settings)
        return MODEL.class_log_prob(x, torch.full((100,), 0.1))[:, 2].mean()

    assert log_posterior(3.0) > log_posterior(1.0)


RAW = model_of(ScoreOf(MODEL.network), shape=(2,), conditioner=registry.create("conditioner", "one_hot", num_classes=4))


def of(shape=(2,), num_classes=4):
    model = exact()
    model.first_stage, model.num_classes = IdentityFirstStage(shape), num_classes
    return lambda run: model


@pytest.mark.parametrize(
    ("name", "settings", "sentence"),
    [
        *(
            (name, {"denoiser": guided("autoguidance")}, r"cannot wrap Autoguidance, .* inside")
            for name in ("cfg", "flow_classifier")  # they ask about other classes
        ),
        ("cfg", {"null": None}, "trained without label dropout"),
        ("flow_classifier", {"classes": None}, "guidance=flow_classifier needs a class-conditional density"),
        ("flow_classifier", {"denoiser": RAW}, "needs a class-conditional density"),
        ("classifier", {"classes": None}, "guides towards a class, and this model is unconditional"),
        ("classifier", {"run": None}, r"guidance=classifier needs a run that guides: give guidance\.run="),
        ("autoguidance", {"run": None}, r"guidance=autoguidance needs a run that guides: give guidance\.run="),
        ("autoguidance", {"load": of(shape=(1, 8, 8))}, r"run=weak is a model of samples of shape 1×8×8, .* shape 2:"),
        ("classifier", {"load": of(num_classes=3)}, r"run=classifier knows 3 classes, and the model to be guided 4"),
        ("classifier", {"load": lambda run: RAW}, r"guidance\.run=classifier is not a classifier"),
        ("cfg", {"scale": -1.0}, r"guidance\.scale=-1"),
        ("cfg", {"interval": [3.0, 0.1]}, r"guidance\.interval=\[3.0, 0.1\] is not allowed: .* low < high"),
        ("cfg", {"interval": [1.0]}, r"guidance\.interval=\[1.0\] is not allowed"),
        ("cfg", {"rescale": 1.5}, r"guidance\.rescale=1.5 is not allowed"),
        ("cfg", {"dynamic_threshold": 0.0}, r"guidance\.dynamic_threshold=0.0 is not allowed"),
    ],
)
def test_what_does_not_fit_is_a_sentence(name, settings, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        guided(name, **settings)
