"""A model of captions from its first step to its prompts: trained, resumed, guided, sampled, measured."""

import json
import tarfile

import numpy as np
import pytest
import torch
from cli_process import check_mistakes, outcomes
from flow_cases import perturb
from PIL import Image
from runs import TINY_CAPTIONED, settings, train

import flowdiff
from flowdiff.errors import ConfigurationError
from flowdiff.runs.run_folder import RunFolder
from flowdiff.training.engine import Engine

CAPTIONED = [*TINY_CAPTIONED, "conditioner=text", "conditioner.dim=16", "conditioner.layers=1", "conditioner.heads=2"]
SMALL_FLOW = ["flow=realnvp", "flow.n_flows=2", "flow.hidden=16", "loss=nll"]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text") / "run"
    train(folder, *CAPTIONED, *SMALL_FLOW)
    return folder


@pytest.fixture
def model(run):
    """A trained model, whose condition would hardly count after so few steps."""
    model = flowdiff.load(run)
    perturb(model.denoiser.network, gain=0.1)
    return model


def test_a_prompt_names_the_samples(model):
    drawn = flowdiff.sample(model, 4, prompt=["a big red three", "a small blue two on the left"], num_steps=2)
    again = flowdiff.sample(model, 4, prompt="a big red three", num_steps=2)
    assert drawn.shape == (4, 3, 16, 16)
    # The steep D of random weights amplifies rounding at a few pixels, so the mean difference counts.
    assert (drawn[[0, 2]] - again[[0, 2]]).abs().mean() < 1e-4 < 1e-3 < (drawn[1] - again[1]).abs().mean()
    by_default = flowdiff.sample(model, 2, num_steps=2)
    examples = list(model.conditioner.examples()[:2])
    assert torch.equal(by_default, flowdiff.sample(model, 2, prompt=examples, num_steps=2))


def test_the_words_that_are_cut_are_told(model, caplog):
    long = " ".join([*["red"] * 33, "and blue"])  # the model reads 32 words
    flowdiff.sample(model, 1, prompt=[long, "blue", long], num_steps=1)
    assert [record.getMessage().rpartition(": ")[2] for record in caplog.records] == ["red and blue"]


def test_a_negative_prompt_takes_the_place_of_the_null_condition(model):
    guided = {"guidance": "cfg", "scale": 2.0, "num_steps": 2, "prompt": "a big red three"}
    plain = flowdiff.sample(model, 2, **guided)
    same = flowdiff.sample(model, 2, negative_prompt="", **guided)  # the null condition itself
    other = flowdiff.sample(model, 2, negative_prompt="green", **guided)
    assert (same - plain).abs().mean() < 1e-4 < 1e-3 < (other - plain).abs().mean()
    with pytest.raises(ConfigurationError, match="negative_prompt='green' takes the place of the null condition in"):
        flowdiff.sample(model, 2, prompt="a big red three", negative_prompt="green")


def test_a_padded_prompt_has_the_same_density(model):
    x, sigma = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.ones(2)
    both = model.log_prob(x, sigma, model.cond_of(["red", "a small blue two on the left"]))
    alone = model.log_prob(x[:1], sigma[:1], model.cond_of(["red"]))
    torch.testing.assert_close(both[:1], alone)


TARFLOW = ["flow=tarflow", "flow.patch=8", "flow.hidden=16", "flow.n_layers=2"]
REALNVP = ["flow=realnvp", "flow.n_flows=2", "flow.hidden=16"]


