"""Messages on common slips of the command line."""

import pytest
import torch

from flowdiff import build, config
from flowdiff.cli.sample import offer_settings_of_run
from flowdiff.errors import ConfigurationError


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("seed=0,1", "seed=0,1 gives seed several values, and this is one run: a sweep needs -m, "
         "and a list needs brackets, seed=[0,1]."),
        ("seed=range(0,3)", "seed=range(0,3) gives seed several values, and this is one run: a sweep needs -m."),
        ("flow=realnvp,spline", "flow=realnvp,spline gives flow several values"),
    ],
)  # fmt: skip
def test_several_values_without_m(override, said):
    with pytest.raises(ConfigurationError) as raised:
        config.compose([override])
    assert str(raised.value).startswith(said)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("network=unet", "network=unet cannot be changed here, because a trained run keeps its network: remove it"),
        ("flow.n_flows=3", "flow.n_flows=3 cannot be changed here, because a trained run keeps its flow"),
        ("trainer.max_steps=3", "trainer.max_steps=3 cannot be changed here, because a trained run keeps its trainer"),
        ("force=true", "force=true is a setting of train.py, and sample.py has no force: remove it."),
        ("sed=1", "sed is not a setting: did you mean 'seed'"),
        ("netwrk=unet", "netwrk is not a setting"),
    ],
)
def test_settings_of_training_are_refused_where_a_run_is_sampled(override, said):
    offer_settings_of_run(["--help"])
    with pytest.raises(ConfigurationError) as raised:
        config.compose([override], "sample")
    assert str(raised.value).startswith(said)


@pytest.mark.parametrize(
    ("key", "value"),
    [("optimizer.lr", "0.002"), ("trainer.max_steps", "10"), ("trainer.gradient_clip_val", "1.0"), ("seed", "3")],
)
def test_a_number_that_is_text_is_called_text(key, value, monkeypatch):
    monkeypatch.setenv("NUMBER", value)
    with pytest.raises(ConfigurationError) as raised:
        config.check(config.compose([f"{key}=${{oc.env:NUMBER}}"]))
    assert str(raised.value).startswith(f"{key}={value} is not allowed: ")
    assert f"; '{value}' is text here: remove its quotes, or decode a variable by ${{oc.decode:${{oc.env:" in str(
        raised.value
    )
    config.check(config.compose([f"{key}=${{oc.decode:${{oc.env:NUMBER}}}}"]))


def test_text_that_is_no_number_is_not():
    with pytest.raises(ConfigurationError) as raised:
        config.check(config.compose(["optimizer.lr=fast"]))
    assert "text here" not in str(raised.value)


def test_a_list_of_classes_of_the_wrong_length():
    model = build("network=mlp", "scaling=edm").denoiser
    with pytest.raises(ConfigurationError) as raised:
        model.labels(64, [0, 1, 2])
    assert str(raised.value) == (
        "class_label=[0, 1, 2] names 3 classes, and 64 samples are drawn: give one class for all of them, or a list of "
        "64 classes."
    )
    with pytest.raises(ConfigurationError, match="out of range"):
        model.labels(2, [0, 10])
    assert torch.equal(model.labels(2, [0, 9]), torch.tensor([0, 9]))
