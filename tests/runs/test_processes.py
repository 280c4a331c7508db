"""Which variables of an outer launcher count: a complete set of a run of several devices, and nothing else."""

import os

import pytest

from flowdiff.errors import ConfigurationError
from flowdiff.runs.processes import Place, forget_leftovers, is_first_rank, place, take_place

TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "here", "MASTER_PORT": "29500"}
LIGHTNING = {**TORCHRUN, "NODE_RANK": "0"}
del LIGHTNING["RANK"]
SRUN = {"SLURM_PROCID": "1", "SLURM_NTASKS": "2", "SLURM_LOCALID": "1", "SLURM_NODEID": "0"}
ONE, SEVERAL = ({"accelerator": {"devices": devices, "num_nodes": 1}} for devices in (1, 2))


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for key in {**TORCHRUN, **LIGHTNING, **SRUN, "GROUP_RANK": "", "SLURM_JOB_NAME": "", "TORCHELASTIC_RUN_ID": ""}:
        monkeypatch.delenv(key, raising=False)


def given(monkeypatch, variables):
    for key, value in variables.items():
        monkeypatch.setenv(key, value)


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, Place()),
        (TORCHRUN, Place("torchrun", 1, 2, 1)),
        (LIGHTNING, Place("lightning", 1, 2, 1)),
        ({**LIGHTNING, "NODE_RANK": "1", "LOCAL_RANK": ""}, Place("lightning", 1, 2, 0)),
        (SRUN, Place("srun", 1, 2, 1)),
        ({**SRUN, **TORCHRUN, "RANK": "0"}, Place("torchrun", 0, 2, 1)),
        ({**SRUN, "SLURM_NTASKS": "1", "SLURM_PROCID": "0"}, Place()),
        ({**SRUN, "SLURM_JOB_NAME": "interactive"}, Place()),
        ({"RANK": "1"}, Place()),
        ({"LOCAL_RANK": "1"}, Place()),
        ({"RANK": ""}, Place()),
        ({"WORLD_SIZE": "2"}, Place()),
        ({"SLURM_NTASKS": "4"}, Place()),
        ({**TORCHRUN, "RANK": "2"}, Place()),
        ({**TORCHRUN, "WORLD_SIZE": "two"}, Place()),
    ],
)
def test_only_a_complete_set_of_variables_counts(monkeypatch, variables, expected):
    given(monkeypatch, variables)
    assert place() == expected
    assert is_first_rank() == (expected.rank == 0)
    forget_leftovers()
    assert place() == expected  # what counts is kept
    left = {key for key in os.environ if key in {**TORCHRUN, **LIGHTNING, **SRUN}}
    assert expected.launcher != "none" or left <= {"MASTER_ADDR", "MASTER_PORT", *SRUN} - {"SLURM_PROCID"}


def test_what_is_forgotten_is_said(monkeypatch, caplog):
    given(monkeypatch, {"RANK": "", "WORLD_SIZE": "2"})
    forget_leftovers()
    assert caplog.messages == ["RANK= WORLD_SIZE=2 is ignored: no launcher started this process as one of several"]


@pytest.mark.parametrize("variables", [TORCHRUN, LIGHTNING, SRUN])
def test_a_run_of_one_device_is_alone_whatever_the_environment_says(monkeypatch, variables):
    given(monkeypatch, variables)
    take_place(SEVERAL)
    assert place().rank == 1
    take_place(ONE)
    assert place() == Place()


def test_torchrun_with_a_run_of_one_device_is_refused(monkeypatch):
    given(monkeypatch, {**TORCHRUN, "TORCHELASTIC_RUN_ID": "x"})
    with pytest.raises(ConfigurationError, match="torchrun started 2 processes, and this run uses one device: set acc"):
        take_place(ONE)
