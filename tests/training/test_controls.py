"""Runs that read hints: controls of another run, and models that are trained with the hint from scratch."""

import pytest
import torch
from runs import TINY_DIGITS, settings, train

import flowdiff
from flowdiff.errors import ConfigurationError, FlowdiffError, RunError
from flowdiff.evaluation.obedience import obedience
from flowdiff.models.nn import control
from flowdiff.runs.identity import run_id
from flowdiff.runs.run_folder import RunFolder
from flowdiff.testing.inputs import perturb
from flowdiff.training.assembly import load_unmerged
from flowdiff.training.engine import Engine

NO_HEALTH = [f"metrics.health.{key}=false" for key in ("denoising", "eigenvalue", "fokker_planck")]
RUN = [*TINY_DIGITS, *NO_HEALTH, "metrics.periodic_num_samples=4"]
UNET = ["network=unet", "scaling=edm", "network.channels=[8,8]", "network.norm_groups=4"]


def untrained(folder, *overrides: str):
    """A run folder whose model has random weights, as if it were trained."""
    run = RunFolder(folder)
    run.write_config(settings(*overrides))
    engine = Engine.of(run.config())
    engine.measure()
    perturb(engine.denoiser, 0.2)
    torch.save({"state_dict": engine.state_dict(), "global_step": 0}, run.checkpoint)
    return run.path


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("base"), *RUN)


@pytest.fixture(scope="module")
def controlled(base, tmp_path_factory):
    """A control whose parameters are far from the start."""
    folder = tmp_path_factory.mktemp("control")
    run = RunFolder(folder)
    run.write_config(settings(*RUN, "adapter=control", f"adapter.run={base}", "adapter.hint=mask"))
    engine = Engine.of(run.config())
    engine.measure()
    for one in control.controls(engine.denoiser):
        perturb(one, 0.2)
    torch.save({"state_dict": engine.state_dict(), "global_step": 0}, run.checkpoint)
    return folder


def drawn(model, **options):
    return model.sample(6, seed=2, label=[0, 1, 2, 3, 4, 5], **options)


def guided(*overrides: str):
    """The model of a configuration in its guidance."""
    model = flowdiff.build(*overrides).denoiser
    return model.sampling.guide(model)


def test_before_its_first_step_a_control_is_its_base_and_holds_the_hints_of_test_images(base):
    engine = flowdiff.build(*RUN, "adapter=control", f"adapter.run={base}", "adapter.hint=low_resolution")
    engine.measure()
    model, theirs = engine.denoiser.eval(), flowdiff.load(base)
    assert torch.equal(drawn(model), drawn(theirs))
    x = engine.data.centre(engine.data.test[:4].x)
    sigma, label = torch.full((4,), 0.1), torch.arange(4)
    hint = model.hints(4)
    cond = model.with_hint(model.cond_of(label), hint)
    assert torch.equal(model.log_prob(x, sigma, cond), theirs.log_prob(x, sigma, theirs.cond_of(label)))
    assert hint.shape == (4, 1, 8, 8)
    assert len(model.hinting.label) == len(engine.data.test)
    assert all(not p.requires_grad for p in theirs.parameters())
    trained = {id(p) for one in control.controls(model) for p in one.parameters()}
    assert {id(p) for p in engine.parameters() if p.requires_grad} == trained


@pytest.mark.slow
def test_strength_and_weights_of_several_controls(base, controlled):
    model, plain = flowdiff.load(controlled), flowdiff.load(base)
    assert (drawn(model) - drawn(plain)).abs().max() > 1e-3
    assert torch.equal(drawn(flowdiff.load(controlled, moved={"adapter.strength": 0.0})), drawn(plain))
    added = flowdiff.load(base, adapters=[{"run": str(controlled), "weight": 1.0}])
    assert torch.equal(drawn(added), drawn(model))
    both = flowdiff.load(base, adapters=[{"run": str(controlled), "weight": w} for w in (0.7, 0.0)])
    half = flowdiff.load(controlled, moved={"adapter.strength": 0.7})
    assert both.hinting.shape == (2, 8, 8)
    assert torch.equal(drawn(both), drawn(half))


@pytest.mark.slow
def test_samples_obey_given_hints_in_turn_and_only_of_the_right_size(controlled):
    model = flowdiff.load(controlled)
    asked = model.hints(2)
    found = flowdiff.sample(model, 4, seed=2, label=0, hint=asked, num_steps=2, clip=False)
    assert found.shape == (4, 1, 8, 8)
    alone = flowdiff.sample(model, 2, seed=2, label=0, hint=asked, num_steps=2, clip=False)
    # Sums of another batch size round differently, and two unclipped steps of random weights reach values of hundreds.
    torch.testing.assert_close(found[:2], alone, rtol=2e-3, atol=0.05)
    assert not torch.equal(found, flowdiff.sample(model, 4, seed=2, label=0, hint=-asked, num_steps=2))
    with pytest.raises(ConfigurationError, match="reads hints of 1×8×8"):
        model.sample(2, hint=torch.zeros(1, 1, 4, 4))
    numbers = obedience(model, 4, seed=1)
    assert set(numbers) == {"mask_agreement", "mask_agreement_shuffled"}
    assert 0 <= numbers["mask_agreement"] <= 1


