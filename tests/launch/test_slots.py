"""Devices and threads are shared evenly, and there are never more threads than cores."""

import pytest
from sweep_workers import config

from flowdiff.errors import ConfigurationError
from flowdiff.launch.slots import JOBS_PER_GPU, Slot, slots, visible_gpus


def configs(n, **accelerator):
    return [config(**{"kind": "auto", **accelerator})] * n


@pytest.mark.parametrize(
    ("runs", "per_device", "gpus", "cores", "expected"),
    [
        (configs(20), None, "", 8, [Slot(None, 1)] * 8),  # a slot per core
        (configs(2), None, "", 8, [Slot(None, 4)] * 2),
        (configs(20), 3, "", 8, [Slot(None, 2)] * 3),
        (configs(20), None, "03", 16, [Slot(("0",), 4), Slot(("3",), 4)] * JOBS_PER_GPU),
        (configs(9, devices=2), None, "01234", 8, [Slot(("0", "1"), 2), Slot(("2", "3"), 2)]),
        (configs(9, devices="auto"), None, "01", 8, [Slot(("0", "1"), 4)]),
        (configs(2, kind="cpu"), None, "0", 2, [Slot(None, 1)] * 2),  # the GPU stays free
    ],
)
def test_slots(runs, per_device, gpus, cores, expected):
    assert slots(runs, per_device, list(gpus), cores) == expected


@pytest.mark.parametrize("cores", [1, 2, 5, 64])
@pytest.mark.parametrize("gpus", [[], ["0"], ["0", "1", "2"]])
@pytest.mark.parametrize("per_device", [None, 1, 4])
def test_the_machine_is_not_oversubscribed(cores, gpus, per_device):
    given = slots(configs(100), per_device, gpus, cores)
    assert sum(slot.threads for slot in given) <= max(cores, len(given))
    if not gpus and per_device is None:
        assert len(given) <= cores


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


def test_the_resources_of_this_machine(monkeypatch):
    for variable, gpus in (("2, MIG-1a2b", ["2", "MIG-1a2b"]), ("", [])):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
        assert visible_gpus() == gpus
