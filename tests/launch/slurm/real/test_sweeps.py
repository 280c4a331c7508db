"""Sweeps on a real SLURM, interrupted in every way: every run ends as if nothing had happened."""

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import runs
from cli_process import ROOT, numbers, outcomes
from sweep_workers import wait_until

from flowdiff.launch.slurm.queue import slurm_states
from flowdiff.launch.slurm.submission import submissions
from flowdiff.launch.slurm.task import seconds
from flowdiff.launch.status import statuses
from flowdiff.runs.ownership import owner
from flowdiff.runs.run_folder import RunFolder

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]

PLUGIN = '''
"""edm, but each call takes a second until there is a file `go`: slow runs that leave the CPU free."""
import time
from pathlib import Path

from flowdiff.diffusion.sigma_samplers import EDM
from flowdiff.registry import create, register


@register("sigma_sampler", "paced")
class Paced(EDM):
    def __init__(self):
        vars(self).update(vars(create("sigma_sampler", "edm")))

    def __call__(self, n, generator=None, device=None):
        if not Path("go").exists():
            time.sleep(1)
        return super().__call__(n, generator, device)
'''
EVERY = 10  # steps between two checkpoints
STEPS = 60  # of most runs; one per second until the file `go` exists
LONG = 120  # steps of the run that needs more than its time limit
TINY = [*runs.ANY_STEPS, f"metrics.every_n_steps={EVERY}", "plugins=[paced.py]", "sigma_sampler=paced"]
SLURM = ["hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1"]


@pytest.fixture(scope="module")
def submitted(cluster, tmp_path_factory):
    """Several sweeps, submitted by one process that has ended: (exit status, stderr) of each, and their folder."""
    cwd = tmp_path_factory.mktemp("submitted")
    (cwd / "paced.py").write_text(PLUGIN)
    steps = f"trainer.max_steps={STEPS}"
    two = "hydra.launcher.array_parallelism=2"
    later = "+hydra.launcher.additional_parameters.hold=true"  # not interrupted
    wandb = ["logger=wandb", "logger.mode=offline"]
    ddp = ["accelerator=ddp", "accelerator.kind=cpu", "accelerator.devices=2"]
    settings = {
        "long": ["seed=0", f"trainer.max_steps={LONG}", "hydra.launcher.signal_delay_s=100", *wandb],
        "array": ["seed=1,2,3,4,5,6", steps, two],
        "ranks": ["seed=0", steps, *ddp],
        "nowhere": ["seed=1,2", steps, "hydra.launcher.partition=moon"],
        "again": ["seed=1,2,3,4,5,6,10", steps, two, later, "hydra.sweep.dir=multirun/array"],
        "packed": ["seed=7,8,9", "trainer.max_steps=4", "hydra.launcher.runs_per_task=2", later],
    }
    commands = {}
    for name, given in settings.items():
        tiny = TINY if name != "ranks" else [o for o in TINY if o != "accelerator=cpu"]
        commands[name] = ["-m", given[0], *tiny, *SLURM, f"hydra.sweep.dir=multirun/{name}", *given[1:]]
    return dict(zip(commands, outcomes("train", list(commands.values()), cwd), strict=True)), cwd


