"""Commands that would use, empty or overwrite a folder that is not theirs end as one sentence and change nothing."""

import pytest
from cli_process import check_mistakes, outcomes
from runs import TINY

from flowdiff.runs.run_folder import RunFolder

SEVERAL = "sampler.num_steps=1,2"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a finished run `r` of seed 1, and a folder of photos."""
    cwd = tmp_path_factory.mktemp("folders")
    (cwd / "photos").mkdir()
    (cwd / "photos" / "a.jpg").write_text("a photo")
    assert outcomes("train", [[*TINY, "seed=1", "hydra.run.dir=r"]], cwd)[0][0] == 0
    assert RunFolder(cwd / "r").is_complete
    return cwd


def files(cwd):
    return {str(path.relative_to(cwd)): path.read_bytes() for path in cwd.rglob("*") if path.is_file()}


def test_training_touches_no_other_folder(trained):
    before = files(trained)
    other = (
        "holds another run (seed is 1 there and 2 here; optimizer.lr is 0.001 there and 0.5 here): set hydra.run.dir"
    )
    refused = [
        (["seed=1", "hydra.run.dir=photos", "force=true"], "photos holds none, only other files such as a.jpg"),
        (["seed=1", "hydra.run.dir=.", "force=true"], ". holds none, only other files such as"),
        (["seed=2", "optimizer.lr=0.5", "hydra.run.dir=r"], other),
        (["seed=2", "optimizer.lr=0.5", "hydra.run.dir=r", "force=true"], other),
    ]
    check_mistakes("train", [([*TINY, *more], said) for more, said in refused], trained)
    assert files(trained) == before


def test_a_refused_command_removes_the_folders_that_it_made_and_no_others(tmp_path):
    (tmp_path / "empty").mkdir()
    search = ["-m", "hydra/sweeper=optuna", "dataset.batch_size=0,-1", "hydra.sweeper.n_trials=1"]
    refused = [
        *(["optimizer.lr=abc", f"hydra.run.dir={folder}"] for folder in (".", "empty", "empty/new", "new/run")),
        *(["-m", "optimizer.lr=abc,0.1", f"hydra.sweep.dir={folder}"] for folder in (".", "empty", "new/sweep")),
        *([*search, f"hydra.sweep.dir={folder}"] for folder in (".", "empty", "new/search")),
    ]
    for status, said in outcomes("train", refused, tmp_path):
        assert status == 2, said
        assert "is not allowed" in said
    assert [path.name for path in tmp_path.rglob("*")] == ["empty"]


def test_two_runs_of_a_sweep_never_share_a_folder(trained):
    before = files(trained)
    same = ["hydra.sweep.dir=d", "hydra.sweep.subdir=same"]
    commands = [
        ["-m", *TINY, "seed=0,1", *same],
        ["-m", *TINY, "seed=1,2", "hydra.sweep.dir=.", "hydra.sweep.subdir=r"],
    ]
    (status, said), (again, other) = outcomes("train", commands, trained)
    assert (status, again) == (2, 2)
    assert said == (
        "1 of 2 jobs cannot have their folder, so none was started:\n  seed=1: d/same is the folder of seed=0 too: "
        "remove hydra.sweep.subdir, so that each has its own.\n"
    )
    assert (
        "seed=2: r holds another run (seed is 1 there and 2 here): set hydra.sweep.dir or hydra.sweep.subdir" in other
    )
    assert files(trained) == before


def test_two_samplings_never_share_a_folder(trained):
    few = ["-m", "run=r", "num_samples=2"]
    refused = [
        ([*few, SEVERAL, "out=X"], "out=X names one folder for the samples of every sampler.num_steps: write"),
        (["-m", "run=r,r", "num_samples=2", "out=X"], "out=X names one folder for the samples of every run: write"),
    ]
    check_mistakes("sample", refused, trained)
    assert not (trained / "X").exists()
    commands = [
        [*few, SEVERAL, "seed=1,2", "out=Y/${seed}"],
        [*few, SEVERAL, "out=Z/${sampler.num_steps}"],
        [*few, "sampler.num_steps=1", "out=X"],
    ]
    (status, said), *fine = outcomes("sample", commands, trained)
    assert status == 2
    assert "out=Y/1 holds the samples of another job of this command" in said
    assert [status for status, _ in fine] == [0, 0]
    assert sorted(str(path.parent.relative_to(trained)) for path in trained.glob("[XYZ]/**/samples.npz")) == [
        *("X", "Y/1", "Y/2", "Z/1", "Z/2"),
    ]


def test_long_samplings_have_folders_of_their_own(trained):
    long = [
        "schedule=karras",
        "schedule.sigma_max=40",
        "schedule.sigma_min=0.01",
        "sampler=euler",
        "sampler.num_steps=1",
    ]
    ((status, said),) = outcomes("sample", [["-m", "run=r", "num_samples=2", *long, "seed=1,2,3"]], trained)
    assert status == 0, said
    assert len(list((trained / "r" / "samples").glob("*sigma_min*/samples.npz"))) == 3
