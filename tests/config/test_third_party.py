"""What Hydra, OmegaConf and Lightning refuse late, or not at all, is refused in one sentence before anything starts."""

import pytest
from omegaconf import OmegaConf

from flowdiff import config
from flowdiff.config.trainer_arguments import ARGUMENTS, SET_BY_FLOWDIFF, seconds_of
from flowdiff.errors import ConfigurationError
from flowdiff.launch.preflight import compose_all
from flowdiff.launch.sweep import rehearse
from flowdiff.runs.run_folder import RunFolder

REFUSED = [
    ("trainer.max_time=4", "trainer.max_time=4 is not allowed: it must be a duration DD:HH:MM:SS"),
    ("trainer.max_time=00:00:00:00", "trainer.max_time=00:00:00:00 is not allowed: it must be a duration"),
    ("trainer.val_check_interval=0.5", "trainer.val_check_interval=0.5 is not allowed: it must be an integer ≥ 1"),
    ("+trainer.limit_train_batches=0.5", "trainer.limit_train_batches=0.5 is not allowed: it must be an integer"),
    ("trainer.limit_val_batches=1.5", "trainer.limit_val_batches=1.5 is not allowed"),
    ("trainer.detect_anomaly=1", "trainer.detect_anomaly=1 is not allowed: it must be true or false"),
    ("+trainer.max_epochs=abc", "trainer.max_epochs=abc is not allowed: it must be an integer ≥ 1, -1 or null"),
    ("+trainer.min_steps=abc", "trainer.min_steps=abc is not allowed: it must be an integer ≥ 0 or null"),
    ("trainer.deterministic=maybe", "trainer.deterministic=maybe is not allowed: it must be true, false, warn or null"),
    ("trainer.gradient_clip_val=true", "trainer.gradient_clip_val=True is not allowed: it must be a number > 0"),
    ("trainer.gradient_clip_algorithm=abc", "trainer.gradient_clip_algorithm=abc is not allowed: it must be norm"),
    ("+trainer.fast_dev_run=true", "trainer.fast_dev_run cannot be set: it would count one step as a complete run"),
    ("+trainer.enable_progress_bar=false", "trainer.enable_progress_bar cannot be set: flowdiff shows its own bar"),
    ("+trainer.devices=2", "trainer.devices cannot be set: the accelerator has this setting; set accelerator.devices"),
    ("trainer=3", "trainer=3 is not allowed: it is a group of settings"),
    ("seed=4294967296", "seed=4294967296 is not allowed: it must be an integer 0 … 4294967295"),
    ("tags=[1,2]", "tags=[1, 2] is not allowed: it must be a list of texts of 1 to 64 characters"),
    (f"tags=[{'a' * 65}]", "is not allowed: it must be a list of texts of 1 to 64 characters"),
    ("tags=['']", "tags=[''] is not allowed"),
    ("plugins=[null]", "plugins=None is not allowed|plugins"),
    ("guidance=null", "guidance=null is not allowed: guidance takes the name of an option; allowed are autoguidance"),
    ("logger=3", "logger=3 is not allowed: logger takes the name of an option; allowed are csv"),
    ("++sampler=heun", "++sampler=heun is not allowed: an option of a config group is chosen without +, sampler=heun"),
    ("~seed", "seed is missing: this command needs it; remove ~seed"),
    ("~dataset", "dataset is missing: this command needs it; remove ~dataset"),
    ("~guidance", "guidance is missing"),
    ("~guidance.name", "it is a group of settings with a name; choose an option, guidance=…"),
    ("~flow", "flow is missing: network=score_flow needs it; remove ~flow"),
    ("~trainer", "trainer is missing"),
    ("~trainer.gradient_clip_val", "trainer.gradient_clip_val is missing: a run needs it"),
    ("+foo=1", "foo is not a setting: did you mean"),
    ("seed=${oc.env:NOWHERE}", "seed holds a ${…} that cannot be resolved (Environment variable 'NOWHERE' not found)"),
    ("tags=[ä]", "it holds a character that needs quotes"),
]


@pytest.mark.parametrize(("override", "sentence"), REFUSED)
def test_it_is_refused_in_one_sentence(override, sentence):
    with pytest.raises(ConfigurationError) as error:
        config.check(config.compose([override]))
    assert any(words in str(error.value) for words in sentence.split("|")), str(error.value)
    assert "\n" not in str(error.value)


def test_two_mistakes_are_one_sentence():
    for override in ("debug={}", "experiment=null"):
        with pytest.raises(ConfigurationError, match=r"^(scaling|foo|debug)\S* is not"):
            config.compose([override, "scaling.foo=null"])


TAKEN = [
    "trainer.max_time=00:01:30:00",
    "trainer.max_time={hours: 1}",
    "trainer.val_check_interval=00:00:00:02",
    "trainer.val_check_interval=null",
    "+trainer.limit_train_batches=3",
    "trainer.limit_val_batches=0.5",
    "trainer.deterministic=warn",
    "+trainer.max_epochs=-1",
    "seed=4294967295",
    "tags=['2026','ä b']",
    "experiment=null",
    "debug=null",
]


@pytest.mark.parametrize("override", TAKEN)
def test_it_is_taken(override):
    config.check(config.compose([override]))


def test_every_argument_of_lightnings_trainer_is_taken_or_refused_with_a_reason():
    import inspect

    from lightning.pytorch import Trainer

    known = set(inspect.signature(Trainer).parameters)
    assert known <= ARGUMENTS.keys() | SET_BY_FLOWDIFF.keys()
    assert not ARGUMENTS.keys() & SET_BY_FLOWDIFF.keys()
    assert config.trainer_defaults().keys() <= ARGUMENTS.keys()


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [("01:02:03:04", 93784), ({"hours": 2, "minutes": 30}, 9000), ("1:2:3", None), (4, None), ({"years": 1}, None)],
)
def test_a_duration_in_seconds(duration, seconds):
    assert seconds_of(duration) == seconds


def test_an_error_that_no_check_foresees_is_the_line_of_its_job(monkeypatch):
    monkeypatch.setattr("flowdiff.training.assembly.assemble_run", lambda settings: settings["nothing"])
    settings = config.resolved(config.compose(["accelerator=cpu"]))

    def compose(overrides):
        if overrides == ["bad"]:
            rehearse(settings, RunFolder("nowhere"))

    with pytest.raises(
        ConfigurationError, match=r"1 of 2 jobs .*\n  bad: the run cannot be built \(KeyError: 'nothing'"
    ):
        compose_all([["bad"], ["good"]], compose)


def test_a_value_error_from_inside_of_hydra_is_a_sentence_and_ours_is_not():
    with pytest.raises(ConfigurationError, match="unsupported type"), config.hydra_errors():
        OmegaConf.create(3.5)
    with pytest.raises(ZeroDivisionError), config.hydra_errors():
        1 / 0  # noqa: B018
