"""evaluate=true on the command line: sweeps over guidance, evaluations.csv and W&B, several processes, errors."""

import csv
import shutil
import socket

import pytest
import yaml
from cli_process import ROOT, outcomes, script, start, succeed
from runs import TINY, TINY_DIGITS, train, without_flow
from wandb_files import offline_runs

from flowdiff.runs.records import read_health
from flowdiff.runs.run_folder import RunFolder

ONLY_FRECHET = [f"metrics.{key}=false" for key in ("likelihood", "classify", "outliers", "interpolate")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A conditional run, a weaker one that logs to W&B, a classifier of the same data, and a run of other data."""
    folder = tmp_path_factory.mktemp("evaluate")
    train(folder / "run", *TINY)
    offline = ["logger=wandb", "logger.mode=offline"]
    train(folder / "weak", *TINY, "trainer.max_steps=2", "metrics.every_n_steps=2", "dataset.num_test=63", *offline)
    classifier = ["network=classifier", "loss=cross_entropy", "conditioner=one_hot", "metrics.frechet=false"]
    tiny = without_flow(TINY)
    train(folder / "classifier", *tiny, *classifier, "metrics.sigma_sweep=[0.5]", "trainer.max_steps=2")
    train(folder / "digits", *TINY_DIGITS)
    return folder


def rows_of(run):
    with (run / "evaluations.csv").open() as file:
        return list(csv.DictReader(file))


def test_a_classifier_run_reports_its_accuracy_by_noise_level(folders):
    found = RunFolder(folders / "classifier").result()["metrics"]
    assert 0 <= found["class_accuracy_sigma_0.5"] <= 1
    assert "class_accuracy" in found
    assert "bpd" not in found


def test_a_run_of_an_older_version_gets_the_health_of_its_score(folders, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(folders / "run", run)
    settings = yaml.safe_load((run / "config.yaml").read_text())
    del settings["metrics"]["health"]
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    measured = read_health(run / "health.json")
    for name in ("health.json", "denoising.png"):
        (run / name).unlink()
    done = succeed("sample", f"run={run}", "evaluate=true", "num_samples=4", "metrics.frechet=false", cwd=tmp_path)
    assert "today's defaults" not in done.stderr + done.stdout
    assert read_health(run / "health.json") == measured
    assert (run / "denoising.png").stat().st_size > 0
    (row,) = rows_of(run)
    before = RunFolder(run).result()["metrics"]
    for key in ("denoising_worst", "min_eigenvalue", "fokker_planck"):
        assert float(row[key]) == pytest.approx(before[key], rel=1e-6)


def test_a_sweep_over_guidances_fills_the_table(folders, tmp_path):
    run = folders / "run"
    sweep = ["-m", f"run={run}", "evaluate=true", "num_samples=4", "metrics.num_samples=20", "seed=5", *ONLY_FRECHET]
    euler = ["sampler=euler", "sampler.num_steps=3"]
    classifier = ["guidance=classifier", f"guidance.run={folders / 'classifier'}"]
    by = [
        ["guidance=cfg,flow_classifier", "guidance.scale=3", "guidance.interval=[0.2,3]", *euler],
        ["guidance=autoguidance", f"guidance.run={folders / 'weak'}", "guidance.rescale=0.5,0"],
        [*classifier, "guidance.dynamic_threshold=0.99"],
        [*classifier, "guidance.inner={name: cfg, interval: [1,9]}"],
    ]
    for status, stderr in outcomes("sample", [[*sweep, *more] for more in by], tmp_path):
        assert status == 0, stderr
    rows = rows_of(run)
    kinds = ["cfg", "flow_classifier", "autoguidance", "autoguidance", "classifier", "classifier"]
    assert [row["guidance"] for row in rows] == kinds
    assert [row["guidance_scale"] for row in rows] == ["3", "3", "2.0", "2.0", "2.0", "2.0"]
    assert [row["guidance_interval"] for row in rows] == ["[0.2, 3]"] * 2 + ["null"] * 4
    assert [row["guidance_rescale"] for row in rows] == ["0.0", "0.0", "0.5", "0", "0.0", "0.0"]
    assert [row["guidance_inner"] for row in rows][3:] == ["null", "null", '{"name": "cfg", "interval": [1, 9]}']
    assert {row["num_samples"] for row in rows} == {"20"}
    # Euler's three levels are 80, 2.5 and 0.002: one of them is guided. Heun's five evaluations are all guided and
    # cost two each; with cfg inside, the two at 2.5 cost three.
    assert [float(row["nfe"]) for row in rows] == [4, 4, 10, 10, 10, 12]
    assert len({row["fd_data"] for row in rows}) == 6


def test_several_processes_share_the_samples_and_one_writes_and_logs_to_wandb(folders, tmp_path):
    run, before = folders / "weak", len(offline_runs(folders / "weak"))
    command = [f"run={run}", "evaluate=true", "num_samples=3", "metrics.num_samples=21", "device=cpu"]
    command += ["metrics.ode.measure=true", "metrics.ode.rtol=1e-3", *ONLY_FRECHET[2:]]
    alone = script("sample", *command, cwd=tmp_path)
    assert alone.returncode == 0, alone.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    together = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    said = tmp_path / "said"
    processes = [
        start(ROOT / "sample.py", *command, cwd=tmp_path, output=(said, said), RANK=rank, LOCAL_RANK=rank, **together)
        for rank in "01"
    ]
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0], said.read_text()
    one, two = rows_of(run)
    assert one["num_samples"] == two["num_samples"] == "21"
    assert one["nfe"] == two["nfe"]
    # Batches of another size round differently. The splits are odd: a sample counted twice would add 1/63 to each.
    for metric in ("fd_data", "nats_per_dim", "nats_per_dim_se", "class_accuracy", "class_ece"):
        assert float(two[metric]) == pytest.approx(float(one[metric]), rel=1e-4)
    # The solver chooses its steps by its batch, so that its results agree to its tolerance.
    assert float(two["nats_per_dim_ode"]) == pytest.approx(float(one["nats_per_dim_ode"]), rel=1e-2)
    appended = offline_runs(run)[before:]
    assert [a.summary["evaluation/number"] for a in appended] == [1, 2]
    assert [a.summary["evaluation/fd_data"] for a in appended] == [float(row["fd_data"]) for row in (one, two)]
    assert {a.run_id for a in appended} == {RunFolder(run).result()["run_id"]}
    assert all(a.resume and a.exit_code == 0 for a in appended)
    assert not any("fd_data" in a.summary for a in appended)  # the numbers of the training stay


def test_options_that_do_not_fit_the_run_are_refused_in_one_sentence(folders, tmp_path):
    run, digits = f"run={folders / 'run'}", f"guidance.run={folders / 'digits'}"
    weak = ["guidance=autoguidance", f"guidance.run={folders / 'weak'}"]
    mistakes = [
        (
            [run, "guidance=autoguidance", digits],
            "of shape 1×8×8, and the model to be guided is one of samples of shape 2:",
        ),
        (
            [run, "guidance=autoguidance", "guidance.run=nowhere"],
            "nowhere does not exist: give the folder",
        ),
        ([run, *weak, "guidance=classifier"], "is not a classifier"),
        ([run, *weak, "guidance.inner={scale: 2}"], "does not name a guidance"),
        ([run, *weak, "guidance.inner={name: cfg, scael: 2}"], "did you mean 'scale'"),
        ([run, "guidance=cfg", "guidance.interval=[3,1]"], "low < high"),
        ([run, "start=flow", "sigma_start=1e-5"], "a start at sigma=1e-05 is not allowed: this model was trained at"),
        ([run, "start=flow", "sigma_start=900", "schedule.sigma_max=1000"], "this model was trained at 0.0005"),
    ]
    commands = [command for command, _ in mistakes]
    for (_, sentence), (status, stderr) in zip(mistakes, outcomes("sample", commands, tmp_path), strict=True):
        assert status == 2, stderr
        assert sentence in stderr
        assert len(stderr.strip().splitlines()) == 1
    ((status, stderr),) = outcomes("train", [[*TINY, "guidance=autoguidance", digits]], tmp_path)
    assert status == 2
    assert "of shape 1×8×8" in stderr


def test_rows_of_an_older_table_stay(tmp_path):
    folder = RunFolder(tmp_path)
    folder.evaluations.write_text("sampler,num_steps,fd_data\nheun,18,2.5,what a hand has added\n")
    assert folder.append_evaluation({"sampler": "euler", "guidance_interval": "null", "fd_data": 3.0}) == 2
    assert rows_of(tmp_path) == [
        {"sampler": "heun", "num_steps": "18", "fd_data": "2.5", "guidance_interval": ""},
        {"sampler": "euler", "num_steps": "", "fd_data": "3.0", "guidance_interval": "null"},
    ]
