"""sample.py from outside: pictures and arrays of a finished run, its metrics, and sentences for mistakes."""

import csv
import re
import shutil

import numpy as np
import pytest
from cli_process import check_mistakes, fresh, script, succeed
from runs import TINY, TINY_DIGITS, train, without_flow

from flowdiff import load, sample


def trained(*overrides):
    """A fixture: the folder of a run that is trained once for all tests of this module."""

    def folder(tmp_path_factory):
        train(path := tmp_path_factory.mktemp("sample"), *overrides)
        return path

    return pytest.fixture(scope="module")(folder)


run = trained(*TINY_DIGITS, "guidance=none")
toy = trained(*TINY, "conditioner=none")
raw = trained(
    *without_flow(TINY), "conditioner=none", "network=mlp", "scaling=edm", "network.width=16", "network.depth=1"
)


def test_grid_and_arrays(run, tmp_path):
    command = ["num_samples=12", "sampler=heun", "sampler.num_steps=2", "class_label=3", "guidance=cfg"]
    done = fresh("sample", f"run={run}", *command, "guidance.scale=2", "start=flow", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (npz,) = (run / "samples").glob("*class_label-3*/samples.npz")
    array = np.load(npz)["arr_0"]
    assert array.shape == (12, 8, 8, 1)
    assert array.dtype == np.uint8
    assert (npz.parent / "samples.png").is_file()
    assert "12 samples in" in done.stdout + done.stderr


def test_three_ways_to_samples_side_by_side(run, toy, tmp_path):
    for folder, kept in ((run, (6, 8, 8, 1)), (toy, (6, 2))):
        command = ["start=compare", "num_samples=6", "sampler.num_steps=2", "seed=3", f"out={tmp_path / folder.name}"]
        done = succeed("sample", f"run={folder}", *command, cwd=tmp_path)
        for said in ("one-shot flow", "then heun with 2 steps", "diffusion, heun with 2 steps"):
            assert re.search(rf"6 samples in [\d.]+ s \(\d+ /s\) by .*{said}", done.stderr)
        assert (tmp_path / folder.name / "comparison.png").is_file()
        assert not (tmp_path / folder.name / "samples.png").exists()
        arrays = np.load(tmp_path / folder.name / "samples.npz")
        assert set(arrays) == {"flow", "denoised", "diffusion"}
        assert all(array.shape == kept for array in arrays.values())
        # Each is what it is by itself.
        sigma = re.search(r"flow at σ = ([\d.]+)", done.stderr)[1]
        assert float(sigma) == pytest.approx(float(load(folder).sigma_data) / 3, rel=3e-3)  # three digits
    denoiser = load(toy)
    for name, start in (("flow", {"start": "flow"}), ("diffusion", {})):
        alone = sample(denoiser, 6, num_steps=2, seed=3, **start)
        np.testing.assert_allclose(arrays[name], alone.numpy(), atol=1e-5)


def last_rows(folder, n):
    with (folder / "evaluations.csv").open() as file:
        return list(csv.DictReader(file))[-n:]


def test_each_way_is_measured(toy, tmp_path):
    succeed("sample", f"run={toy}", "start=compare", "sigma_start=0.4", "evaluate=true", cwd=tmp_path)
    rows = last_rows(toy, 3)
    assert [(row["start"], row["sigma_start"], row["nfe"], row["clip"]) for row in rows] == [
        ("flow", "", "1.0", "false"),
        ("flow", "0.4", "5.0", "true"),
        ("noise", "", "5.0", "true"),
    ]
    assert len({row["fd_data"] for row in rows}) == 3
    assert len({row["interpolation_nats_per_dim"] for row in rows} - {""}) == 1


def test_another_run_denoises_what_a_flow_begins(raw, toy, tmp_path):
    """One evaluation of the MLP for a sample of the flow, and the same samples as from Python."""
    given = ["start=flow", f"start_run={toy}", "sigma_start=0.4", "sampler=euler", "sampler.num_steps=1"]
    out = tmp_path / "out"
    done = succeed("sample", f"run={raw}", *given, "num_samples=6", "evaluate=true", f"out={out}", cwd=tmp_path)
    assert "flow of another run at σ = 0.4, then euler with 1 steps" in done.stderr
    (row,) = last_rows(raw, 1)
    assert (row["start"], row["sigma_start"], row["start_run"], row["nfe"]) == ("flow", "0.4", str(toy), "1.0")
    options = {"start": "flow", "sigma_start": 0.4, "start_model": load(toy), "sampler": "euler", "num_steps": 1}
    alone = sample(load(raw), 6, **options)
    np.testing.assert_allclose(np.load(out / "samples.npz")["arr_0"], alone.numpy(), atol=1e-5)


def test_clip_is_that_of_the_run_or_is_chosen(toy, tmp_path):
    """Two moons reach from −2 to 2.6; without a range the samples of a hardly trained flow go beyond it."""
    drawn = []
    for clip in ([], ["clip=true"], ["clip=false"]):
        out = tmp_path / f"out{len(drawn)}"
        succeed("sample", f"run={toy}", "num_samples=200", f"out={out}", *clip, cwd=tmp_path)
        drawn.append(np.load(out / "samples.npz")["arr_0"])
    measured = load(toy).data_range
    assert np.array_equal(drawn[0], drawn[1])
    assert (drawn[1].min(0) >= measured.low.numpy()).all()
    assert (drawn[1].max(0) <= measured.high.numpy()).all()
    assert not np.array_equal(drawn[1], drawn[2])


def test_help_says_what_the_ways_are(tmp_path):
    done = script("sample", "--help", cwd=tmp_path)
    assert "start=compare  one-shot flow, denoised flow and pure diffusion side by side" in done.stdout


def test_sweep_of_steps_without_retraining(toy, tmp_path):
    succeed("sample", "-m", f"run={toy}", "sampler.num_steps=1,2", "num_samples=8", "evaluate=true", cwd=tmp_path)
    rows = last_rows(toy, 2)
    assert [row["num_steps"] for row in rows] == ["1", "2"]
    assert [float(row["nfe"]) for row in rows] == [1.0, 3.0]  # heun: 2N − 1
    assert all(float(row["fd_data"]) > 0 for row in rows)
    assert (toy / "result.json").is_file()


def test_several_runs_are_sampled_each_from_its_own_settings(run, toy, tmp_path):
    succeed("sample", "-m", f"run={run},{toy}", "num_samples=4", f"out={tmp_path}/${{run}}", cwd=tmp_path)
    drawn = [np.load(next((tmp_path / f.relative_to("/")).glob("*.npz")))["arr_0"].shape for f in (run, toy)]
    assert drawn == [(4, 8, 8, 1), (4, 2)]


MISTAKES = [
    (["run=nowhere"], "run=nowhere does not exist"),
    ([], "needs run=<run folder>"),
    (["run={tmp}"], "is not a run folder"),
    (["run={run}", "class_label=10"], "class_label=10 is out of range: this model knows the classes 0 … 9"),
    (["run={run}", "samplr.num_steps=3"], "samplr"),
    (["run={run}", "sampler=hein"], "did you mean 'heun'?"),
    (["run={run}", "sampler.num_steps=0"], "sampler.num_steps=0 is not allowed"),
    (["run={run}", "clip=always"], "clip=always is not allowed: it must be auto, true or false"),
    (["run={run}", "start=middle"], "start=middle is not allowed: it must be noise, flow, compare or image"),
    (["run={run}", "start=flow", "sigma_start=1000"], "a start at sigma=1000 is not allowed"),
    (["run={run}", "num_samples=-1"], "num_samples=-1 is not allowed"),
    (["run={run}", "class_label=abc"], "class_label=abc is not allowed"),
    (["run={run}", "batch_size=0"], "batch_size=0 is not allowed: it must be an integer ≥ 1"),
    (["run={run}", "device=gpu"], "device=gpu is not allowed: it must be auto, cpu or cuda"),
    (["run={run}", "evaluate=perhaps"], "evaluate=perhaps is not allowed"),
    (["run={toy}", "guidance=cfg"], "trained without label dropout"),
    (["run={toy}", "class_label=1"], "unconditional model"),
    (["run={raw}", "start=compare"], "start=flow draws from a density, but MLP is not a density"),
    (["run={raw}", "start_run={toy}"], "is a flow to begin with, and start=null does not begin with one"),
    (["run={raw}", "start_run={raw}", "start=flow"], "has no density to draw from"),
    (["run={raw}", "start_run={run}", "start=flow"], "of shape 1×8×8, and the model that denoises is one of samples"),
    (["run={raw}", "start_run=nowhere", "start=flow"], "start_run=nowhere cannot give the start: run=nowhere does not"),
]


def test_mistakes_end_as_one_sentence(run, toy, raw, tmp_path):
    places = {"run": run, "toy": toy, "raw": raw, "tmp": tmp_path}
    mistakes = [([a.format(**places) for a in arguments], sentence) for arguments, sentence in MISTAKES]
    check_mistakes("sample", mistakes, tmp_path)
    assert not list(tmp_path.iterdir())


def test_missing_and_foreign_checkpoints_are_sentences(run, toy, tmp_path):
    for name in ("foreign", "missing"):
        shutil.copytree(run, tmp_path / name)
    shutil.copy(toy / "checkpoints" / "last.ckpt", tmp_path / "foreign" / "checkpoints" / "last.ckpt")
    (tmp_path / "missing" / "checkpoints" / "last.ckpt").unlink()
    mistakes = [(["run=foreign"], "is not a checkpoint of this run's configuration")]
    check_mistakes("sample", [*mistakes, (["run=missing"], "has no checkpoint")], tmp_path)
