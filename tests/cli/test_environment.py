"""Variables of other launchers and terminals without UTF-8 change neither the run nor its files."""

import json
import os
import subprocess
import sys

import pytest
from cli_process import check_mistakes, fresh, script, succeed
from runs import TINY, train
from sweep_workers import job
from sweep_workers import train as pretend

from flowdiff.errors import ConfigurationError, RunError
from flowdiff.evaluation.ranks import joined
from flowdiff.runs.ownership import LOCK_FILE, Busy, owned
from flowdiff.runs.run_folder import RunFolder
from flowdiff.training.assembly import load_parts

ASCII = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
LEFT_OVER = {"RANK": "1", "LOCAL_RANK": "", "WORLD_SIZE": "2", "SLURM_NTASKS": "4", "SLURM_PROCID": "0"}


def test_a_run_among_leftovers_and_without_utf8_is_complete_and_written_in_utf8(tmp_path):
    done = fresh("train", *TINY, "hydra.run.dir=r", "tags=['ä']", cwd=tmp_path, **ASCII, **LEFT_OVER)
    assert done.returncode == 0, done.stderr
    assert "RANK=1 LOCAL_RANK= WORLD_SIZE=2 is ignored" in done.stderr
    assert "| fd_data" in done.stdout  # the table, in the characters that the terminal has
    folder = RunFolder(tmp_path / "r")
    assert folder.config()["tags"] == ["ä"]
    assert "tags=['ä']" in folder.result()["overrides"]
    assert folder.is_complete
    assert folder.metrics.is_file()
    assert not (folder.path / LOCK_FILE).exists()
    report = [sys.executable, "-m", "flowdiff", "report", "r", "--out", "report"]
    env = {**os.environ, **ASCII}
    made = subprocess.run(report, cwd=tmp_path, env=env, capture_output=True, encoding="utf-8", check=False)
    assert made.returncode == 0, made.stderr
    assert "?" in made.stdout  # for what ASCII lacks
    assert "±" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    assert (tmp_path / "report" / "report.csv").is_file()


def test_sampling_among_leftovers_and_without_a_gpu(tmp_path, monkeypatch):
    train(tmp_path / "r", *TINY)
    for left_over in ({"WORLD_SIZE": "2"}, {"WORLD_SIZE": "", "RANK": ""}):
        succeed("sample", "run=r", "num_samples=2", "device=cpu", cwd=tmp_path, **left_over)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with pytest.raises(ConfigurationError, match="device=cuda needs a GPU that torch can use, and there are 0 here"):
        load_parts(tmp_path / "r", "cuda")


def test_processes_that_do_not_find_each_other_say_so(monkeypatch):
    for key in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(key, raising=False)
    with pytest.raises(RunError, match=r"do not find each other .*: start them by torchrun, or unset RANK"), joined():
        pass


def test_the_second_slurm_task_of_a_single_run_is_refused(tmp_path, monkeypatch):
    task = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1", "SLURM_NODEID": "0"}
    for key, value in task.items():
        monkeypatch.setenv(key, value)
    second = job(tmp_path / "s" / "run")
    with owned(second.path), pytest.raises(Busy, match="is being written by process"):
        second.execute(pretend)
    assert second.execute(pretend) is not None


def test_options_between_overrides_and_null_choices(tmp_path):
    mistakes = [
        (["seed=3", "-m", "--cfg", "job", "seed=1,2"], "--cfg prints the config of one run, and -m starts several"),
        (["hydra.run.dir=r", "logger=null"], "logger=null is not allowed: logger takes the name of an option"),
    ]
    check_mistakes("train", mistakes, tmp_path)
    shown = script("train", "seed=3", "experiment=null", "--cfg", "job", "debug=null", cwd=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert "seed: 3" in shown.stdout


def test_arguments_of_the_trainer_from_the_environment_are_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("PL_TRAINER_FAST_DEV_RUN", "1")
    with pytest.raises(ConfigurationError, match="PL_TRAINER_FAST_DEV_RUN=1 in the environment would change the trai"):
        train(tmp_path / "r", *TINY)


def test_a_bad_job_does_not_take_the_sweep_down_unseen(tmp_path):
    done = script("train", *TINY, "-m", "trainer.max_time=4,00:00:01:00", cwd=tmp_path)
    assert (done.returncode, "Traceback" in done.stderr) == (2, False)
    assert "trainer.max_time=4: trainer.max_time=4 is not allowed: it must be a duration" in done.stderr
    assert not list(tmp_path.rglob("config.yaml"))


def test_validation_by_the_clock_saves_and_ends(tmp_path):
    made = train(tmp_path / "r", *TINY, "trainer.val_check_interval=00:00:00:01", "trainer.max_steps=4")
    assert made["steps"] == 4
    assert json.loads((tmp_path / "r" / "result.json").read_text())["steps"] == 4
