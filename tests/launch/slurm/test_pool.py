"""Handing a sweep to SLURM, with stand-ins for its commands; tests/slurm does it with a real one."""

from __future__ import annotations

import io
import json
import os
import sys
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from submitit.core.utils import DelayedSubmission
from sweep_workers import config, job

from flowdiff.config import CONF
from flowdiff.errors import ConfigurationError
from flowdiff.launch.local import Worker
from flowdiff.launch.slurm.pool import Settings, SlurmPool, sbatch_parameters
from flowdiff.launch.slurm.submission import FOLDER, submissions
from flowdiff.runs import lock
from flowdiff.runs.job import Job

# sbatch notes what it was given, under which environment and what the run folders held then.
PROGRAMS = {
    "sbatch": """
        import glob, json, os, sys
        seen = {"script": open(sys.argv[1]).read(), "env": dict(os.environ), "files": glob.glob("s/*/*")}
        json.dump(seen, open("sbatch.json", "w"))
        if os.path.exists("refuse"):
            sys.exit("sbatch: error: invalid partition specified: moon\\nsbatch: error: Batch job submission failed")
        print("Submitted batch job 7")
    """,
    "srun": "",
    "scancel": "open('scancelled', 'w').write(__import__('sys').argv[1])",
    "squeue": "print(open('squeue').read())",
    "sinfo": "print('cpu*|(null)\\ngpu|gpu:a100:4(S:0-1)')",
}


