"""A user's conditioner of tokens: every model trains with it, is guided with it, saved and loaded."""

from functools import partial
from pathlib import Path

import pytest
import torch
from flow_cases import perturb, takes
from runs import TINY, settings, train, without_flow

import flowdiff
from flowdiff import config, registry
from flowdiff.diffusion.guidance.base import class_of
from flowdiff.models.conditioning import Conditioning
from flowdiff.testing.densities import density_integrates_to_one
from flowdiff.training.assembly import guide_by
from flowdiff.training.engine import Engine

GUIDE_PLUGIN = """
# words.py
import torch
from flowdiff.models.conditioners.base import Conditioner
from flowdiff.models.conditioning import Conditioning
from flowdiff.registry import register

NAMES = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]


@register("conditioner", "words")
class Words(Conditioner):
    def __init__(self, num_classes, *, token_dim: int = 16, drop: float = 0.1):
        super().__init__()
        self.num_classes, self.token_dim, self.drop = num_classes, token_dim, drop
        spelled = [[ord(letter) for letter in name.ljust(5)] for name in NAMES[:num_classes]]
        self.register_buffer("spelled", torch.tensor(spelled))
        self.letters = torch.nn.Embedding(128, token_dim)
        self.places = torch.nn.Parameter(torch.randn(5, token_dim))

    def condition(self, label):
        letters = self.spelled[label]  # (B, 5)
        return Conditioning(tokens=self.letters(letters) + self.places, mask=letters != ord(" "))

    def null(self, n):
        return Conditioning(tokens=self.places.new_zeros(n, 0, self.token_dim))
"""


# Settings of small models: one block of narrow nets. Each network and flow takes those that it has.
SMALL = {
    **{"n_flows": 1, "hidden": 8, "depth": 1, "levels": 1, "features": 4, "cnn_depth": 1, "n_layers": 1},
    **{"deep_layers": 1, "steps": 2, "signal": 4, "monotone_hidden": 8, "components": 2, "bins": 4},
    "inject": "cross_attention",
}
SMALL_NETWORK = {"channels": [8, 8], "norm_groups": 4, "width": 16, "depth": 1, "embed_dim": 8}
DATASETS = {
    "two_moons": ["dataset=two_moons", "dataset.num_train=64", "dataset.num_test=8", "metrics.frechet=false"],
    "digits": ["dataset=digits"],
}


def cases() -> list[tuple[str, str, str]]:
    """(dataset, network, flow): every flow on 2-D points, and on digits if it can attend to tokens."""
    found = [("two_moons", "mlp", "none"), ("digits", "unet", "none")]
    for name in registry.names("flow"):
        if takes((name, {}), (2,)):
            found.append(("two_moons", "score_flow", name))
        if "inject" in config.defaults("flow", name):
            found.append(("digits", "score_flow", name))
    return found


def small(group: str, name: str, settings: dict) -> dict:
    """The default config node, with those of the settings that it has."""
    node = config.defaults(group, name)
    return {key: settings.get(key, value) for key, value in node.items()}


@pytest.fixture(scope="module")
def plugin(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("plugin") / "words.py"
    path.write_text(GUIDE_PLUGIN)
    return path


@pytest.fixture(scope="module")
def composed(plugin):
    """For each dataset, the config of flow=realnvp with the conditioner of tokens."""
    given = [f"plugins=[{plugin}]", "conditioner=words", "conditioner.token_dim=4", "flow=realnvp", "accelerator=cpu"]
    return {name: settings(*dataset, *given) for name, dataset in DATASETS.items()}


@pytest.mark.parametrize(("dataset", "network", "flow"), cases())
def test_every_model_takes_tokens(dataset, network, flow, composed, plugin):
    """After one training step from perturbed parameters, exactly the tokens that count change D, alone and guided."""
    config.import_plugins([plugin])  # conftest.py removes plugins after each test
    config_ = {**composed[dataset], "network": small("network", network, SMALL_NETWORK)}
    if flow == "none":
        config_ |= {"flow": None, "scaling": config.defaults("scaling", "edm")}
    else:
        config_["flow"] = small("flow", flow, SMALL)
    engine = Engine.of({key: node for key, node in config_.items() if key != "flow" or node is not None})
    engine.measure()
    denoiser = engine.denoiser
    perturb(denoiser.network, 0.3)
    optimizer = engine.optimizer.make([p for p in engine.parameters() if p.requires_grad])
    batch = engine.data.train[torch.arange(8)]
    output = engine.loss(denoiser.denoiser, *engine.train().loss_inputs(batch, 0))
    output.loss.mean().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in denoiser.conditioner.parameters())
    optimizer.step()

    samples = flowdiff.sample(denoiser.eval(), 2, num_steps=2, guidance="cfg", scale=2.0)
    assert samples.isfinite().all()
    x, sigma, label = engine.data.to_model(batch.x).double(), torch.full((8,), 0.5).double(), batch.label
    denoiser.double()
    cond, other = denoiser.cond_of(label), denoiser.cond_of((label + 1) % denoiser.num_classes)
    with torch.no_grad():
        D = denoiser(x, sigma, cond)
        assert ((denoiser(x, sigma, other) - D).flatten(1).abs().amax(1) > 1e-5).all()
        hidden = torch.where(cond.mask[..., None], cond.tokens, 100.0)
        order = torch.tensor([4, 2, 0, 1, 3])
        for same in (
            Conditioning(tokens=hidden, mask=cond.mask),
            Conditioning(tokens=cond.tokens[:, order], mask=cond.mask[:, order]),  # tokens are a set
        ):
            torch.testing.assert_close(denoiser(x, sigma, same), D, rtol=1e-8, atol=1e-8)  # float64 rounds to 1e-16
        null = denoiser(x, sigma, denoiser.conditioner.null(8))
        guided = guide_by({**config.defaults("guidance", "cfg"), "scale": 3.0})(denoiser)
        torch.testing.assert_close(guided(x, sigma, cond), null + 3 * (D - null), rtol=1e-8, atol=1e-8)


