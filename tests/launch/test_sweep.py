"""`python train.py -m`: what a user sees of a sweep, from the command line to its folder."""

import json
import subprocess
import sys

import pytest
from cli_process import ROOT, check_interrupted_sweep, numbers, outcomes
from runs import TINY

from flowdiff.runs.run_folder import RunFolder

PLUGIN = '''
"""A schedule that breaks when a model is sampled (under no_grad), not when it is checked beforehand."""
import torch

from flowdiff.diffusion.schedules.formulas import Karras
from flowdiff.errors import DataError
from flowdiff.registry import register


@register("schedule", "broken")
class Broken(Karras):
    def __init__(self, *, sigma_min: float = 0.01, works: bool = False):
        super().__init__(sigma_min=sigma_min, sigma_max=80.0, rho=7.0)
        self.works = works

    def _levels(self, num_steps, sigma_max):
        if not self.works and not torch.is_grad_enabled():
            raise DataError("this schedule is broken: take another.")
        return super()._levels(num_steps, sigma_max)
'''


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """Several commands, one after the other: (exit status, stderr) of each, and their folder."""
    cwd = tmp_path_factory.mktemp("sweeps")
    (cwd / "plugin.py").write_text(PLUGIN)
    RunFolder(cwd / "run").write_config({})
    tiny = [*(o for o in TINY if "max_steps" not in o), "trainer.max_steps=2"]
    sweep = ["-m", *tiny, "hydra.sweep.dir=multirun/s"]
    commands = {
        "first": [*sweep, "seed=1,2"],
        "again": ["-m", "seed=1,2,3", *reversed(tiny), "hydra.sweep.dir=multirun/s", "logger=csv"],
        "senseless": [*sweep, "hydra.sweep.dir=multirun/none", "seed=1,2", "scaling=score,edm,eps"],
        "retry": [*sweep, "retry=some", "seed=1,2"],
        "resume": [*sweep, "resume=run", "seed=1,2"],
        "slots": [*sweep, "hydra.launcher.jobs_per_device=0", "force=true", "seed=1,2"],
        "broken": [*sweep, "plugins=[plugin.py]", "schedule=broken", "schedule.works=true,false", "seed=1"],
    }
    return dict(zip(commands, outcomes("train", list(commands.values()), cwd), strict=True)), cwd


def folders(cwd, schedule="karras"):
    """The run folders of the sweep that have this schedule, by seed and whether it works."""
    found = [RunFolder(path) for path in (cwd / "multirun" / "s").iterdir() if path.is_dir()]
    configs = [(folder, folder.config()) for folder in found]
    chosen = [(f, c) for f, c in configs if c["schedule"]["name"] == schedule]
    keyed = {(c["seed"], c["schedule"].get("works", True)): f for f, c in chosen}
    assert len(keyed) == len(chosen)  # no run has two folders
    return keyed


def test_a_sweep_leaves_complete_runs_and_runs_none_of_them_again(ran):
    results, cwd = ran
    assert results["first"] == results["again"] == (0, "")
    found = folders(cwd)
    assert found.keys() == {(1, True), (2, True), (3, True)}
    for (seed, _), folder in found.items():  # complete: a refused force=true has deleted nothing
        assert (folder.result()["seed"], folder.result()["sweep"]) == (seed, "s")
        assert (folder.path / "train.log").read_text().count("model score_flow") == 1


def test_all_jobs_that_make_no_sense_are_named_and_nothing_starts(ran):
    results, cwd = ran
    status, stderr = results["senseless"]
    assert status == 2
    head, *lines = stderr.splitlines()
    assert head == "4 of 6 jobs make no sense, so none was started:"
    jobs = [f"  seed={seed} scaling={scaling}" for seed in (1, 2) for scaling in ("edm", "eps")]
    assert [line.partition(": ")[0] for line in lines] == jobs
    assert not (cwd / "multirun" / "none").exists()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("retry", "retry=some is not allowed: set it to failed"),
        ("resume", "resume=run"),
        ("slots", "jobs_per_device=0 is not allowed"),
    ],
)
def test_bad_input_is_a_sentence(ran, name, message):
    status, stderr = ran[0][name]
    assert status == 2
    assert message in stderr
    assert "Traceback" not in stderr


def test_a_failed_run_is_a_sentence_a_file_and_an_exit_status(ran):
    results, cwd = ran
    assert results["broken"] == (2, "schedule.works=False failed: this schedule is broken: take another.\n")
    runs = folders(cwd, "broken")
    assert runs[1, True].is_complete
    assert json.loads(runs[1, False].failed_file.read_text()) == {"error": "this schedule is broken: take another."}


def test_the_launcher_is_found_without_torch():
    probe = "import sys, hydra_plugins.flowdiff; print([m for m in ('torch', 'lightning', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.slow
def test_a_sweep_that_is_killed_three_times_ends_like_an_undisturbed_one(tmp_path):
    shared = [o for o in TINY if not o.startswith(("trainer.max_steps", "metrics.every_n_steps"))]
    command = ["-m", *shared, "trainer.max_steps=120", "metrics.every_n_steps=30", "seed=1,2,3"]
    undisturbed, killed = check_interrupted_sweep(command, 3, tmp_path)
    for path in undisturbed.glob("*/"):
        assert numbers(RunFolder(killed / path.name)) == numbers(RunFolder(path))
        assert RunFolder(killed / path.name).result()["steps"] == RunFolder(path).result()["steps"] == 120