@pytest.fixture(autouse=True)
def machine(tmp_path, monkeypatch):
    """A folder to work in, on a machine that has SLURM's commands."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, code in PROGRAMS.items():
        lines = code.strip("\n").splitlines()
        indent = len(lines[0]) - len(lines[0].lstrip()) if lines else 0
        (programs / name).write_text("\n".join([f"#!{sys.executable}", *(line[indent:] for line in lines)]))
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    Path("squeue").touch()


def settings(**changes) -> Settings:
    node = yaml.safe_load((CONF / "hydra" / "launcher" / "slurm.yaml").read_text())
    return Settings.checked({key: value for key, value in node.items() if not key.startswith("_")} | changes)


def run(jobs, retry="failed", force=False, **changes):
    """The rows and what was said."""
    console = Console(file=io.StringIO(), width=200)
    pool = SlurmPool(Worker("sweep_workers", "work"), settings(**changes), console)
    pool.warm()
    with pool.environment():
        rows = pool.run(jobs, retry, force)
    return rows, console.file.getvalue()


def jobs_of(*seeds) -> list[Job]:
    return [job(Path("s") / f"seed-{seed}-abc", seed=seed) for seed in seeds]


def given() -> dict:
    """What sbatch noted."""
    return json.loads(Path("sbatch.json").read_text())


def wants(**accelerator) -> dict:
    return {**config(), "accelerator": {"kind": "auto", "devices": 1, "num_nodes": 1, **accelerator}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"timeout_min": 0}, "hydra.launcher.timeout_min=0 is not allowed: input should be greater than 0"),
        ({"wait": "yes"}, "hydra.launcher.wait=yes is not allowed"),
        ({"setup": "module load cuda"}, "hydra.launcher.setup=module load cuda is not allowed"),
        ({"partitoin": "gpu"}, "hydra.launcher.partitoin=gpu is not allowed"),
    ],
)
def test_what_the_yaml_may_hold(changes, message):
    settings()
    with pytest.raises(ConfigurationError, match=message):
        settings(**changes)


@pytest.mark.parametrize(
    ("accelerator", "changes", "expected"),
    [
        ({"kind": "cpu"}, {"partition": "gpu"}, (1, 1, None)),  # nodes, tasks per node, GPUs per node
        ({}, {}, (1, 1, None)),  # the default partition has none
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
    ("wanted", "changes", "message"),
    [
        ([wants(devices="auto")], {}, "accelerator.devices=auto is not known before"),
        ([wants(devices=[0, 1])], {}, "a list of indices"),
        ([wants(devices=2)], {"runs_per_task": 2}, "does not go with runs on 2 devices"),
        ([wants(), wants(devices=2)], {}, "differ within the sweep"),
    ],
)
def test_what_one_array_cannot_hold(wanted, changes, message):
    with pytest.raises(ConfigurationError, match=message):
        sbatch_parameters(settings(**changes), wanted, Path("s"))


def test_an_array_job_is_submitted_recorded_and_said():
    rows, said = run(jobs_of(1, 2, 3), runs_per_task=2, partition="cpu", mem_gb=1.5, cpus_per_task=3)
    assert [row.state for row in rows] == ["queued"] * 3
    assert "submitted SLURM job 7 on cpu: 3 runs in an array of 2 tasks" in said
    (one,) = submissions(Path("s"))
    assert one.job_id == "7"
    assert one.tasks == [["seed-1-abc", "seed-2-abc"], ["seed-3-abc"]]
    script = given()["script"]
    for line in ("--array=0-1%2", "--partition=cpu", "--mem=1536MB", "--signal=USR2@120", "--requeue", "--time=240"):
        assert f"#SBATCH {line}\n" in script
    task = DelayedSubmission.load(Path("s", FOLDER, "7_0_submitted.pkl")).function
    assert [j.config["seed"] for j in task.jobs] == [1, 2]
    assert all(j.path.is_absolute() for j in task.jobs)


def test_a_single_run_is_an_array_too():
    run(jobs_of(1))
    assert "#SBATCH --array=0-0%1\n" in given()["script"]
    assert DelayedSubmission.load(Path("s", FOLDER, "7_0_submitted.pkl")).function.jobs[0].config["seed"] == 1


def test_a_job_that_submits_passes_on_nothing_of_its_own(monkeypatch):
    for key, value in {"SLURM_JOB_ID": "1", "SLURM_CPUS_PER_TASK": "1", "CUDA_VISIBLE_DEVICES": "3"}.items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("SLURM_CONF", "/etc/here")
    monkeypatch.setenv("SBATCH_ACCOUNT", "mine")
    run(jobs_of(1))
    seen = {key: value for key, value in given()["env"].items() if key.startswith(("SLURM", "SBATCH", "CUDA"))}
    assert seen == {"SLURM_CONF": "/etc/here", "SBATCH_ACCOUNT": "mine"}
    assert os.environ["SLURM_CPUS_PER_TASK"] == "1"


def test_what_sbatch_refuses_leaves_everything_as_it_was():
    (finished,) = jobs_of(1)
    finished.folder.write_config(finished.config)
    finished.folder.write_result({"metrics": {}})
    Path("refuse").touch()
    with pytest.raises(ConfigurationError, match=r"nothing was submitted: sbatch: error: invalid partition .* moon;"):
        run([finished, *jobs_of(2)], force=True)
    assert finished.folder.is_complete
    assert sorted(os.listdir("s")) == ["seed-1-abc"]


def test_force_empties_a_folder_once_sbatch_has_taken_it():
    (finished,) = jobs_of(1)
    finished.folder.write_config(finished.config)
    finished.folder.write_result({"metrics": {}})
    run([finished], force=True)
    assert "s/seed-1-abc/result.json" in given()["files"]
    assert list(finished.path.iterdir()) == []


def test_a_submission_that_cannot_be_recorded_is_taken_back(monkeypatch):
    def full(sweep, submission):
        raise OSError("no space")

    monkeypatch.setattr("flowdiff.launch.slurm.pool.record", full)
    with pytest.raises(OSError, match="no space"):
        run(jobs_of(1))
    assert Path("scancelled").read_text() == "7"


def test_only_what_is_neither_complete_nor_queued_nor_running_is_submitted():
    run(jobs_of(1))
    done, written = jobs_of(2, 3)
    done.path.mkdir()
    done.folder.write_result({"metrics": {}})
    Path("squeue").write_text("7_0|PENDING\n")
    with lock.held(written.path):
        rows, said = run(jobs_of(1, 2, 3, 4))
    assert [row.state for row in rows] == ["queued", "skipped", "busy", "queued"]
    assert "already in the queue, as SLURM job 7_0" in said
    assert [one.tasks for one in submissions(Path("s"))] == [[["seed-1-abc"]], [["seed-4-abc"]]]


def test_following_ends_with_the_runs(monkeypatch):
    monkeypatch.setattr("flowdiff.launch.slurm.pool.LOOK", 0.01)
    one, other = jobs_of(1, 2)

    def happen(seconds):
        for given, end in (
            (one, lambda j: j.folder.write_result({"metrics": {}})),
            (other, lambda j: j.fail("it broke.")),
        ):
            given.folder.write_config(given.config)
            end(given)

    monkeypatch.setattr("flowdiff.launch.slurm.pool.time.sleep", happen)
    rows, said = run([one, other], wait=True)
    assert [(row.state, row.note) for row in rows] == [("done", ""), ("failed", "it broke.")]
    assert "it broke." in said


def test_without_slurm_it_is_a_sentence(monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ConfigurationError, match="needs sbatch and srun, and this machine has none"):
        SlurmPool(Worker("sweep_workers", "work"), settings()).warm()


def test_what_a_login_node_lacks_does_not_stop_a_rehearsal():
    pool = SlurmPool(Worker("sweep_workers", "work"), settings())
    wanted = {"kind": "gpu", "devices": 8, "num_nodes": 4, "precision": "16-mixed", "compile": True}
    for strategy, there in (("ddp", "ddp"), ("fsdp", "auto")):
        tried = pool.rehearsal({"seed": 1, "accelerator": {**wanted, "strategy": strategy}})
        kept = {"strategy": there, "compile": True, "precision": "32-true"}
        assert tried == {"seed": 1, "accelerator": {"kind": "cpu", "devices": 1, "num_nodes": 1, **kept}}
