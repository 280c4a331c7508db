"""A data worker outlives what a queue sends to every process of a run, and ends with its loader."""

import os
import signal
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data import DataLoader

from flowdiff.data.workers import heed_parent_only


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_of_another_process_does_not_end_a_worker(number):
    loader = DataLoader(
        torch.arange(6.0), batch_size=1, num_workers=1, worker_init_fn=heed_parent_only, prefetch_factor=1
    )
    batches = iter(loader)
    next(batches)
    (worker,) = batches._workers
    threads = [path.read_text() for path in Path(f"/proc/{worker.pid}/task").glob("*/status")]
    stranger = os.fork()
    if stranger == 0:
        os.kill(worker.pid, number)
        os._exit(0)
    try:
        os.waitpid(stranger, 0)
        time.sleep(0.2)
        assert len(list(batches)) == 5
    except RuntimeError as error:
        pytest.fail(f"{error}; its threads were: {threads}")


def test_the_parent_ends_its_worker():
    loader = DataLoader(torch.arange(2.0), num_workers=1, worker_init_fn=heed_parent_only, persistent_workers=True)
    batches = iter(loader)
    next(batches)
    (worker,) = batches._workers
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(timeout=60)
    assert worker.exitcode == 0
