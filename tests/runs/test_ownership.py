"""One writer per folder: living owners keep it, dead or silent owners lose it, and only one of many takers gets it."""

import os
import signal
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
from cli_process import code
from sweep_workers import sign_lock, wait_until

from flowdiff.errors import RunError
from flowdiff.runs import ownership
from flowdiff.runs.ownership import LOCK_FILE, MAX_SILENCE, Busy, owned, owner

OWN = """
import sys, time; from pathlib import Path; from flowdiff.runs import ownership
ownership.HEARTBEAT = 0.01
with ownership.owned(Path(sys.argv[1])):
    print("owned", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other_process(tmp_path):
    """Another process that owns tmp_path."""
    with code(OWN, tmp_path) as process:
        assert process.stdout.readline() == "owned\n"
        yield process
        process.kill()


def dead_pid():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def can_take(folder):
    """Whether this process can own the folder; otherwise Busy names the owner."""
    if current := owner(folder):
        busy = pytest.raises(Busy, match=f"written by process {current['pid']} on {current['host']}")
        with busy, owned(folder):
            pass
        return False
    with owned(folder):
        assert owner(folder)["pid"] == os.getpid()
    assert owner(folder) is None
    return True


@pytest.mark.parametrize("error", [None, ZeroDivisionError])
def test_a_folder_has_one_owner_and_is_released_even_after_an_error(tmp_path, error):
    folder = tmp_path / "runs" / "run"
    with pytest.raises(error) if error else nullcontext(), owned(folder):
        assert not can_take(folder)
        assert owner(folder)["pid"] == os.getpid()
        if error:
            raise error
    assert owner(folder) is None
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("lock", "silent", "taken"),
    [
        ({"pid": dead_pid}, 0, True),
        ({"born": "1"}, 0, True),  # the pid belongs to another process now
        ({"host": "elsewhere", "pid": dead_pid}, MAX_SILENCE - 60, False),
        ({"host": "elsewhere", "pid": dead_pid}, MAX_SILENCE + 60, True),
        ("", 0, True),
        ("not json", 0, True),
        ("[]", 0, True),
        ('{"pid": 1}', 0, True),
    ],
)
def test_a_dead_or_silent_owner_or_half_a_lock_is_replaced(tmp_path, lock, silent, taken):
    if isinstance(lock, str):
        (tmp_path / LOCK_FILE).write_text(lock)
    else:
        sign_lock(tmp_path, **{key: value() if callable(value) else value for key, value in lock.items()})
    os.utime(tmp_path / LOCK_FILE, 2 * (time.time() - silent,))
    assert (owner(tmp_path) is None) is taken
    assert can_take(tmp_path) is taken


def test_a_killed_process_loses_it(tmp_path, other_process):
    assert not can_take(tmp_path)
    other_process.kill()
    other_process.wait()
    assert can_take(tmp_path)


def test_an_owner_that_was_replaced_stops_at_once(tmp_path, other_process):
    sign_lock(tmp_path, host="elsewhere")
    assert other_process.wait(timeout=30) == -signal.SIGKILL
    assert owner(tmp_path)["host"] == "elsewhere"


def test_the_owner_sends_heartbeats(tmp_path, monkeypatch):
    monkeypatch.setattr(ownership, "HEARTBEAT", 0.01)
    with owned(tmp_path):
        os.utime(tmp_path / LOCK_FILE, (0, 0))
        wait_until(lambda: (tmp_path / LOCK_FILE).stat().st_mtime > 0)


def test_one_of_many_takes_a_stale_lock(tmp_path):
    start, done = threading.Barrier(8), threading.Barrier(8)

    def takes_it(_):
        start.wait()
        try:
            with owned(tmp_path):
                done.wait()
        except Busy:
            done.wait()
            return False
        return True

    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            sign_lock(tmp_path, pid=dead_pid())
            assert sum(pool.map(takes_it, range(8))) == 1


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    refused = pytest.raises(RunError, match=r"file/run cannot be written: .*; choose another place")
    with refused, owned(tmp_path / "file/run"):
        pass
