"""A data worker outlives what a queue sends to every process of a run, and ends with its loader."""

import os
import signal
import time

import pytest
import torch
from torch.utils.data import DataLoader

from flowdiff.data.workers import DeafContext, heed_parent_only


@pytest.fixture(params=[1, 2], autouse=True)
def threads(request):
    """With several, torch starts one in a worker too, before anything of ours runs there."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def batches_of(n):
    loader = DataLoader(
        torch.arange(float(n)),
        batch_size=1,
        num_workers=1,
        prefetch_factor=1,
        persistent_workers=True,
        worker_init_fn=heed_parent_only,
        multiprocessing_context=DeafContext(),
    )
    batches = iter(loader)
    next(batches)
    (worker,) = batches._workers
    return batches, worker


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_of_another_process_does_not_end_a_worker(number):
    batches, worker = batches_of(6)
    stranger = os.fork()
    if stranger == 0:
        os.kill(worker.pid, number)
        os._exit(0)
    os.waitpid(stranger, 0)
    time.sleep(0.2)
    assert len(list(batches)) == 5


def test_the_parent_ends_its_worker():
    _batches, worker = batches_of(2)
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(timeout=60)
    assert worker.exitcode == 0


def test_the_parent_itself_heeds_all_signals():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    batches_of(2)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