@pytest.fixture(scope="module")
def run(plugin, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    given = [f"plugins=[{plugin}]", "conditioner=words", "flow=realnvp", "flow.inject=cross_attention"]
    given += ["flow.n_flows=2", "flow.hidden=16", "guidance=cfg", "guidance.scale=1.5"]
    result = train(folder, *without_flow(TINY), *given)
    return folder, result


def test_a_run_with_tokens_is_saved_and_loaded(run):
    folder, result = run
    model = flowdiff.load(folder)
    assert model.conditioner.token_dim == 16
    assert model.sampling.guide(model).scale == 1.5
    assert {"nats_per_dim", "class_accuracy"} <= set(result["metrics"])  # the flow is a class-conditional density
    saved = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    for name, value in model.conditioner.state_dict().items():
        assert torch.equal(saved[f"denoiser.conditioner.{name}"], value)
    samples = model.sample(6, seed=1)
    torch.testing.assert_close(model.sample(6, seed=1, batch_size=4), samples, rtol=1e-4, atol=1e-4)


def far(folder) -> torch.nn.Module:
    """The model of a run in float64, its flow perturbed away from the start."""
    model = flowdiff.load(folder).double()
    perturb(model.network.flow, 0.4)
    return model


@torch.no_grad()
def test_the_density_given_tokens_integrates_to_one_and_its_gradient_is_the_score(run):
    """∫ p(x | σ, tokens) dx = 1 for both classes, and the score is ∇ₓ log p."""
    model = far(run[0])

    def log_prob(label, x):
        return model.log_prob(x, torch.full((len(x),), 0.5).double(), model.cond_of(torch.full((len(x),), label)))

    for label in (0, 1):
        draws = model.network.sample(torch.full((4000,), 0.5).double(), model.cond_of(torch.full((4000,), label)))
        # The box omits about one draw in 4,000.
        density_integrates_to_one(partial(log_prob, label), draws, points=120, tolerance=2e-3)
    x, sigma, cond = torch.randn(5, 2).double(), torch.full((5,), 0.5).double(), model.cond_of(torch.arange(5) % 2)
    h = 1e-5 * torch.eye(2).double()
    differences = [model.log_prob(x + step, sigma, cond) - model.log_prob(x - step, sigma, cond) for step in h]
    # Errors: h² of the central difference and 1e-16/h of rounding, about 1e-10, times derivatives of log p of order 10.
    torch.testing.assert_close(model.score(x, sigma, cond), torch.stack(differences, 1) / 2e-5, rtol=1e-6, atol=1e-6)


@torch.no_grad()
def test_guidance_recovers_the_class_from_the_tokens(run):
    model = far(run[0])
    label, x, sigma = torch.tensor([1, 0, 1]), torch.randn(3, 2).double(), torch.full((3,), 0.5).double()
    cond = model.cond_of(label)
    assert torch.equal(class_of(cond, model.cond_of(torch.arange(2))), label)
    each = [model.log_prob_and_denoised(x, sigma, model.cond_of(torch.full((3,), k))) for k in (0, 1)]
    posterior = torch.stack([log_p for log_p, _ in each], 1).softmax(1)  # (B, 2)
    reference = posterior[:, :1] * each[0][1] + posterior[:, 1:] * each[1][1]
    D = model(x, sigma, cond)
    guided = guide_by({**config.defaults("guidance", "flow_classifier"), "scale": 2.0})(model)
    assert (D - reference).abs().max() > 1e-3
    torch.testing.assert_close(guided(x, sigma, cond), 2 * D - reference, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("gradient", ["directional", "forward_mode"])
@pytest.mark.parametrize("flow", ["realnvp", "ffjord"])
def test_first_order_gradients_of_the_conditioner_equal_double_backward(flow, gradient, composed, plugin):
    """In float64, where the central difference has an error of 1e-8 and forward mode only rounding errors."""
    config.import_plugins([plugin])

    def gradient_by(method: str) -> torch.Tensor:
        config_ = {**composed["two_moons"], "flow": small("flow", flow, SMALL)}
        config_["network"] = small("network", "score_flow", SMALL_NETWORK)
        config_["loss"] = {**config_["loss"], "gradient": method}
        torch.manual_seed(0)
        engine = Engine.of(config_).double()
        perturb(engine.denoiser.network, 0.3)
        generator = torch.Generator().manual_seed(1)
        x0, noise = torch.randn(2, 8, 2, generator=generator, dtype=torch.float64)
        cond = engine.conditioner(torch.arange(8) % 2, generator)
        sigma = torch.logspace(-1, 1, 8, dtype=torch.float64)
        engine.loss(engine.train().denoiser.denoiser, x0, sigma, noise, cond).loss.mean().backward()
        return torch.cat([p.grad.flatten() for p in engine.conditioner.parameters()])

    exact = gradient_by("double_backward")
    assert exact.norm() > 0
    assert (gradient_by(gradient) - exact).norm() < 1e-6 * exact.norm()


def test_the_guide_shows_this_conditioner():
    guide = Path(__file__).parents[2] / "docs" / "guides" / "extend.md"
    assert GUIDE_PLUGIN.strip() in guide.read_text()
