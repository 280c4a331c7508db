"""metrics.csv drops the rows that a resumed run repeats; W&B's files hold each run separately."""

import numpy as np
import pytest
import wandb
from PIL import Image
from wandb_files import offline_runs

from flowdiff import registry
from flowdiff.errors import ConfigurationError, RunError
from flowdiff.runs.identity import run_id
from flowdiff.runs.metrics_csv import MetricsCSV


def test_rows_columns_and_truncation(tmp_path):
    csv = MetricsCSV(tmp_path / "metrics.csv")
    csv.log_metrics({"train_loss": 0.5, "epoch": 0}, 10)
    csv.log_metrics({"train_loss": 0.4, "val_loss": 0.6}, 20)
    csv.log_metrics({"epoch": 0}, 25)  # nothing was measured: no row
    csv.log_metrics({"train_loss": 0.3}, 30)
    assert csv.path.read_text() == "step,train_loss,val_loss\n10,0.5,\n20,0.4,0.6\n30,0.3,\n"
    again = MetricsCSV(tmp_path / "metrics.csv")
    again.truncate(20)
    again.log_metrics({"val_loss": 0.2}, 40)
    rows = ("10", "0.5", ""), ("20", "0.4", "0.6"), ("40", "", "0.2")
    assert again.rows() == [dict(zip(("step", "train_loss", "val_loss"), row, strict=True)) for row in rows]


def test_a_half_written_row_is_dropped(tmp_path):
    csv = MetricsCSV(tmp_path / "metrics.csv")
    csv.log_metrics({"train_loss": 0.25}, 1)
    csv.log_metrics({"train_loss": 0.125}, 20)
    text = csv.path.read_bytes()
    for cut in range(2, len(b"20,0.125\r\n") + 1):
        csv.path.write_bytes(text[:-cut])
        again = MetricsCSV(csv.path)
        again.truncate(100)
        assert [row["step"] for row in again.rows()] == ["1"]


def test_wandb_is_online_only_with_a_key(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    auto = registry.create("logger", "wandb")
    assert auto._resolved_mode() == "offline"
    with pytest.raises(ConfigurationError, match=r"logger.mode=online needs a W&B API key and there is none"):
        registry.create("logger", "wandb", mode="online")
    (tmp_path / ".netrc").write_text("machine api.wandb.ai\n  login user\n  password secret\n")
    (tmp_path / ".netrc").chmod(0o600)
    assert auto._resolved_mode() == "online"
    (tmp_path / ".netrc").unlink()
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    assert auto._resolved_mode() == "online"
    assert registry.create("logger", "wandb", mode="disabled")._resolved_mode() == "disabled"


def about(run_id, **changed):
    config = {"seed": 3, "flow": {"name": "realnvp", "n_flows": 2}}
    given = {"run_id": run_id, "name": f"name of {run_id}", "sweep": "s", "tags": ["a", "b"], "config": config}
    return {**given, "resumed": False, **changed}


def test_two_runs_of_one_process_do_not_leak_into_each_other(tmp_path):
    trackers = {name: registry.create("logger", "wandb", mode="offline") for name in ("one", "two")}
    loggers = {}
    for name, tracker in trackers.items():
        (tmp_path / name).mkdir()
        (loggers[name],) = tracker.start(tmp_path / name, about(name))
    for step in range(3):  # both runs are open
        loggers["one"].log_metrics({"train_loss": 0.1 * step, "only_one": 1.0}, step)
        loggers["two"].log_metrics({"val_loss": 0.2 * step}, step)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(tmp_path / "samples.png")
    trackers["one"].pictures({"samples": tmp_path / "samples.png"}, 3)
    trackers["two"].finish(exit_code=1)
    trackers["one"].finish()
    assert wandb.run is None
    (one,), (two,) = offline_runs(tmp_path / "one"), offline_runs(tmp_path / "two")
    assert (one.run_id, one.name, one.group, one.tags) == ("one", "name of one", "s", ["a", "b"])
    assert (two.run_id, two.name, two.exit_code, one.exit_code) == ("two", "name of two", 1, 0)
    assert one.config["flow"] == two.config["flow"] == {"name": "realnvp", "n_flows": 2}
    assert {"train_loss", "only_one", "samples"} <= one.curves
    assert "val_loss" in two.curves
    assert not {"train_loss", "only_one", "samples"} & (two.curves | set(two.summary))


def test_the_minimum_distance_is_logged_beside_the_final_one(tmp_path):
    tracker = registry.create("logger", "wandb", mode="offline")
    (logger,) = tracker.start(tmp_path, about("run"))
    for step, distance in enumerate([5.0, 2.0, 3.0]):
        tracker.minimise({"fd_cnn": distance})
        logger.log_metrics({"fd_cnn": distance}, step)
    tracker.summary({"fd_cnn": 4.0, "bpd": 3.5, "parameters": 10})
    tracker.preempting()
    tracker.finish()
    (run,) = offline_runs(tmp_path)
    expected = {"fd_cnn": 4.0, "fd_cnn_min": 2.0, "bpd": 3.5, "parameters": 10}
    assert {key: run.summary[key] for key in expected} == expected
    assert run.minimised == {"fd_cnn", "val_loss"}
    assert run.preempting


@pytest.mark.parametrize("asked", [False, True])
def test_a_checkpoint_becomes_an_artifact_on_request_without_a_copy(tmp_path, monkeypatch, asked):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "last.ckpt").write_bytes(b"weights")
    tracker = registry.create("logger", "wandb", mode="offline", checkpoint=asked)
    tracker.start((tmp_path / "run").relative_to(tmp_path), about("run"))
    tracker.checkpoint((tmp_path / "last.ckpt").relative_to(tmp_path))
    tracker.finish()
    (run,) = offline_runs(tmp_path / "run")
    assert run.artifacts == ({"checkpoint-run": str(tmp_path / "last.ckpt")} if asked else {})


def test_an_error_of_wandb_is_one_sentence(tmp_path):
    tracker = registry.create("logger", "wandb", mode="offline")
    with pytest.raises(RunError, match=r"W&B cannot open the run \(.*\): fix this, or set logger.mode=offline"):
        tracker.start(tmp_path, about("an id: with/characters that W&B does not allow"))
    tracker.finish(exit_code=1)  # nothing is open


def test_a_tracker_that_logs_nothing_accepts_everything(tmp_path):
    for tracker in (registry.create("logger", "csv"), registry.create("logger", "wandb", mode="disabled")):
        tracker.start(tmp_path, about("run"))
        tracker.minimise({"fd_cnn": 1.0})
        tracker.summary({"fd_cnn": 1.0})
        tracker.checkpoint(tmp_path / "last.ckpt")
        tracker.preempting()
        tracker.finish()
    assert not (tmp_path / "wandb").exists()


def test_the_logger_does_not_change_the_run_id():
    config = {"seed": 0, "logger": {"name": "wandb", "checkpoint": False}}
    assert run_id(config) == run_id({**config, "logger": {"name": "wandb", "checkpoint": True}})
    assert run_id(config) != run_id({**config, "seed": 1})
