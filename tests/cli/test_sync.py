"""`flowdiff sync` uploads the fragments of a run in order and once, also those that killed processes have left."""

import subprocess
import threading
from types import SimpleNamespace

import pytest
import wandb
from wandb_server import Server

from flowdiff.cli import sync
from flowdiff.errors import RunError
from flowdiff.loggers import offline
from flowdiff.loggers.offline import offline_runs, records, synced
from flowdiff.loggers.wandb import WandB
from flowdiff.runs.ownership import owned


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", 40 * "a")


@pytest.fixture
def server():
    with Server() as made:  # it closes its socket and waits for its threads
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def fragment(folder, time, run_id="1a2b3c4d", content=b"\x00" * 7 + b"more"):
    file = folder / "wandb" / f"offline-run-{time}-{run_id}" / f"run-{run_id}.wandb"
    file.parent.mkdir(parents=True)
    file.write_bytes(content)
    return file


@pytest.fixture
def calls(monkeypatch):
    """The files of every `wandb sync`, which marks them as uploaded except those below a folder `broken`."""
    made = []

    def run(command, **options):
        assert command[1:4] == ["-m", "wandb", "sync"]
        made.append(command[4:])
        broken = [file for file in command[4:] if "/broken" in file]
        for file in set(command[4:]) - set(broken):
            open(f"{file}.synced", "w").close()
        said = "wandb: Syncing 1 run(s):\nwandb: \x1b[31mERROR\x1b[0m the network is gone\n" if broken else ""
        return SimpleNamespace(returncode=0, stdout=said)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(offline, "records", lambda file: [{"type": "run"}])
    return made


def test_the_fragments_of_a_run_are_uploaded_in_one_call_in_order_and_once(tmp_path, calls, key, capsys):
    late, early = (fragment(tmp_path / "s" / "a", time) for time in ("20300102_000000", "20300101_235959"))
    other = fragment(tmp_path / "s" / "a", "20300101_000000", "ffffffff")
    fragment(tmp_path / "s" / "a", "20300101_000001", "eeeeeeee", content=b"\x00" * 7)  # killed before it began
    done = fragment(tmp_path / "s" / "b", "20300101_000000")
    done.with_name(f"{done.name}.synced").touch()
    sync.main([str(tmp_path / "s"), "--dry-run"])
    assert capsys.readouterr().out.count("to upload") == 2
    with owned(tmp_path / "s" / "a"):
        assert sync.main([str(tmp_path / "s" / "a")]) == 0
    assert "still running" in capsys.readouterr().out
    assert calls == []
    assert sync.main([str(tmp_path / "s")]) == 0
    assert sorted(calls) == sorted([[str(early), str(late)], [str(other)]])
    said = capsys.readouterr().out
    assert (said.count("uploaded before"), said.count("│ uploaded ")) == (1, 3)
    last = fragment(tmp_path / "s" / "a", "20300103_000000")
    calls.clear()
    sync.main([str(tmp_path / "s")])
    assert calls == [[str(last)]]  # is appended to the uploaded ones


def test_a_failed_upload_is_reported_and_does_not_stop_other_runs(tmp_path, calls, key, capsys):
    broken = [fragment(tmp_path / "s" / "broken", time) for time in ("20300101_000000", "20300102_000000")]
    broken[0].with_name(f"{broken[0].name}.synced").touch()
    fine = fragment(tmp_path / "s" / "fine", "20300101_000000")
    assert sync.main([str(tmp_path / "s")]) == 1
    assert "failed: the network is gone" in capsys.readouterr().out
    assert synced(fine)
    calls.clear()
    assert sync.main([str(tmp_path / "s")]) == 1
    assert calls == [[*map(str, broken)]]  # W&B may hold a part of it: all fragments again


def test_user_errors_are_one_sentence(tmp_path, monkeypatch):
    with pytest.raises(RunError, match="contains no run that W&B logged offline"):
        sync.main([str(tmp_path)])
    fragment(tmp_path / "a", "20300101_000000")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    with pytest.raises(RunError, match="needs a W&B API key and there is none: set WANDB_API_KEY"):
        sync.main([str(tmp_path)])


def session(folder, steps, *, resumed, exit_code=0):
    """Log some steps offline; returns the fragment."""
    before = set(folder.glob("wandb/offline-run-*"))
    tracker = WandB(project="flowdiff", entity=None, mode="offline", checkpoint=False)
    about = {"run_id": "1a2b3c4d", "name": "flow.n_flows=3", "sweep": "s", "tags": ["t"], "config": {"seed": 0}}
    (logger,) = tracker.start(folder, {**about, "resumed": resumed})
    for step in steps:
        logger.log_metrics({"train_loss": 1.0 / (step + 1)}, step)
    tracker.finish(exit_code)
    wandb.teardown()  # closes the file
    (made,) = set(folder.glob("wandb/offline-run-*")) - before
    return made / "run-1a2b3c4d.wandb"


@pytest.mark.slow
def test_wandb_makes_one_run_of_the_fragments(tmp_path, server, key, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "s" / "run"
    folder.mkdir(parents=True)
    first = session(folder, range(3), resumed=False, exit_code=1)
    killed = session(folder, range(3, 6), resumed=True)
    killed.write_bytes(killed.read_bytes()[:-20])  # in the middle of the record of its exit
    session(folder, range(6, 9), resumed=True)
    fragment(folder, "20300101_000000", content=first.read_bytes()[:7])  # killed before it logged anything
    nameless = fragment(folder, "20300101_000001", content=first.read_bytes()[:150])  # killed in its second record
    assert [record["type"] for record in records(nameless)] == ["header"]
    monkeypatch.setenv("WANDB_BASE_URL", server.url)

    assert sync.main(["s"]) == 0
    run = server.runs["1a2b3c4d"]
    rows = [(row["trainer/global_step"], row["_step"], row["train_loss"]) for row in run["history"]]
    assert rows == [(step, step, 1.0 / (step + 1)) for step in range(9)]
    assert run["exits"] == [1, 1, 0]
    assert run["about"] == {"displayName": "flow.n_flows=3", "groupName": "s", "tags": ["t"]}
    assert [one.pending for one in offline_runs(tmp_path / "s")] == [(nameless,)]
    assert not (tmp_path / "wandb").exists()

    session(folder, range(9, 11), resumed=True)  # goes on after the upload
    assert sync.main(["s"]) == 0
    assert [row["trainer/global_step"] for row in run["history"]] == list(range(11))
    assert "uploaded" in capsys.readouterr().out
