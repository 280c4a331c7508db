"""Submitting a sweep to SLURM, with stand-ins for SLURM's commands; tests/launch/slurm/real uses a real SLURM."""

import io
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from fake_slurm import FakeSlurm
from rich.console import Console
from submitit.core.utils import DelayedSubmission
from sweep_workers import WORKER, config, job

from flowdiff.config import CONF
from flowdiff.errors import ConfigurationError
from flowdiff.launch.slurm.pool import Settings, SlurmPool, sbatch_parameters
from flowdiff.launch.slurm.submission import FOLDER, submissions
from flowdiff.launch.slurm.task import Task
from flowdiff.runs.job import Job
from flowdiff.runs.ownership import owned


@pytest.fixture(autouse=True)
def slurm(tmp_path, monkeypatch) -> FakeSlurm:
    """A working folder on a machine that has SLURM's commands."""
    fake = FakeSlurm(tmp_path / "bin", ("sbatch", "srun", "scancel", "squeue", "sinfo", "scontrol"))
    fake.answer("sbatch", "Submitted batch job 7")
    fake.answer("sinfo", "cpu*|(null)\ngpu|gpu:a100:4(S:0-1)")
    monkeypatch.setenv("PATH", f"{fake.folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    return fake


def settings(**changes) -> Settings:
    node = yaml.safe_load((CONF / "hydra" / "launcher" / "slurm.yaml").read_text())
    return Settings.checked({key: value for key, value in node.items() if not key.startswith("_")} | changes)


def run(*jobs, force=False, **changes):
    """The rows, and the output of the sweep."""
    console = Console(file=io.StringIO(), width=200)
    pool = SlurmPool(WORKER, settings(**changes), console)
    pool.prepare()
    with pool.environment():
        rows = pool.run(jobs, "failed", force)
    return rows, console.file.getvalue()


def jobs_of(*seeds) -> list[Job]:
    return [job(Path("s") / f"seed-{seed}-abc", seed=seed) for seed in seeds]


@pytest.fixture
def finished() -> Job:
    (given,) = jobs_of(1)
    given.folder.write_config(given.config)
    given.folder.write_result({"metrics": {}})
    return given


def submitted() -> tuple[str, Task]:
    """The batch script of the job, and its first task."""
    script = Path("s", FOLDER, "7_submission.sh").read_text()
    return script, DelayedSubmission.load(Path("s", FOLDER, "7_0_submitted.pkl")).function


def wants(**accelerator) -> dict:
    return config(**{"kind": "auto", **accelerator})


@pytest.mark.parametrize(
    ("accelerator", "changes", "expected"),
    [
        ({"kind": "cpu"}, {"partition": "gpu"}, (1, 1, None)),  # nodes, tasks per node, GPUs per node
        ({}, {}, (1, 1, None)),  # the default partition has no GPUs
        ({}, {"partition": "gpu"}, (1, 1, 1)),
        ({"kind": "gpu"}, {}, (1, 1, 1)),
        ({"devices": 4, "num_nodes": 2}, {"partition": "gpu"}, (2, 4, 4)),
        ({"devices": "auto"}, {"gpus": 4}, (1, 4, 4)),
        ({}, {"gpus": 2, "runs_per_task": 4}, (1, 1, 2)),
    ],
)
def test_devices_and_nodes_get_matching_tasks(accelerator, changes, expected):
    found = sbatch_parameters(settings(**changes), [wants(**accelerator)] * 2, Path("s"))
    assert (found["nodes"], found["ntasks_per_node"], found.get("gpus_per_node")) == expected


@pytest.mark.parametrize(
    ("configs", "changes", "message"),
    [
        ([], {"timeout_min": 0}, "hydra.launcher.timeout_min=0 is not allowed: input should be greater than 0"),
        ([], {"wait": "yes"}, "hydra.launcher.wait=yes is not allowed"),
        ([], {"setup": "module load cuda"}, "hydra.launcher.setup=module load cuda is not allowed"),
        ([], {"partitoin": "gpu"}, "hydra.launcher.partitoin=gpu is not allowed"),
        ([wants(devices="auto")], {}, "accelerator.devices=auto is not known before"),
        ([wants(devices=[0, 1])], {}, "a list of indices"),
        ([wants(devices=2)], {"runs_per_task": 2}, "cannot be combined with runs on 2 devices"),
        ([wants(), wants(devices=2)], {}, "differ within the sweep"),
    ],
)
def test_bad_settings_and_what_one_array_job_cannot_contain_are_sentences(configs, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        sbatch_parameters(settings(**changes), configs, Path("s"))


def test_an_array_job_is_submitted_recorded_and_reported():
    rows, output = run(*jobs_of(1, 2, 3), runs_per_task=2, partition="cpu", mem_gb=1.5, cpus_per_task=3)
    assert [row.state for row in rows] == ["queued"] * 3
    assert "submitted SLURM job 7 on cpu: 3 runs in an array of 2 tasks" in output
    (one,) = submissions(Path("s"))
    assert (one.job_id, one.tasks) == ("7", [["seed-1-abc", "seed-2-abc"], ["seed-3-abc"]])
    for line in ("--array=0-1%2", "--partition=cpu", "--mem=1536MB", "--signal=USR2@120", "--requeue", "--time=240"):
        assert f"#SBATCH {line}\n" in submitted()[0]
    task = submitted()[1]
    assert [job.config["seed"] for job in task.jobs] == [1, 2]
    assert all(job.path.is_absolute() for job in task.jobs)


def test_a_single_run_is_an_array_job_too_whose_script_requeues_a_killed_task(slurm):
    run(*jobs_of(1))
    assert "#SBATCH --array=0-0%1\n" in submitted()[0]
    assert submitted()[1].jobs[0].config["seed"] == 1
    slurm.states(task_RUNNING="None|10:00|10:00:00")
    (teardown,) = (line for line in submitted()[0].splitlines() if "flowdiff.launch.slurm.task" in line)
    array = {"SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "0", "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(["bash", "-c", f"(exit 137); {teardown}"], env={**os.environ, **array}, check=False)
    assert (done.returncode, slurm.asked[-1]) == (137, "scontrol requeue 7_0")


def test_a_job_that_submits_does_not_pass_on_its_own_environment(slurm, monkeypatch):
    inside = {"SLURM_JOB_ID": "1", "SLURM_CPUS_PER_TASK": "1", "CUDA_VISIBLE_DEVICES": "3"}
    kept = {"SLURM_CONF": "/etc/here", "SBATCH_ACCOUNT": "mine"}
    for key, value in (inside | kept).items():
        monkeypatch.setenv(key, value)
    run(*jobs_of(1))
    given = slurm.calls[-1]["environment"]
    assert {k: v for k, v in given.items() if k.startswith(("SLURM", "SBATCH", "CUDA"))} == kept
    assert os.environ["SLURM_CPUS_PER_TASK"] == "1"


def test_a_refused_job_changes_nothing(slurm, finished):
    said = "sbatch: error: invalid partition specified: moon"
    slurm.refuse("sbatch", f"{said}\nsbatch: error: Batch job submission failed")
    with pytest.raises(ConfigurationError, match=f"nothing was submitted: {said};"):
        run(finished, *jobs_of(2), force=True)
    assert finished.folder.is_complete
    assert sorted(os.listdir("s")) == ["seed-1-abc"]


def test_force_reopens_a_run_only_after_sbatch_has_accepted_the_job(slurm, finished):
    run(finished, force=True)
    assert "s/seed-1-abc/result.json" in slurm.calls[-1]["files"]
    assert finished.folder.starts_from_scratch
    assert (finished.folder.is_complete, finished.verdict("none", force=False)) == (False, "run")


def test_a_job_that_cannot_be_recorded_is_cancelled(slurm, monkeypatch):
    monkeypatch.setattr("flowdiff.launch.slurm.pool.record", Mock(side_effect=OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        run(*jobs_of(1))
    assert slurm.asked[-1] == "scancel 7"


def test_runs_that_are_complete_queued_or_running_are_not_submitted(slurm, finished):
    queued, running, new = jobs_of(2, 3, 4)
    run(queued)
    slurm.states(task_7_0="PENDING")
    with owned(running.path):
        rows, output = run(queued, finished, running, new)
    assert [row.state for row in rows] == ["queued", "skipped", "busy", "queued"]
    assert "already in the queue, as SLURM job 7_0" in output
    assert [one.tasks for one in submissions(Path("s"))] == [[["seed-2-abc"]], [["seed-4-abc"]]]


def test_waiting_ends_with_the_runs(monkeypatch):
    done, failed = jobs_of(1, 2)

    def sleep(seconds):
        for given in (done, failed):
            given.folder.write_config(given.config)
        done.folder.write_result({"metrics": {}})
        failed.fail("it broke.")

    monkeypatch.setattr("flowdiff.launch.slurm.pool.time.sleep", sleep)
    rows, output = run(done, failed, wait=True)
    assert [(row.state, row.note) for row in rows] == [("done", ""), ("failed", "it broke.")]
    assert "it broke." in output


def test_a_machine_without_slurm_is_a_sentence(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigurationError, match="needs sbatch and srun, which this machine does not have"):
        SlurmPool(WORKER, settings()).prepare()


@pytest.mark.parametrize(("strategy", "checked"), [("ddp", "ddp"), ("fsdp", "auto")])
def test_jobs_are_checked_without_the_devices_that_a_login_node_lacks(strategy, checked):
    wanted = {"kind": "gpu", "devices": 8, "num_nodes": 4, "precision": "16-mixed", "compile": True}
    found = SlurmPool(WORKER, settings()).checkable_config({"seed": 1, "accelerator": {**wanted, "strategy": strategy}})
    cpu = {"kind": "cpu", "devices": 1, "num_nodes": 1, "strategy": checked, "compile": True, "precision": "32-true"}
    assert found == {"seed": 1, "accelerator": cpu}