@pytest.fixture(scope="module")
def ended(submitted):
    """The folder after all interruptions and the end of all sweeps, and the states that each sweep was in."""
    _, cwd = submitted
    array, long, ranks = (cwd / "multirun" / name for name in ("array", "long", "ranks"))
    seen = {name: set() for name in ("array", "long", "ranks", "packed")}

    def until(condition):
        def watch():
            for name, states in seen.items():
                states |= {(status.state, status.note) for status in statuses(cwd / "multirun" / name)}
            return condition()

        wait_until(watch, 400, 1)

    def preempt(sweep, run):
        until(lambda: steps_of(sweep, run) > 3)
        # scancel delivers the signal, and repeats it while other tasks of the array are pending.
        with subprocess.Popen(["scancel", "--signal=USR2", job_of(sweep, run)], stderr=subprocess.DEVNULL) as asking:
            until(lambda: starts_again(sweep, run))
            asking.terminate()

    slow = of_seed(long, 0)
    until(lambda: steps_of(long, slow) > 3)
    # A time limit in about two minutes. SLURM checks it about twice a minute.
    used = seconds(slurm("squeue", "--noheader", "--format=%M", f"--jobs={job_of(long, slow)}").strip())
    slurm("scontrol", "update", f"JobId={job_of(long, slow)}", f"TimeLimit={used // 60 + 2:.0f}")
    first, second, third = (of_seed(array, seed) for seed in (1, 2, 3))
    preempt(array, first)
    until(lambda: steps_of(array, second) > EVERY + 3)
    os.kill(owner(array / second)["pid"], signal.SIGKILL)
    preempt(ranks, of_seed(ranks, 0))
    until(lambda: steps_of(array, third) > 3)
    # A job that takes all processors of the node preempts everything else.
    slurm("sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=sleep 1")
    until(lambda: "time limit" in starts_again(long, slow))
    slurm("scontrol", "update", f"JobId={job_of(long, slow)}", "TimeLimit=60")
    done = steps_of(long, slow)
    until(lambda: starts_again(array, third) and steps_of(long, slow) > done)
    slurm("scontrol", "requeue", job_of(long, slow))
    for held in (submissions(array)[1], *submissions(cwd / "multirun" / "packed")):
        slurm("scontrol", "release", held.job_id)
    (cwd / "go").touch()
    for name in seen:
        until(
            lambda sweep=cwd / "multirun" / name: all(RunFolder(sweep / run).is_complete for run in submitted_to(sweep))
        )
    until(lambda: not slurm("squeue", "--noheader"))
    return cwd, seen


def submitted_to(sweep: Path) -> list[str]:
    return [run for one in submissions(sweep) for task in one.tasks for run in task]


def of_seed(sweep: Path, seed: int) -> str:
    """The name of a run's folder, from the record of the submission."""
    (name,) = (run for run in submitted_to(sweep) if run.startswith(f"seed-{seed}__"))
    return name


def job_of(sweep: Path, run: str) -> str:
    (name,) = (f"{s.job_id}_{i}" for s in submissions(sweep) for i, task in enumerate(s.tasks) if run in task)
    return name


def steps_of(sweep: Path, run: str) -> int:
    return RunFolder(sweep / run).progress()[0]


def starts_again(sweep: Path, run: str) -> list[str]:
    """The reasons for which the run's task was requeued."""
    file = sweep / "slurm" / f"{job_of(sweep, run)}_requeued.jsonl"
    return [json.loads(line)["reason"] for line in file.read_text().splitlines()] if file.exists() else []


def slurm(*command: object, **options) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, timeout=200, **options).stdout


def test_submitting_returns_at_once_and_a_refused_sweep_leaves_nothing(submitted):
    results, cwd = submitted
    assert {name: status for name, (status, _) in results.items()} == {**dict.fromkeys(results, 0), "nowhere": 2}
    assert results["array"] == (0, "")
    assert "invalid partition specified: moon" in results["nowhere"][1]
    assert len(results["nowhere"][1].splitlines()) == 1
    assert not (cwd / "multirun" / "nowhere").exists()
    first, second = submissions(cwd / "multirun" / "array")
    assert [len(task) for task in first.tasks] == [1] * 6
    assert [[name.partition("__")[0] for name in task] for task in second.tasks] == [["seed-10"]]
    assert first.command[1:3] == ["-m", "seed=1,2,3,4,5,6"]


