"""The number of threads: it depends on the model, gives way to a busy machine, and never changes what the user set."""

import pytest
import torch

from flowdiff.runs.cores import THREAD_VARIABLES, THREADS_OF_USER, available_cores, thread_environment, threads_of_user
from flowdiff.training import threads
from flowdiff.training.threads import (
    MIN_WORK,
    PATIENCE,
    WINDOW,
    Threads,
    seconds_waited,
    threads_for,
    work_per_operation,
)


@pytest.fixture(autouse=True)
def restore_threads():
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def clock(monkeypatch):
    """A clock that only `wait` moves, and the seconds for which other programs have kept the threads waiting."""

    class Clock:
        now = waited = 0.0

        def wait(self, seconds, waiting=0.0):
            self.now += seconds
            self.waited += waiting * seconds

    clock = Clock()
    monkeypatch.setattr(threads.time, "monotonic", lambda: clock.now)
    return clock


def made(clock, work=2 * MIN_WORK, available=8, waiting=0.0):
    chosen = Threads(available, lambda: clock.waited)
    clock.wait(0.1, waiting)
    chosen.choose(work)
    return chosen


def test_work_is_counted_in_flops_per_operation():
    a, b = torch.ones(8, 50), torch.ones(50, 100)
    assert work_per_operation(lambda n: a[:n] @ b, 8) == pytest.approx(2 * 8 * 50 * 100 / 2)  # a slice and a product
    assert work_per_operation(lambda n: a[:n] @ b, 800) == pytest.approx(2 * 800 * 50 * 100 / 2)
    assert work_per_operation(lambda n: None, 8) == 0


def test_counting_leaves_the_random_state_as_it_was():
    before = torch.get_rng_state()
    work_per_operation(lambda n: torch.randn(n), 8)
    assert torch.equal(before, torch.get_rng_state())


def test_small_operations_use_one_thread_on_a_machine_of_any_size(clock):
    small = made(clock, work=0.9 * MIN_WORK)
    assert (small.used, small.description) == (1, "1 of 8 threads (small operations)")
    clock.wait(1000)
    small.adapt()
    assert small.used == torch.get_num_threads() == 1


def test_large_operations_use_all_threads(clock):
    large = made(clock)
    assert (large.used, large.description) == (8, "8 threads")
    assert torch.get_num_threads() == 8


def test_on_a_machine_that_is_already_busy_a_computation_begins_with_one_thread(clock):
    assert made(clock, waiting=0.6).description == "1 of 8 threads (the machine is busy)"


def test_fewer_threads_while_other_programs_want_the_cores_and_more_afterwards(clock):
    large = made(clock)
    used = []
    for waiting in (1.5, 0.8, 0.4, 0.4, 0.0):  # threads that wait, on average over a window
        clock.wait(1.1 * WINDOW, waiting)
        large.adapt()
        used.append(large.used)
    assert used == [4, 2, 1, 1, 1]
    for _ in range(3):
        clock.wait(PATIENCE + WINDOW)
        large.adapt()
    assert large.used == 8


def test_growing_too_early_doubles_the_patience(clock):
    large = made(clock, available=2)
    pauses = []
    for _ in range(3):
        while large.used == 2:  # whenever both compute, another program wants a core
            clock.wait(WINDOW, 0.5)
            large.adapt()
        began = clock.now
        while large.used == 1:
            clock.wait(WINDOW)
            large.adapt()
        pauses.append(clock.now - began)
    assert pauses[0] < pauses[1] < pauses[2]


def test_looks_are_rare(clock):
    large = made(clock)
    clock.wait(0.5 * WINDOW, 5.0)
    large.adapt()
    assert large.used == 8


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_what_the_user_has_set_stays(monkeypatch, variable):
    for name in (*THREAD_VARIABLES, THREADS_OF_USER):
        monkeypatch.delenv(name, raising=False)
    assert threads_of_user() is None
    monkeypatch.setenv(variable, "3")
    torch.set_num_threads(3)
    assert threads_of_user() == 3
    assert threads_for(lambda n: None, 8) is None
    assert torch.get_num_threads() == 3


def test_the_variables_of_a_sweep_do_not_count_as_the_user_s(monkeypatch):
    for name in (*THREAD_VARIABLES, THREADS_OF_USER):
        monkeypatch.delenv(name, raising=False)
    for threads_of_server, threads_of_run in ((1, 4), (1, 1)):
        for name, value in {**thread_environment(threads_of_server), **thread_environment(threads_of_run)}.items():
            monkeypatch.setenv(name, value)
        assert threads_of_user() is None
    monkeypatch.delenv(THREADS_OF_USER)
    for name in THREAD_VARIABLES:
        monkeypatch.setenv(name, "2")
    for name, value in thread_environment(8).items():
        monkeypatch.setenv(name, value)
    assert threads_of_user() == 2


def test_this_machine_is_asked():
    assert available_cores() >= 1
    assert seconds_waited() >= 0
