"""Devices and threads are given out evenly, and never more threads than cores."""

import pytest
from sweep_workers import config

from flowdiff.errors import ConfigurationError
from flowdiff.launch.slots import JOBS_PER_GPU, Slot, available_cores, slots, visible_gpus


def configs(n, **accelerator):
    node = {"kind": "auto", "devices": 1, "num_nodes": 1, **accelerator}
    return [{**config(), "accelerator": node} for _ in range(n)]


def test_without_gpus_every_core_is_a_slot():
    assert slots(configs(20), None, [], 8) == [Slot(None, 1)] * 8


def test_few_jobs_share_all_cores():
    assert slots(configs(2), None, [], 8) == [Slot(None, 4)] * 2


def test_jobs_per_device_on_the_cpu():
    assert slots(configs(20), 3, [], 8) == [Slot(None, 2)] * 3


def test_gpus_are_filled_in_turn():
    given = slots(configs(20), None, ["0", "3"], 16)
    assert [slot.gpus for slot in given] == [("0",), ("3",)] * JOBS_PER_GPU
    assert {slot.threads for slot in given} == {16 // (2 * JOBS_PER_GPU)}


@pytest.mark.parametrize("cores", [1, 2, 5, 64])
@pytest.mark.parametrize("gpus", [[], ["0"], ["0", "1", "2"]])
@pytest.mark.parametrize("per_device", [None, 1, 4])
def test_the_machine_is_not_oversubscribed(cores, gpus, per_device):
    given = slots(configs(100), per_device, gpus, cores)
    assert sum(slot.threads for slot in given) <= max(cores, len(given))
    if not gpus and per_device is None:
        assert len(given) <= cores


def test_runs_that_take_several_gpus_get_groups_of_their_own():
    given = slots(configs(9, devices=2), None, list("01234"), 8)
    assert given == [Slot(("0", "1"), 2), Slot(("2", "3"), 2)]
    assert slots(configs(9, devices="auto"), None, list("01"), 8) == [Slot(("0", "1"), 4)]


def test_runs_on_the_cpu_leave_the_gpus_alone():
    assert slots(configs(2, kind="cpu"), None, ["0"], 2) == [Slot(None, 1)] * 2


@pytest.mark.parametrize(
    ("accelerator", "per_device", "message"),
    [
        ({"num_nodes": 2}, None, "hydra/launcher=slurm"),
        ({"devices": [0, 1]}, None, "CUDA_VISIBLE_DEVICES"),
        ({"devices": 4}, None, "more than the 2 GPUs"),
        ({}, 0, "jobs_per_device=0 is not allowed"),
        ({}, "many", "jobs_per_device=many is not allowed"),
    ],
)
def test_what_does_not_fit_is_a_sentence(accelerator, per_device, message):
    with pytest.raises(ConfigurationError, match=message):
        slots(configs(2, **accelerator), per_device, ["0", "1"], 8)


def test_cuda_visible_devices_is_obeyed(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, MIG-1a2b")
    assert visible_gpus() == ["2", "MIG-1a2b"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert visible_gpus() == []


def test_there_is_a_core():
    assert available_cores() >= 1
