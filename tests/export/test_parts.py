"""What lies outside of a run's folder travels with it: autoencoders, text models, guiding runs, adapters."""

import shutil

import pytest
import text_models
import torch
from cli_process import check_mistakes, outcomes
from runs import CHEAP, TINY, TINY_CAPTIONED, TINY_DIGITS, settings, untrained, without_flow

import flowdiff
from flowdiff import registry
from flowdiff.errors import RunError
from flowdiff.export.folder import export
from flowdiff.runs.run_folder import RunFolder
from flowdiff.training.engine import Engine

pytestmark = pytest.mark.slow

VAE = [*without_flow(TINY_DIGITS), "experiment=vae_digits", "network.channels=[4,8]", "network.norm_groups=2"]
PLUGIN = """
from flowdiff.diffusion.weightings import Weighting
from flowdiff.registry import register

@register("weighting", "mine")
class Mine(Weighting):
    '''w = 1.'''

    def __call__(self, sigma, sigma_data):
        return sigma**0
"""


def same_elsewhere(run, out, *needed, **asked):
    """Export a run, take away what it needed, and compare the samples; the model of the folder."""
    given = {"num_steps": 2, **asked}
    wanted = flowdiff.sample(flowdiff.load(run), 3, **given)
    export(run, out)
    for folder in (run, *needed):
        shutil.move(folder, folder.with_name(f"{folder.name}-away"))
    model = flowdiff.load(out)
    assert torch.equal(flowdiff.sample(model, 3, **given), wanted)
    return model


def test_an_autoencoder_of_another_run(tmp_path):
    vae = untrained(tmp_path / "vae", *VAE, "network.latent_dim=3")
    small = [*TINY_DIGITS, "network.embed_dim=8", f"first_stage.cache_dir={tmp_path}"]
    run = untrained(tmp_path / "run", *small, "first_stage=vae", f"first_stage.run={vae}")
    same_elsewhere(run, tmp_path / "out", vae)


def test_a_pretrained_autoencoder(tmp_path):
    from diffusers import AutoencoderKL

    torch.manual_seed(0)
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}
    sizes = {"block_out_channels": [4, 8], "latent_channels": 2, "norm_num_groups": 2, "sample_size": 8}
    AutoencoderKL(in_channels=1, out_channels=1, **blocks, **sizes).save_pretrained(tmp_path / "kl")
    stage = ["first_stage=autoencoder_kl", f"first_stage.model={tmp_path / 'kl'}"]
    run = untrained(tmp_path / "run", *TINY_DIGITS, *stage, f"first_stage.cache_dir={tmp_path}")
    same_elsewhere(run, tmp_path / "out", tmp_path / "kl")


@pytest.mark.parametrize("kind", ["clip", "pretrained_text", "class_and_text", "text"])
def test_texts(kind, tmp_path):
    for name, make in (("clip", text_models.clip), ("t5", text_models.t5)):
        make(tmp_path / name)
    cache = f"conditioner.cache_dir={tmp_path}"
    given = {
        "clip": [f"conditioner.model=[{tmp_path / 'clip'}]", cache],
        "pretrained_text": [f"conditioner.model={tmp_path / 't5'}", "conditioner.max_length=12", cache],
        "class_and_text": [
            f"conditioner.text={{name: clip, model: '{tmp_path / 'clip'}', cache_dir: '{tmp_path}'}}",
        ],
        "text": [],
    }[kind]
    run = untrained(tmp_path / "run", *TINY_CAPTIONED, CHEAP, f"conditioner={kind}", *given)
    asked = {"label": 0} if kind == "class_and_text" else {}
    same_elsewhere(run, tmp_path / "out", tmp_path / "clip", tmp_path / "t5", prompt="a big red three", **asked)
    assert "prompt='" in (tmp_path / "out" / "README.md").read_text()


def test_a_guiding_run(tmp_path):
    weak = untrained(tmp_path / "weak", *TINY)
    run = untrained(tmp_path / "run", *TINY, "guidance=autoguidance", f"guidance.run={weak}", "guidance.scale=2")
    same_elsewhere(run, tmp_path / "out", weak)


def test_an_adapter_is_merged_and_the_base_takes_adapters_still(tmp_path):
    base = untrained(tmp_path / "base", *TINY)
    lora = untrained(tmp_path / "lora", *TINY, "adapter=lora", f"adapter.run={base}", "adapter.rank=2")
    wanted = flowdiff.sample(flowdiff.load(base, adapters=[{"run": str(lora)}]), 3)
    export(base, tmp_path / "out")
    adapted = flowdiff.load(tmp_path / "out", adapters=[{"run": str(lora)}])
    assert torch.equal(flowdiff.sample(adapted, 3), wanted)
    further = Engine.of(settings(*TINY, "adapter=lora", f"adapter.run={tmp_path / 'out'}", "adapter.rank=2"))
    assert further.base == Engine.of(RunFolder(lora).config()).base
    same_elsewhere(lora, tmp_path / "merged", base)


def test_plugins_run_only_if_they_are_given(tmp_path, monkeypatch):
    known = dict(registry._components["weighting"])
    monkeypatch.setitem(registry._components, "weighting", {**known})
    plugin = tmp_path / "mine.py"
    plugin.write_text(PLUGIN)
    registry.import_plugin(plugin)
    run = untrained(tmp_path / "run", *TINY, f"plugins=[{plugin}]", "weighting=mine")
    export(run, tmp_path / "out")
    with pytest.raises(RunError, match="runs only if you ask for it"):
        flowdiff.load(tmp_path / "out")
    monkeypatch.setitem(registry._components, "weighting", {**known})  # as in another process
    flowdiff.load(tmp_path / "out", moved={"plugins": [str(tmp_path / "out" / "plugins" / "mine.py")]})


def test_it_is_sampled_by_the_command_and_not_resumed(tmp_path):
    run = untrained(tmp_path / "run", *TINY)
    out = export(run, tmp_path / "out")
    given = [f"run={out}", "num_samples=4", "device=cpu", f"out={tmp_path / 'drawn'}"]
    ((status, text),) = outcomes("sample", [given], tmp_path)
    assert status == 0, text
    assert (tmp_path / "drawn" / "samples.npz").is_file()
    before = sorted(out.iterdir())
    check_mistakes("train", [([f"resume={out}"], "was exported, without the state of its training")], tmp_path)
    assert sorted(out.iterdir()) == before