@pytest.mark.parametrize(
    "network",
    [
        pytest.param([*TARFLOW, "flow.inject=cross_attention", "loss=nll"], id="tarflow"),
        pytest.param([*REALNVP, "flow.inject=cross_attention"], id="realnvp", marks=pytest.mark.slow),
        pytest.param(["network=mlp", "scaling=edm", "network.width=16", "network.depth=1"], id="mlp"),
        pytest.param(
            ["network=unet", "scaling=edm", "network.channels=[8,8]", "network.norm_groups=4"],
            id="unet",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_kind_of_network_learns_from_captions(tmp_path, network):
    train(tmp_path / "run", *CAPTIONED, *network)
    assert RunFolder(tmp_path / "run").is_complete


def test_each_step_draws_a_caption_and_drops_some_of_them():
    engine = Engine.of(settings(*CAPTIONED, *SMALL_FLOW, "conditioner.drop=0.25"))
    engine.measure()
    batch = engine.data.train[torch.arange(64)]
    null = engine.conditioner.null(1).vector
    dropped = [torch.isclose(engine.loss_inputs(batch, step).cond.vector, null, atol=1e-5).all(1) for step in range(40)]
    share = float(torch.stack(dropped).double().mean())
    assert abs(share - 0.25) < 4 * (0.25 * 0.75 / (40 * 64)) ** 0.5  # 4 standard errors
    assert not torch.equal(dropped[0], dropped[1])  # other captions in other steps


def test_prompts_on_the_command_line(run):
    cwd = run.parent
    (cwd / "prompts.txt").write_text("a big red three\n\na green two left of a golden nine\n")
    (cwd / "empty.txt").write_text("\n")
    asked = [f"run={run}", "num_samples=4"]
    long = " ".join([*["red"] * 33, "and blue"])  # the model reads 32 words
    commands = [
        [*asked, f"prompt={long}", "out=one"],
        [*asked, "prompt=[a big red three,a big blue two]", "out=list"],
        [*asked, "prompts=prompts.txt", "negative_prompt=green", "guidance=cfg", "guidance.scale=2", "out=file"],
    ]
    results = outcomes("sample", commands, cwd)
    assert [status for status, _ in results] == [0, 0, 0]
    told = "a prompt is longer than the model reads; these words are left out:"
    assert [" ".join(text.split()).count(told) for _, text in results] == [1, 0, 0]
    assert f"{told} red and blue" in " ".join(results[0][1].split())
    prompts = {name: list(np.load(cwd / name / "samples.npz")["prompts"]) for name in ("one", "list", "file")}
    assert prompts["one"] == [long] * 4
    assert prompts["list"] == ["a big red three", "a big blue two"] * 2
    assert prompts["file"] == ["a big red three", "a green two left of a golden nine"] * 2
    kept = {name: Image.open(cwd / name / "samples.png").text["Description"].splitlines() for name in prompts}
    assert kept == {name: list(dict.fromkeys(of)) for name, of in prompts.items()}
    with Image.open(run / "samples.png") as picture:
        assert picture.text["Description"].splitlines() == list(flowdiff.load(run).conditioner.examples()[:10])
    mistakes = [
        ([*asked, "prompts=empty.txt"], "prompts=empty.txt holds no prompt: write one in each line"),
        ([f"run={run}", "num_samples=1", "prompt=[red,blue]"], "num_samples=1 is less than the 2 prompts: set"),
        ([*asked, "prompts=none.txt"], "prompts=none.txt cannot be read (No such file or directory): give a text file"),
        ([*asked, "prompt=red", "prompts=prompts.txt"], "prompt and prompts both say what to draw"),
        ([*asked, "class_label=3"], "class_label=3 was given to a model that reads text: give a prompt instead"),
        ([*asked, "negative_prompt=green"], "takes the place of the null condition in guidance=cfg"),
    ]
    check_mistakes("sample", mistakes, cwd)


def test_what_is_wrong_with_captions_is_a_sentence_before_training(tmp_path):
    for i in range(3):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "metadata.jsonl").write_text("\n" * 16 + '{"file_name": "0.png", "text"')
    with tarfile.open(tmp_path / "whole.tar", "w") as tar:
        tar.add(tmp_path / "0.png", "0.png")
    (tmp_path / "cut.tar").write_bytes((tmp_path / "whole.tar").read_bytes()[:1100])
    given = ["conditioner=text", "logger=csv", "dataset.image_size=8", *SMALL_FLOW, "metrics.frechet=false"]
    mistakes = [
        (
            [*given, "dataset=image_folder", "dataset.path=."],
            "metadata.jsonl is not JSON (Expecting ':' delimiter): corr",
        ),
        ([*given, "dataset=image_tars", "dataset.path=cut.tar"], "cut.tar is cut short, after 1,100 bytes: copy or"),
    ]
    check_mistakes("train", mistakes, tmp_path)
    assert not list(tmp_path.rglob("*.ckpt"))


def test_text_needs_captions_and_prompts_need_text(tmp_path):
    check_mistakes(
        "train", [(["conditioner=text"], "this conditioner reads captions, and the data set has none; set")], tmp_path
    )
    model = Engine.of(settings("accelerator=cpu", "logger=csv")).denoiser
    with pytest.raises(ConfigurationError, match="prompt='red' was given to a model that does not read text"):
        model.given(2, prompt="red")


def test_a_run_resumes_with_its_vocabulary(run, tmp_path):
    train(tmp_path / "short", *CAPTIONED, *SMALL_FLOW, "trainer.max_steps=2")
    again = tmp_path / "again"
    train(again, *CAPTIONED, *SMALL_FLOW)
    one, other = (json.loads((folder / "result.json").read_text())["metrics"] for folder in (run, again))
    assert one["test_loss"] == other["test_loss"]


def test_class_and_text_are_sampled_together_or_alone(tmp_path):
    text = "conditioner.text={name:text,dim:16,layers:1,heads:2,drop:0.1}"
    given = [*TINY_CAPTIONED, *SMALL_FLOW, "conditioner=class_and_text", text]
    train(tmp_path / "run", *given)
    model = flowdiff.load(tmp_path / "run")
    perturb(model.denoiser.network, gain=0.1)
    captions = model.conditioner.examples()
    engine = Engine.of(settings(*given))
    engine.measure()
    batch = engine.data.train[torch.arange(64)]
    known = {text: int(label) for texts, label in zip(batch.captions, batch.label, strict=True) for text in texts}
    assert [known[text] for text in captions] == list(model.conditioner.example_classes())
    ways = [{"label": 3, "prompt": "a big red three"}, {"label": 3}, {"prompt": "a big red three"}, {"label": 4}]
    drawn = [flowdiff.sample(model, 1, num_steps=2, **way) for way in ways]
    for i in range(4):
        for j in range(i):
            assert (drawn[i] - drawn[j]).abs().mean() > 1e-3
    with pytest.raises(ConfigurationError, match="class_label=12 is out of range"):
        flowdiff.sample(model, 1, label=12)
    model.conditioner.alone = False
    with pytest.raises(ConfigurationError, match="prompt was given without class_label, and this model was always"):
        flowdiff.sample(model, 1, prompt="a big red three")
