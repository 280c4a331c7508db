"""A loader process survives the signals that a queue sends to every process of a run, and stops with its loader."""

import os
import signal
import time

import pytest
import torch
from torch.utils.data import DataLoader

from flowdiff.data.workers import SignalBlockingContext, exit_on_parent_signal


@pytest.fixture(params=[1, 2], autouse=True)
def threads(request):
    """With several threads, torch starts one in a loader process too, before our code runs there."""
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
        worker_init_fn=exit_on_parent_signal,
        multiprocessing_context=SignalBlockingContext(),
    )
    batches = iter(loader)
    next(batches)
    (worker,) = batches._workers
    return batches, worker


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_from_another_process_does_not_stop_a_worker(number):
    batches, worker = batches_of(6)
    stranger = os.fork()
    if stranger == 0:
        os.kill(worker.pid, number)
        os._exit(0)
    os.waitpid(stranger, 0)
    time.sleep(0.2)
    assert len(list(batches)) == 5


def test_the_parent_stops_its_worker():
    _batches, worker = batches_of(2)
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(timeout=60)
    assert worker.exitcode == 0


def test_the_parent_itself_still_receives_all_signals():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    batches_of(2)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before
