"""A full or read-only disk: one sentence, nothing that looks finished, and the same command continues later."""

import json
import subprocess
from functools import partial

import pytest
from cli_process import helper, outcomes, script, succeed
from runs import TINY

LIMIT = 300_000  # bytes of one file; a checkpoint of TINY has a million
MAKE_ROOM = "choose another place or make room."


# Run `python <name>.py <arguments>` on a disk that takes no file of more than LIMIT bytes.
limited = partial(helper, "small_disk", LIMIT)


def files(folder):
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_a_full_disk_is_a_sentence_and_the_same_command_continues(tmp_path):
    done = limited("train", *TINY, cwd=tmp_path)
    (run,) = (tmp_path / "outputs").iterdir()
    sentence = f"outputs/{run.name} cannot be written: File too large; {MAKE_ROOM}"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, sentence)
    assert "Traceback" not in done.stderr
    assert files(run) == {"config.yaml", "failed.json", "metrics.csv", "run.json", "train.log"}  # no half checkpoint
    assert json.loads((run / "failed.json").read_text()) == {"error": sentence}
    succeed("train", *TINY, cwd=tmp_path)
    assert {"result.json", "checkpoints/last.ckpt"} <= files(run)
    rows = (run / "metrics.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows[1:] if row.split(",")[1]] == [str(step) for step in range(8)]  # each once

    (run / "samples").write_text("in the way")
    done = script("sample", f"run={run}", "num_samples=4", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"{run}/samples")
    assert MAKE_ROOM in done.stderr
    out = tmp_path / "out"
    done = limited("sample", f"run={run}", f"out={out}", "num_samples=60000", "sampler.num_steps=1", cwd=tmp_path)
    sentence = f"{out}/samples.npz cannot be written: File too large; {MAKE_ROOM}"
    assert (done.returncode, done.stderr.splitlines()[-1]) == (2, sentence)
    assert files(out) == {"samples.png"}


@pytest.mark.slow
def test_a_sweep_on_a_full_disk_names_every_run(tmp_path):
    done = limited("train", "-m", *TINY, "seed=1,2", "hydra.sweep.dir=s", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout.count(f"cannot be written: File too large; {MAKE_ROOM}") == 4  # once when it ends, once below
    assert "2 runs: 2 failed" in done.stdout
    assert not [name for name in files(tmp_path) if name.endswith(("result.json", ".tmp"))]


@pytest.mark.parametrize("reason", ["Not a directory", "Read-only file system"])
def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path, reason):
    if reason == "Not a directory":
        for name in ("outputs", "multirun"):
            (tmp_path / name).touch()
    else:
        mount = ["mount", "-t", "tmpfs", "-o", "ro,size=64k", "tmpfs", tmp_path]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("only root can mount a read-only file system")
    try:
        results = outcomes("train", [[*TINY], ["-m", *TINY, "seed=1,2"]], tmp_path)
    finally:
        if reason == "Read-only file system":  # lazily: a fork server that is just ending works there
            subprocess.run(["umount", "--lazy", tmp_path], check=True)
    for (status, stderr), place in zip(results, ("outputs", "multirun"), strict=True):
        assert (status, len(stderr.splitlines())) == (2, 1)
        assert stderr.startswith(place)
        assert stderr.endswith(f"cannot be written: {reason}; {MAKE_ROOM}\n")
