"""A folder is used, continued or emptied only after its identity has been compared with that of the job."""

import json
from dataclasses import replace

import pytest
from sweep_workers import job, train

from flowdiff.errors import ConfigurationError, RunError
from flowdiff.runs.identity import id_of_folder, label_of_folder, run_id
from flowdiff.runs.job import Job
from flowdiff.runs.run_folder import Label, RunFolder


def contents(folder):
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def run(tmp_path):
    """A complete run with seed 1, and a file of the user in its folder."""
    given = replace(job(tmp_path / "run", seed=1), sweep=None)
    given.execute(train)
    given.folder.checkpoint.write_text("weights")
    (given.path / "notes.txt").write_text("mine")
    return given


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_of_another_run_is_refused_and_stays_as_it_is(run, force):
    other = replace(job(run.path, "slow", seed=2), sweep=None)
    before = contents(run.path)
    said = (
        r"run holds another run \(seed is 1 there and 2 here; behaviour is finish there and slow here\): set "
        r"hydra.run.dir to another folder, or move .*run away"
    )
    for refused in (lambda: other.verdict("all", force), lambda: other.prepare(force), lambda: other.execute(train)):
        with pytest.raises(RunError, match=said):
            refused()
    assert contents(run.path) == before
    assert run.verdict("failed", force) == ("run" if force else "complete")


@pytest.mark.parametrize("config", ["version: 3", "day: 2026-01-01", "- a", "seed: ["])
def test_somebody_elses_config_is_not_that_of_this_run(tmp_path, config):
    (tmp_path / "config.yaml").write_text(config)
    for force in (False, True):
        with pytest.raises(RunError, match=r"holds another run|holds a config.yaml that is not that of this run"):
            job(tmp_path).check_folder(force)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


def test_a_damaged_config_in_our_own_folder_is_written_again(tmp_path):
    given = job(tmp_path / "sweep" / "run")
    given = replace(given, path=given.path.with_name(f"seed-0-{given.label.run_id}"))
    given.path.mkdir(parents=True)
    given.folder.config_file.write_text("seed: [")
    given.check_folder(force=True)
    given.execute(train)
    assert given.folder.config() == given.config


def test_results_without_a_config_are_nobodys(tmp_path):
    (tmp_path / "metrics.csv").write_text("step\n")
    for force in (False, True):
        with pytest.raises(RunError, match=r"holds metrics.csv, but no config.yaml that says which run wrote them"):
            job(tmp_path).check_folder(force)


def test_force_refuses_a_folder_with_files_of_the_user_only(tmp_path):
    (tmp_path / "photo.jpg").touch()
    job(tmp_path).check_folder(force=False)
    with pytest.raises(RunError, match=r"force=true removes .* such as photo.jpg: set hydra.sweep.dir or"):
        job(tmp_path).check_folder(force=True)
    (tmp_path / "photo.jpg").rename(tmp_path / "train.log")  # of an attempt that was refused
    job(tmp_path).check_folder(force=True)


def test_force_removes_only_what_a_run_writes_and_only_when_the_next_attempt_begins(run):
    folder = run.folder
    for name in ("samples/a/samples.npz", "samples/a/mine.txt", "wandb/offline-run-1-0/x", "levels_of_step_3.json"):
        (folder.path / name).parent.mkdir(parents=True, exist_ok=True)
        (folder.path / name).touch()
    mine = folder.path / "wandb" / f"offline-run-1-{run.label.run_id}"
    mine.mkdir()
    before = contents(run.path)
    run.prepare(force=True)
    assert not folder.is_complete
    assert before.items() <= contents(run.path).items()
    folder.begin(folder.files_of_run(run.label.run_id))
    kept = {"attempts", "config.yaml", "notes.txt", "samples/a/mine.txt", "wandb/offline-run-1-0/x"}
    assert contents(run.path).keys() == kept
    assert not mine.exists()


@pytest.mark.parametrize(("retry", "force"), [("all", False), ("failed", True)])
@pytest.mark.parametrize("sweep", [None, "s"])
def test_an_attempt_that_is_refused_before_it_begins_costs_no_results(run, retry, force, sweep):
    given = replace(run, sweep=sweep)
    before = contents(run.path)

    def refuse(*args, **kwargs):
        raise ConfigurationError("the logger refuses.")

    assert given.verdict(retry, force) == "run"
    given.prepare(force)
    with pytest.raises(ConfigurationError, match="the logger refuses"):
        given.execute(refuse)
    assert run.folder.is_complete
    failed = {"failed.json": json.dumps({"error": "the logger refuses."}) + "\n"} if sweep else {}
    assert contents(run.path) == before | failed  # the board of a sweep reads the reason there


def test_a_run_is_called_as_it_was_when_it_is_resumed(run, tmp_path):
    original = Label("12345678", "seed=1", "s", ("seed=1",))
    run.folder.write_label(original)
    assert label_of_folder(run.folder) == original
    resumed = Job(run.config, run.path, ("resume=run",), None, label_of_folder(run.folder))
    resumed.save(tmp_path / "job.json")
    assert Job.load(tmp_path / "job.json") == resumed
    resumed.check_folder(force=False)
    called = {}
    resumed.execute(lambda *args, **more: called.update(more) or {})
    assert called == {"name": "seed=1", "run_id": "12345678", "sweep": "s", "overrides": ("seed=1",)}


def test_a_run_of_an_older_version_is_called_by_its_result_or_its_folder(run, tmp_path):
    known = run_id(run.config)
    run.folder.write_result({"name": "seed=1", "sweep": None, "overrides": ["seed=1", "logger=csv"]})
    assert label_of_folder(run.folder) == Label(known, "seed=1", None, ("seed=1", "logger=csv"))
    begun = RunFolder(tmp_path / "sweep" / f"seed-1-{known}")
    begun.write_config(run.config)
    assert label_of_folder(begun) == Label(known, "seed-1", None, ())
    (tmp_path / "sweep" / "multirun.yaml").touch()
    assert label_of_folder(begun) == Label(known, "seed-1", "sweep", ())
    assert id_of_folder(RunFolder(tmp_path / "nothing")) is None
