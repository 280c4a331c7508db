"""A disk that is full or closed: one sentence, nothing that looks finished, and the same command goes on later."""

import json
import subprocess

import pytest
from cli_process import TESTS, outcomes, python, script
from runs import TINY

LIMIT = 300_000  # bytes of one file; a checkpoint of TINY has a million
MAKE_ROOM = "choose another place or make room."


def limited(name, *arguments, cwd):
    """`python <name>.py <arguments>` on a disk that takes no file of more than LIMIT bytes."""
    return python(TESTS / "small_disk.py", LIMIT, name, *arguments, cwd=cwd)


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    cwd = tmp_path_factory.mktemp("full")
    return cwd, limited("train", *TINY, cwd=cwd)


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_full_disk_is_a_sentence_and_the_same_command_goes_on(full):
    cwd, done = full
    (run,) = (cwd / "outputs").iterdir()
    sentence = f"outputs/{run.name} cannot be written: File too large; {MAKE_ROOM}"
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == sentence
    assert "Traceback" not in done.stderr
    assert files(run) == {"config.yaml", "failed.json", "metrics.csv", "train.log"}  # no half checkpoint
    assert json.loads((run / "failed.json").read_text()) == {"error": sentence}
    done = script("train", *TINY, cwd=cwd)
    assert done.returncode == 0, done.stderr
    assert {"result.json", "checkpoints/last.ckpt"} <= files(run)
    rows = (run / "metrics.csv").read_text().splitlines()
    steps = [row.split(",")[0] for row in rows[1:] if row.split(",")[1]]
    assert steps == [str(step) for step in range(8)]  # none twice

    (run / "samples").write_text("in the way")
    done = script("sample", f"run={run}", "num_samples=4", cwd=cwd)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"{run}/samples")
    assert MAKE_ROOM in done.stderr
    done = limited("sample", f"run={run}", f"out={cwd / 'out'}", "num_samples=60000", "sampler.num_steps=1", cwd=cwd)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == f"{cwd}/out/samples.npz cannot be written: File too large; {MAKE_ROOM}"
    assert files(cwd / "out") == {"samples.png"}


@pytest.mark.slow
def test_a_sweep_on_a_full_disk_names_every_run(tmp_path):
    sweep = ["-m", *TINY, "seed=1,2", "hydra.sweep.dir=s"]
    done = limited("train", *sweep, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout.count(f"cannot be written: File too large; {MAKE_ROOM}") == 4  # once when it ends, once below
    assert "2 runs: 2 failed" in done.stdout
    assert not list(tmp_path.rglob("result.json"))
    assert not list(tmp_path.rglob("*.tmp"))


COMMANDS = [[*TINY], ["-m", *TINY, "seed=1,2"]]


def check_refused(cwd, reason):
    for (status, stderr), place in zip(outcomes("train", COMMANDS, cwd), ("outputs", "multirun"), strict=True):
        assert status == 2
        assert stderr.splitlines()[-1].startswith(f"{place}")
        assert stderr.endswith(f"cannot be written: {reason}; {MAKE_ROOM}\n")
        assert len(stderr.splitlines()) == 1


def test_a_file_in_place_of_a_folder_is_a_sentence(tmp_path):
    for name in ("outputs", "multirun"):
        (tmp_path / name).touch()
    check_refused(tmp_path, "Not a directory")


def test_a_read_only_folder_is_a_sentence(tmp_path):
    place = tmp_path / "place"
    place.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", place], check=False)
    if mounted.returncode:
        pytest.skip("only root can mount a read-only file system")
    try:
        check_refused(place, "Read-only file system")
    finally:
        subprocess.run(["umount", "--lazy", place], check=True)  # a fork server that is just ending lies in it
