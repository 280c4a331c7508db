"""W&B's own variables beat the defaults of the config, and a setting that is given beats them."""

import pytest

from flowdiff import config, registry
from flowdiff.errors import ConfigurationError


@pytest.fixture(autouse=True)
def _no_key(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for key in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT", "WANDB_ENTITY", "WANDB_DIR"):
        monkeypatch.delenv(key, raising=False)


def test_project_and_entity(monkeypatch):
    assert config.resolved(config.compose())["logger"]["project"] == "flowdiff"
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_ENTITY", "team")
    made = config.resolved(config.compose(["logger.entity=me"]))["logger"]
    assert (made["project"], made["entity"]) == ("theirs", "me")
    assert registry.create("logger", "wandb").entity == "team"


@pytest.mark.parametrize(
    ("variable", "mode"), [("offline", "offline"), ("disabled", "disabled"), ("dryrun", "offline"), ("", "online")]
)
def test_the_mode(monkeypatch, variable, mode):
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("WANDB_MODE", variable)
    assert registry.create("logger", "wandb")._resolved_mode() == mode
    assert registry.create("logger", "wandb", mode="online")._resolved_mode() == "online"


@pytest.mark.parametrize(
    ("variables", "sentence"),
    [
        ({"WANDB_MODE": "online"}, "WANDB_MODE=online needs a W&B API key and there is none"),
        ({"WANDB_MODE": "abc"}, "WANDB_MODE=abc is not allowed: set it to online, offline or disabled"),
        ({"WANDB_PROJECT": "a/b"}, "logger.project=a/b is not allowed: W&B takes 1 to 128 characters"),
    ],
)
def test_what_wandb_does_not_take_is_refused_before_anything(monkeypatch, variables, sentence):
    for key, value in variables.items():
        monkeypatch.setenv(key, value)
    with pytest.raises(ConfigurationError, match=sentence):
        config.check(config.compose())


def test_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    tracker = registry.create("logger", "wandb", mode="offline")
    run = {"run_id": "a", "name": "a", "sweep": None, "tags": [], "config": {}, "resumed": False}
    tracker.start(tmp_path / "run", run)
    tracker.finish()
    assert list((tmp_path / "elsewhere").glob("wandb/offline-run-*/run-a.wandb"))
    assert not (tmp_path / "run").exists()