@pytest.mark.slow
@pytest.mark.parametrize("network", [[], UNET, ["network=mlp", "scaling=edm"]], ids=["flow", "unet", "mlp"])
def test_a_control_trains_and_its_checkpoint_holds_it_alone(network, tmp_path):
    given = [one for one in RUN if not network or not one.startswith("flow")]
    base = untrained(tmp_path / "base", *given, *network)
    scaling = [one for one in network if one.startswith("scaling")]
    numbers = train(tmp_path / "run", *given, *scaling, "adapter=control", f"adapter.run={base}", "adapter.hint=edges")
    assert {"edge_f1", "edge_f1_shuffled"} <= set(numbers["metrics"])
    assert "edge_f1" in (tmp_path / "run" / "metrics.csv").read_text().splitlines()[0]
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(".controls." in key or key.endswith("_extra_state") for key in checkpoint["state_dict"])
    parts, _ = load_unmerged(tmp_path / "run")
    frozen = dict(flowdiff.load(base).named_parameters())
    for name, p in parts.denoiser.named_parameters():
        assert ".controls." in name or torch.equal(p, frozen[name]), name
    learned = [p for name, p in parts.denoiser.named_parameters() if ".controls." in name and "outer" in name]
    assert any(bool(p.any()) for p in learned)


@pytest.mark.slow
def test_a_model_is_trained_with_the_hint_from_scratch_and_adapted(tmp_path):
    numbers = train(tmp_path / "hinted", *RUN, "hint=mask")
    assert "mask_agreement" in numbers["metrics"]
    model = flowdiff.load(tmp_path / "hinted")
    assert model.hinting.shape == (1, 8, 8)
    assert drawn(model).shape == (6, 1, 8, 8)
    train(tmp_path / "lora", *RUN, "adapter=lora", f"adapter.run={tmp_path / 'hinted'}", "adapter.rank=2")
    assert flowdiff.load(tmp_path / "lora").hinting.shape == (1, 8, 8)


def test_a_run_without_a_hint_keeps_its_id():
    given = settings(*RUN)
    assert run_id(given) == run_id({key: value for key, value in given.items() if key != "hint"})
    assert run_id({**given, "hint": {"name": "grey"}}) != run_id(given)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["adapter=control"], "needs a run to adapt"),
        (["adapter=control", "adapter.run=nowhere"], "adapter.run=nowhere cannot be adapted"),
        (["adapter=control", "adapter.run={base}", "adapter.hint=edgs"], "did you mean 'edges'"),
        (["adapter=control", "adapter.run={base}", "adapter.hint={{factor: 2}}"], "does not name a hint"),
        (["adapter=control", "adapter.run={base}", "adapter.hint={{name: low_resolution, factor: 3}}"], "factor=3"),
        (["adapter=control", "adapter.run={base}", "adapter.hint=class_map"], "for dataset=captioned_digits"),
        (["adapter=control", "adapter.run={base}", "adapter.strength=-1"], "adapter.strength=-1"),
        (["adapter=control", "adapter.run={base}", "flow=maf"], "whose flow is linear_activation"),
        (["adapter=control", "adapter.run={base}", "hint=grey"], "whose hint is none"),
        (["adapter=control", "adapter.run={control}"], "is itself a run of adapter=control"),
        (["hint=edges", "hint.low=0.5"], "is above high"),
        (["hint=edges", "dataset=two_moons"], "take a dataset of images"),
        (["hint=mask", "guidance=autoguidance", "guidance.run={base}"], "does not know the hints"),
    ],
)
def test_what_does_not_fit_is_refused_in_a_sentence(base, controlled, given, said):
    given = [one.format(base=base, control=controlled) for one in given]
    with pytest.raises(FlowdiffError) as error:
        guided("logger=csv", *given)
    assert said in str(error.value)
    assert str(error.value).endswith(".")


@pytest.mark.slow
def test_controls_of_other_bases_and_hinted_bases_are_refused(base, controlled, tmp_path):
    untrained(tmp_path / "other", *RUN, "seed=1")
    with pytest.raises(RunError, match="give adapters of that run"):
        flowdiff.load(tmp_path / "other", adapters=[{"run": str(controlled)}])
    with pytest.raises(RunError, match=r"adapter.run=.* cannot be adapted"):
        flowdiff.load(controlled, moved={"adapter.run": str(tmp_path / "gone")})
