"""Runs of an adapter: what they train, keep, resume and load, their files, and what is refused."""

import json

import pytest
import torch
from runs import TINY, TINY_DIGITS, send, settings, train
from small_models import normal

import flowdiff
from flowdiff import config
from flowdiff.cli import adapter as command
from flowdiff.errors import ConfigurationError, FlowdiffError, RunError
from flowdiff.models.adapters import deltas, peft_format
from flowdiff.runs.identity import run_id
from flowdiff.runs.job import Interrupted
from flowdiff.runs.run_folder import RunFolder
from flowdiff.testing.inputs import perturb
from flowdiff.training.assembly import load_unmerged
from flowdiff.training.engine import Engine

HEALTHLESS = ["metrics.health.denoising=false", "metrics.health.eigenvalue=false", "metrics.health.fokker_planck=false"]
RUN = [*TINY, *HEALTHLESS, "metrics.frechet=false"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A run whose model has random weights, as if it were trained."""
    folder = RunFolder(tmp_path_factory.mktemp("base"))
    folder.write_config(settings(*RUN, "loss=nll"))
    engine = Engine.of(folder.config())
    engine.measure()
    perturb(engine.denoiser, 0.3)
    torch.save({"state_dict": engine.state_dict(), "global_step": 0}, folder.checkpoint)
    return folder.path


@pytest.fixture(scope="module")
def lora(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lora")
    given = ["adapter.rank=2", "adapter.dropout=0.2", "adapter.modules_to_save=[conditioner]", "adapter.anchor=0.1"]
    train(folder, *RUN, "loss=nll", "adapter=lora", f"adapter.run={base}", *given)
    return folder


def outputs(model):
    """D and log p of a few points."""
    (x,) = normal((4, 2), dtype=torch.float32)
    cond = model.cond_of(torch.arange(4) % 2)
    return [model(x, torch.full((4,), 0.3), cond), model.log_prob(x, torch.full((4,), 0.3), cond)]


def same(one, other, **tolerance):
    for a, b in zip(outputs(one), outputs(other), strict=True):
        torch.testing.assert_close(a, b, **(tolerance or {"rtol": 0, "atol": 0}))


def test_the_checkpoint_holds_the_adapter_and_names_its_base(base, lora):
    checkpoint = torch.load(lora / "checkpoints" / "last.ckpt", weights_only=True)
    for weights in (checkpoint["state_dict"], checkpoint["current_model_state"]):
        assert weights
        assert all(".parametrizations." in key and not key.endswith(".original") for key in weights)
    assert checkpoint["adapter_base"]["run_id"] == run_id(RunFolder(base).config())
    parts, _ = load_unmerged(lora)
    frozen = dict(flowdiff.load(base).named_parameters())
    for name, module, key, _ in deltas.changed(parts.denoiser):
        original = module.parametrizations[key].original
        assert torch.equal(original, frozen[name])  # neither the training nor the average has changed it
    assert torch.equal(parts.denoiser.sigma_data, flowdiff.load(base).sigma_data)


def test_the_loaded_model_is_merged_and_differs_from_its_base(base, lora):
    model = flowdiff.load(lora)
    assert not list(deltas.changed(model))
    parts, _ = load_unmerged(lora)
    same(model, parts.denoiser, rtol=1e-6, atol=1e-6)
    with deltas.disabled(parts.denoiser):
        same(parts.denoiser, flowdiff.load(base))
    assert not torch.equal(outputs(model)[1], outputs(flowdiff.load(base))[1])
    assert flowdiff.sample(model, 3, num_steps=2).shape == (3, 2)


@pytest.mark.slow
def test_before_its_first_step_an_adapter_is_its_base(base):
    engine = flowdiff.build(*RUN, "adapter=lora", f"adapter.run={base}")
    engine.measure()
    same(engine.denoiser.eval(), flowdiff.load(base))
    assert torch.equal(engine.denoiser.sample(4, seed=1), flowdiff.load(base).sample(4, seed=1))


@pytest.mark.slow
def test_a_run_that_is_resumed_ends_as_one_that_was_not(base, tmp_path, monkeypatch):
    given = [*RUN, "adapter=lora", f"adapter.run={base}", "adapter.dropout=0.3", "metrics.every_n_steps=2"]
    train(tmp_path / "whole", *given)
    step = Engine.training_step
    monkeypatch.setattr(
        Engine, "training_step", lambda self, b, i: [step(self, b, i), send(2)() if i == 4 else None][0]
    )
    with pytest.raises(Interrupted):
        train(tmp_path / "parts", *given)
    monkeypatch.setattr(Engine, "training_step", step)
    train(tmp_path / "parts", *given)
    same(flowdiff.load(tmp_path / "whole"), flowdiff.load(tmp_path / "parts"), rtol=1e-6, atol=1e-6)


def test_the_architecture_is_that_of_the_base_and_counts_for_the_identity(base):
    composed = config.compose([*(o for o in RUN if not o.startswith("flow")), "adapter=lora", f"adapter.run={base}"])
    config.check(composed)
    ours, theirs = config.resolved(composed), RunFolder(base).config()
    assert ours["flow"]["name"] == "linear_activation"
    assert ours["flow"] == theirs["flow"]
    assert run_id({**ours, "adapter": {**ours["adapter"], "rank": 3}}) != run_id(ours)
    assert run_id({**theirs, "adapter": {"name": "none"}}) == run_id(
        {k: v for k, v in theirs.items() if k != "adapter"}
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["adapter=lora"], "needs a run to adapt"),
        (["adapter=lora", "adapter.run=nowhere"], "adapter.run=nowhere cannot be adapted"),
        (["adapter=full", "adapter.run={base}", "flow=maf"], "whose flow is linear_activation"),
        (["adapter=full", "adapter.run={base}", "flow=linear_activation", "flow.n_flows=2"], "whose flow.n_flows is"),
        (["adapter=lora", "adapter.run={base}", "adapter.rank=999"], "larger than every layer"),
        (["adapter=lora", "adapter.run={base}", "adapter.target=attention"], "names no layer of the base"),
        (["adapter=lora", "adapter.run={base}", "adapter.target='('"], "neither a kind"),
        (["adapter=lora", "adapter.run={base}", "adapter.modules_to_save=[head]"], "has no such part"),
        (["adapter=lora", "adapter.run={base}", "dataset=digits"], "samples of shape 2"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(base, given, said):
    with pytest.raises(FlowdiffError) as error:
        flowdiff.build("dataset=two_moons", "logger=csv", *(one.format(base=base) for one in given))
    assert said in str(error.value)
    assert str(error.value).endswith(".")


@pytest.mark.slow
def test_an_adapter_of_another_base_is_refused(base, lora, tmp_path):
    train(tmp_path / "other", *RUN, "loss=nll", "seed=1")
    with pytest.raises(RunError, match="with other weights than those"):
        flowdiff.load(lora, moved={"adapter.run": str(tmp_path / "other")})
    with pytest.raises(RunError, match="give adapters of that run"):
        flowdiff.load(tmp_path / "other", adapters=[{"run": str(lora)}])
    with pytest.raises(RunError, match="not a run of an adapter"):
        flowdiff.load(base, adapters=[{"run": str(tmp_path / "other")}])


@pytest.mark.slow
def test_adapters_add_up_with_their_weights(base, lora):
    same(flowdiff.load(base, adapters=[{"run": str(lora)}]), flowdiff.load(lora))
    same(flowdiff.load(base, adapters=[{"run": str(lora), "weight": 0.0}]), flowdiff.load(base))
    halves = [{"run": str(lora), "weight": 0.7}, {"run": str(lora), "weight": 0.3}]
    same(flowdiff.load(base, adapters=halves), flowdiff.load(lora), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_an_adapter_is_written_and_read_in_the_files_of_peft(base, lora, tmp_path, capsys):
    assert command.main(["extract", str(lora), "--out", str(tmp_path / "files")]) == 0
    assert json.loads((tmp_path / "files" / peft_format.CONFIG).read_text())["r"] == 2
    same(flowdiff.load(base, adapters=[{"run": str(tmp_path / "files")}]), flowdiff.load(lora), rtol=1e-6, atol=1e-6)
    assert command.main(["merge", str(lora), "--out", str(tmp_path / "merged")]) == 0
    same(flowdiff.load(tmp_path / "merged"), flowdiff.load(lora))
    assert command.main(["merge", str(tmp_path / "files"), "--base", str(base), "--out", str(tmp_path / "again")]) == 0
    same(flowdiff.load(tmp_path / "again"), flowdiff.load(lora), rtol=1e-6, atol=1e-6)
    both = ["merge", str(tmp_path / "files"), str(lora), "--weights", "0.5", "0.5", "--out", str(tmp_path / "both")]
    assert command.main(both) == 0
    same(flowdiff.load(tmp_path / "both"), flowdiff.load(lora), rtol=1e-5, atol=1e-5)
    assert command.main(["list", str(lora)]) == 0
    assert "lora rank 2" in capsys.readouterr().out
    with pytest.raises(ConfigurationError, match="one for each"):
        command.main(["merge", str(lora), "--weights", "1", "2", "--out", str(tmp_path / "x")])
    for refused in (["merge", str(base), "--out", str(tmp_path / "x")], ["extract", str(base)]):
        with pytest.raises(RunError):
            command.main(refused)
    with pytest.raises(ConfigurationError, match="give --base"):
        command.main(["merge", str(tmp_path / "files"), "--out", str(tmp_path / "x")])


@pytest.mark.slow
@pytest.mark.parametrize(
    "network", [["network=mlp", "scaling=edm"], ["network=unet", "scaling=edm"], ["network=score_flow", "flow=realnvp"]]
)
def test_peft_and_flowdiff_read_each_others_files(network, tmp_path):
    import peft

    small = [o for o in TINY_DIGITS if not o.startswith("flow")]
    train(tmp_path / "base", *small, *HEALTHLESS, *network)
    run = [
        *small,
        *HEALTHLESS,
        "adapter=lora",
        f"adapter.run={tmp_path / 'base'}",
        "adapter.modules_to_save=[conditioner]",
    ]
    train(tmp_path / "lora", *run, "adapter.rank=4", "optimizer.lr=0.1", "optimizer.warmup_steps=0")
    command.main(["extract", str(tmp_path / "lora")])
    ours, base = flowdiff.load(tmp_path / "lora"), flowdiff.load(tmp_path / "base")
    (x,) = normal((4, 1, 8, 8), dtype=torch.float32)
    sigma = torch.ones(4)
    D = ours(x, sigma, ours.cond_of(torch.arange(4)))
    assert (D - base(x, sigma, base.cond_of(torch.arange(4)))).abs().max() > 1e-3
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "lora" / "adapter").eval()
    torch.testing.assert_close(theirs(x, sigma, base.cond_of(torch.arange(4))), D, rtol=1e-5, atol=1e-5)
    # And an adapter that peft has made.
    settings = peft.LoraConfig(r=3, lora_alpha=5, use_rslora=True, target_modules=r".*(inner|to_q|conv1)")
    made = peft.get_peft_model(flowdiff.load(tmp_path / "base"), settings).eval()
    for name, p in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.1)
    made.save_pretrained(str(tmp_path / "made"))
    read = flowdiff.load(tmp_path / "base", adapters=[{"run": str(tmp_path / "made")}])
    cond = read.cond_of(torch.arange(4))
    torch.testing.assert_close(read(x, sigma, cond), made(x, sigma, cond), rtol=1e-5, atol=1e-5)
