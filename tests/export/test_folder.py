"""An exported folder returns the run's samples bit for bit, wherever it lies, and holds nothing of this machine."""

import json
import shutil

import pytest
import torch
import yaml
from runs import TINY, settings, untrained

import flowdiff
from flowdiff import config
from flowdiff.cli import export as command
from flowdiff.errors import ConfigurationError, RunError
from flowdiff.export.folder import export
from flowdiff.runs.run_folder import Label, RunFolder
from flowdiff.training.engine import Engine
from flowdiff.training.weights import trained_weights

UNET = ["network.channels=[8,16]", "network.norm_groups=4", "network.attention=[false,true]"]
RAW = ["network=unet", "scaling=edm", "loss=denoising", *UNET]
STEPS = {"sampler": "heun", "num_steps": 2}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("run") / "toy", *TINY)


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("run") / "unet", "dataset=digits", *RAW)


@pytest.fixture
def moved(tmp_path):
    """What exports a run, takes the run away, and moves the folder."""

    def go(run, *others):
        wanted = flowdiff.sample(flowdiff.load(run), 3, **STEPS)
        export(run, tmp_path / "out")
        for folder in (run, *others):
            shutil.move(folder, folder.with_name(f"{folder.name}-away"))
        (tmp_path / "out").rename(tmp_path / "elsewhere")
        try:
            assert torch.equal(flowdiff.sample(flowdiff.load(tmp_path / "elsewhere"), 3, **STEPS), wanted)
        finally:
            for folder in (run, *others):
                shutil.move(folder.with_name(f"{folder.name}-away"), folder)
        return tmp_path / "elsewhere"

    return go


def test_the_samples_are_those_of_the_run(run, moved):
    folder = moved(run)
    assert not [path for path in folder.rglob("*") if path.suffix in (".ckpt", ".pt", ".pkl", ".bin")]
    again = export(folder, folder.parent / "again")
    one, other = (flowdiff.load(path).state_dict() for path in (run, again))
    assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_card_has_the_numbers_and_the_metadata_of_the_hub(run, tmp_path):
    assert command.main([str(run), str(tmp_path / "out"), "--license", "mit"]) == 0
    _, metadata, text = (tmp_path / "out" / "README.md").read_text().split("---\n", 2)
    found = yaml.safe_load(metadata)
    assert found["license"] == "mit"
    (result,) = found["model-index"][0]["results"]
    assert result["metrics"] == [{"type": "test_loss", "name": "test_loss", "value": 0.25}]  # bpd has no number
    assert "| denoising test loss | 0.2500 |" in text
    assert "python train.py dataset=two_moons" in text
    assert "label=0" in text


@pytest.mark.slow
def test_a_unet_opens_in_diffusers(raw, moved):
    from diffusers import UNet2DModel

    folder = moved(raw)
    unet = UNet2DModel.from_pretrained(folder)
    model = flowdiff.load(folder)
    x, t = torch.linspace(-1, 1, 128).view(2, 1, 8, 8), torch.tensor([3.0, 40.0])
    labels = torch.linspace(-1, 1, 64).view(2, 32)
    with torch.no_grad():
        assert torch.equal(unet(x, t, labels).sample, model.network.unet(x, t, labels).sample)


@pytest.mark.slow
def test_nothing_of_this_machine_is_in_it(tmp_path):
    given = (f"dataset.path={tmp_path / 'mine.zip'}", "dataset=image_zip", "dataset.image_size=8", "conditioner=none")
    path = tmp_path / "run"
    folder = RunFolder(path)
    folder.write_config(settings(*given))
    folder.write_label(Label("1a2b3c4d", " ".join(given), None, given))
    engine = Engine.of(folder.config())
    torch.save({"state_dict": engine.state_dict(), "global_step": 1}, folder.checkpoint)
    export(path, tmp_path / "out")
    texts = [file.read_text() for file in (tmp_path / "out").iterdir() if file.suffix != ".safetensors"]
    assert not any(str(tmp_path) in text for text in texts)
    assert "dataset.path=mine.zip" in (tmp_path / "out" / "README.md").read_text()
    assert "before it was complete" in (tmp_path / "out" / "README.md").read_text()
    assert flowdiff.load(tmp_path / "out").first_stage.latent_shape == (3, 8, 8)


def test_sentences(run, tmp_path, monkeypatch):
    with pytest.raises(RunError, match="does not exist"):
        export(tmp_path / "nowhere", tmp_path / "out")
    empty = RunFolder(tmp_path / "empty")
    empty.write_config(settings(*TINY))
    with pytest.raises(RunError, match=r"has no checkpoint last.ckpt yet: let it train first"):
        export(empty.path, tmp_path / "out")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").touch()
    with pytest.raises(ConfigurationError, match="is not an empty folder: give a new one"):
        export(run, tmp_path / "full")
    with monkeypatch.context() as patch:
        patch.setattr("flowdiff.export.folder.card", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            export(run, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["empty", "full"]  # nothing half-written is left


def test_a_changed_export_is_refused(run, tmp_path):
    out = export(run, tmp_path / "out")
    content = json.loads((out / "export.json").read_text())

    def refused(sentence, act=lambda folder: folder.exported(), **change):
        (out / "export.json").write_text(json.dumps(content | change))
        with pytest.raises(RunError, match=sentence):
            act(RunFolder(out))

    refused("was exported in format 99", format=99)
    refused("outside of the folder", weights={"../model.safetensors": ""})
    refused("lacks what an export has", parts=None)
    refused("runs only if you ask for it", config.of_run, plugins=["plugins/mine.py"])
    refused(r"with lost.safetensors, which is missing", trained_weights, weights={"lost.safetensors": ""})
    refused("holds no weights of this run's", lambda _: flowdiff.load(out), weights={"export.json": ""})
