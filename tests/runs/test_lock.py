"""One writer per folder: the living keep it, the dead and the silent lose it, and of many takers one gets it."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from flowdiff.errors import RunError
from flowdiff.runs import lock


def write(folder, **owner):
    me = {"host": socket.gethostname(), "pid": os.getpid(), "born": lock._born(os.getpid())}
    (folder / lock.NAME).write_text(json.dumps({**me, **owner}))


def dead_pid():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def test_a_folder_is_held_by_one_and_given_back(tmp_path):
    folder = tmp_path / "runs" / "run"
    with lock.held(folder):
        assert lock.owner(folder)["pid"] == os.getpid()
        with pytest.raises(lock.Busy, match=f"written by process {os.getpid()} on"), lock.held(folder):
            pass
        assert lock.owner(folder) is not None
    assert lock.owner(folder) is None
    assert list(folder.iterdir()) == []


def test_it_is_given_back_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), lock.held(tmp_path):
        raise ZeroDivisionError
    assert lock.owner(tmp_path) is None


def test_the_dead_lose_it(tmp_path):
    write(tmp_path, pid=dead_pid())
    assert lock.owner(tmp_path) is None
    with lock.held(tmp_path):
        assert lock.owner(tmp_path)["pid"] == os.getpid()


def test_a_pid_that_was_given_again_is_not_the_owner(tmp_path):
    write(tmp_path, born="1")
    with lock.held(tmp_path):
        pass


def test_a_process_that_was_killed_loses_it(tmp_path):
    code = f"""
import sys, time; from pathlib import Path; from flowdiff.runs import lock
with lock.held(Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment()) as process:
        assert process.stdout.readline() == b"held\n"
        with pytest.raises(lock.Busy, match=str(process.pid)), lock.held(tmp_path):
            pass
        process.send_signal(signal.SIGKILL)
    with lock.held(tmp_path):
        pass


def environment():
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}


@pytest.mark.parametrize(("silent", "alive"), [(lock.SILENCE - 60, True), (lock.SILENCE + 60, False)])
def test_another_host_is_judged_by_its_heartbeat(tmp_path, silent, alive):
    write(tmp_path, host="elsewhere", pid=dead_pid())
    beat = time.time() - silent
    os.utime(tmp_path / lock.NAME, (beat, beat))
    assert (lock.owner(tmp_path) is not None) is alive
    if alive:
        with pytest.raises(lock.Busy, match="on elsewhere"), lock.held(tmp_path):
            pass
    else:
        with lock.held(tmp_path):
            pass


def test_the_heart_beats(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "HEARTBEAT", 0.01)
    with lock.held(tmp_path):
        os.utime(tmp_path / lock.NAME, (0, 0))
        wait_until(lambda: (tmp_path / lock.NAME).stat().st_mtime > 0)


def test_an_owner_that_was_replaced_stops_at_once(tmp_path):
    code = f"""
import time; from pathlib import Path; from flowdiff.runs import lock
lock.HEARTBEAT = 0.01
with lock.held(Path({str(tmp_path)!r})):
    print("held", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment()) as process:
        process.stdout.readline()
        write(tmp_path, host="elsewhere")
        assert process.wait(timeout=30) == -signal.SIGKILL
    assert lock.owner(tmp_path)["host"] == "elsewhere"


@pytest.mark.parametrize("content", ["", "not json", "[]", '{"pid": 1}'])
def test_half_a_lock_is_none(tmp_path, content):
    (tmp_path / lock.NAME).write_text(content)
    with lock.held(tmp_path):
        assert lock.owner(tmp_path)["pid"] == os.getpid()


def test_of_many_that_find_it_stale_one_takes_it(tmp_path):
    for _ in range(20):
        write(tmp_path, pid=dead_pid())
        start, done = threading.Barrier(8), threading.Barrier(8)
        won = []

        def take(start=start, done=done, won=won):
            start.wait()
            try:
                with lock.held(tmp_path):
                    won.append(threading.get_ident())
                    done.wait()
            except lock.Busy:
                done.wait()

        threads = [threading.Thread(target=take) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1


def test_a_place_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    refusal = pytest.raises(RunError, match=r"file/run cannot be written: .*; choose another place")
    with refusal, lock.held(tmp_path / "file" / "run"):
        pass


def wait_until(condition, seconds=30.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