def test_every_run_ends_complete_and_was_never_lost(ended):
    cwd, seen = ended
    for name, total in (("long", 1), ("array", 7), ("ranks", 1), ("packed", 3)):
        folders = [RunFolder(path) for path in (cwd / "multirun" / name).iterdir() if (path / "config.yaml").exists()]
        assert [folder.is_complete for folder in folders] == [True] * total
        assert {state for state, _ in seen[name]} <= {"queued", "running", "done"}, seen[name]
    ranks = cwd / "multirun" / "ranks"  # a run of two processes is resumed too
    assert "#SBATCH --ntasks-per-node=2\n" in next((ranks / "slurm").glob("*.sh")).read_text()
    check_resumed(RunFolder(ranks / of_seed(ranks, 0)), STEPS)
    packed = cwd / "multirun" / "packed"  # its runs share a task
    (one,) = submissions(packed)
    assert [len(task) for task in one.tasks] == [2, 1]
    for path in packed.glob("seed-*"):
        assert RunFolder(path).result()["device"] == "cpu, 1 thread"


INTERRUPTED = [("array", 1, "preemption"), ("array", 2, "kill"), ("array", 3, "preemption"), ("long", 0, "time limit")]


@pytest.mark.parametrize(("name", "seed", "reason"), INTERRUPTED)
def test_an_interrupted_run_ends_as_if_undisturbed(ended, tmp_path, name, seed, reason):
    sweep, steps = ended[0] / "multirun" / name, LONG if name == "long" else STEPS
    run = of_seed(sweep, seed)
    assert reason in starts_again(sweep, run)
    check_resumed(RunFolder(sweep / run), steps)
    # The same run in this process, without pauses or interruptions.
    plain = [o for o in TINY if not o.startswith(("plugins", "sigma_sampler"))]
    runs.train(tmp_path / "run", *plain, f"trainer.max_steps={steps}", f"seed={seed}")
    assert numbers(RunFolder(sweep / run)) == numbers(RunFolder(tmp_path / "run"))
    if name == "long":  # W&B has a fragment of every start, and all belong to one run
        fragments = [path.name.rpartition("-")[2] for path in (sweep / run / "wandb").glob("offline-run-*")]
        assert len(fragments) > 2
        assert set(fragments) == {run.rpartition("-")[2]}


def check_resumed(folder: RunFolder, steps: int) -> None:
    """Check that it was trained once, in several starts."""
    assert folder.result()["steps"] == steps
    log = (folder.path / "train.log").read_text()
    begun = [line for line in log.splitlines() if " training and " in line]  # logged when the data has been read
    later = [int(step) for step in re.findall(r"continuing from step (\d+)", log)]
    assert len(begun) > 1
    assert len(later) == len(begun) - 1  # all starts but the first resumed
    assert later == sorted(later)
    assert later[0] > 0


def test_a_cancelled_task_is_not_started_again(cluster, tmp_path):
    (tmp_path / "paced.py").write_text(PLUGIN)
    sweep = tmp_path / "multirun" / "cancelled"
    # Submitted from inside a job, whose resources do not limit the jobs that it submits.
    command = [sys.executable, ROOT / "train.py", "-m", "seed=1", *TINY, *SLURM, f"hydra.sweep.dir={sweep}"]
    command += ["trainer.max_steps=1000", "hydra.launcher.cpus_per_task=2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    inside = ["srun", "--ntasks=1", "--cpus-per-task=1", "--time=5", "--job-name=outer"]
    stdout = slurm(*inside, *command, cwd=tmp_path, env=environment)
    (run,) = submissions(sweep)[0].tasks[0]
    job = job_of(sweep, run)
    assert f"submitted SLURM job {submissions(sweep)[0].job_id}: 1 runs" in stdout
    assert "flowdiff status" in stdout
    wait_until(lambda: steps_of(sweep, run) > 3, 120, 0.2)
    slurm("scancel", job)
    wait_until(lambda: slurm_states([job.partition("_")[0]])[job] == "CANCELLED", 120, 0.2)
    folder = RunFolder(sweep / run)
    assert "SIGTERM stopped the run after step" in (folder.path / "train.log").read_text()
    assert folder.failure() is None
    assert starts_again(sweep, run) == []
