"""Averages of the weights: their profiles, what a run tracks of them, and those of any width after it."""

import json
import math

import numpy as np
import pytest
import torch
from runs import ANY_STEPS, settings, train

import flowdiff
from flowdiff.cli import ema as command
from flowdiff.errors import ConfigurationError, RunError
from flowdiff.runs.identity import run_id
from flowdiff.training.averages import WIDEST, Exponential, Power, Snapshot, combination, gamma_of, ramped
from flowdiff.training.posthoc import Averages

STEPS = 640
LITTLE = [*ANY_STEPS, "metrics.frechet=false", "metrics.likelihood=false", "metrics.every_n_steps=20"]
LITTLE += [f"metrics.health.{key}=false" for key in ("denoising", "eigenvalue", "fokker_planck")]


def directly(profile, path):
    """The average of a path of weights (T, D), after every step."""
    found = [path[0]]
    for step in range(2, len(path) + 1):
        found.append(found[-1] + (1 - profile.beta(step)) * (path[step - 1] - found[-1]))
    return np.stack(found)


@pytest.fixture(scope="module")
def path():
    """The weights of a training: a random walk, (T, 20)."""
    rng = np.random.default_rng(0)
    return rng.normal(size=20) + rng.normal(size=(STEPS, 20)).cumsum(0) / math.sqrt(STEPS)


@pytest.mark.parametrize("width", [0.01, 0.05, 0.1, 0.2, 0.28])
def test_a_power_average_is_as_wide_as_it_says(width, path):
    gamma = gamma_of(width)
    assert math.sqrt(gamma + 1) / ((gamma + 2) * math.sqrt(gamma + 3)) == pytest.approx(width, rel=1e-9)
    ends = (np.arange(STEPS + 1) / STEPS) ** (gamma + 1)
    profile = np.diff(ends)
    np.testing.assert_allclose(directly(Power(width), path)[-1], profile @ path, rtol=1e-10)
    middle = (np.arange(STEPS) + 0.5) / STEPS
    assert math.sqrt(profile @ middle**2 - (profile @ middle) ** 2) == pytest.approx(width, rel=1e-3)


def test_the_mean_of_all_weights_is_the_widest():
    assert gamma_of(WIDEST) == pytest.approx(0, abs=1e-4)


@pytest.mark.parametrize("width", [0.03, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2])
def test_an_average_after_the_training_is_the_one_tracked_directly(width, path):
    """The law of post-hoc averages (Karras et al., 2024, appendix C), from 64 snapshots of two widths: to 1e-3.

    A width of 0.25, whose profile is steep at the first steps, is met to 3e-3.
    """
    snapshots = [Snapshot(s, STEPS * i // 64) for s in (0.05, 0.1) for i in range(1, 65)]
    tracked = {s: directly(Power(s), path) for s in (0.05, 0.1)}
    kept = np.stack([tracked[s.sigma_rel][s.step - 1] for s in snapshots])
    weights, error = combination(snapshots, Snapshot(width, STEPS))
    wanted = directly(Power(width), path)[-1]
    assert np.linalg.norm(weights @ kept - wanted) < 1e-3 * np.linalg.norm(wanted)
    assert weights.sum() == pytest.approx(1)
    assert error < 0.02


def test_a_snapshot_is_its_own_combination():
    snapshots = [Snapshot(s, step) for s in (0.05, 0.1) for step in (10, 20, 30)]
    weights, error = combination(snapshots, Snapshot(0.1, 30))
    np.testing.assert_allclose(weights, [0, 0, 0, 0, 0, 1], atol=1e-6)
    assert error < 1e-6
    assert combination(snapshots, Snapshot(0.25, 30)).error > 0.05  # which these do not resolve


def test_ramp_up():
    """The half-life grows with the steps up to that of the decay; torch's average does the same."""
    profile = Exponential(0.99, rampup=0.1)
    assert profile.beta(10) == 0.5
    assert profile.beta(10_000) == 0.99
    assert Exponential(0.99).beta(1) == 0.99
    model = torch.nn.Linear(2, 1, dtype=torch.float64)
    averaged = torch.optim.swa_utils.AveragedModel(model, multi_avg_fn=ramped(0.99, 0.1))
    seen = []
    for step in range(100):
        torch.nn.init.constant_(model.weight, math.sin(step))
        averaged.update_parameters(model)
        seen.append(model.weight[0, 0].item())
    assert averaged.module.weight[0, 0].item() == pytest.approx(directly(profile, np.array(seen))[-1], rel=1e-12)


def test_runs_without_them_keep_their_ids():
    plain = settings(*LITTLE, "trainer.max_steps=40")
    older = {key: value for key, value in plain["optimizer"].items() if key not in ("ema", "t_ref")}
    assert run_id({**plain, "optimizer": older}) == run_id(plain)
    assert run_id(settings(*LITTLE, "trainer.max_steps=40", "optimizer.ema.decays=[0.9]")) != run_id(plain)


@pytest.mark.slow
def test_a_run_tracks_and_resumes_and_is_averaged_afterwards(tmp_path, capsys):
    tracked = ["optimizer.ema.decays=[0.9,0.995]", "optimizer.ema.sigma_rel=[0.05,0.1,0.2]", "optimizer.lr=0.01"]
    given = [*LITTLE, *tracked, "optimizer.ema.snapshots=40"]
    run, resumed = tmp_path / "run", tmp_path / "resumed"
    train(run, *given, "trainer.max_steps=40")
    averages = Averages(run)
    assert list(averages.tracked) == ["decay-0.9", "decay-0.995", *(f"sigma_rel-{s}" for s in (0.05, 0.1, 0.2))]
    own = averages.checkpoint["state_dict"]
    for name, value in averages.exponential(0.995).items():  # that of optimizer.ema_decay
        torch.testing.assert_close(value, own[name], rtol=0, atol=0)

    train(resumed, *given, "trainer.max_steps=20")
    train(resumed, *given, "trainer.max_steps=40")  # with the optimiser's cosine of 20 steps behind it
    assert Averages(resumed).tracked.keys() == averages.tracked.keys()
    assert all(Averages(resumed).tracked["decay-0.9"][name].isfinite().all() for name in own if name.endswith("weight"))

    wide = averages.tracked["sigma_rel-0.2"]
    averages.snapshots = {key: file for key, file in averages.snapshots.items() if key.sigma_rel < 0.2}
    found, error = averages.power(0.2)
    assert error < 0.02
    for name, value in wide.items():
        assert (found[name] - value).norm() <= 1e-3 * value.norm() + 1e-6

    capsys.readouterr()
    assert command.main([str(run)]) == 0
    assert "40 of sigma_rel=0.05, 40 of sigma_rel=0.1" in capsys.readouterr().out
    assert command.main([str(run), "--sigma-rel", "0.15", "--decay", "0.9"]) == 0
    for name in ("sigma_rel-0.15", "decay-0.9"):
        assert torch.isfinite(flowdiff.sample(flowdiff.load(run / "ema" / name), 3)).all()
    assert command.main([str(run), "--sigma-rel", "0.15", "--evaluate"]) == 0
    header, *rows = (run / "ema.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == [
        *("decay-0.995 (the run's own)", "decay-0.9", "decay-0.995"),
        *("sigma_rel-0.05", "sigma_rel-0.1", "sigma_rel-0.2", "sigma_rel-0.15"),
    ]
    at = header.split(",").index("test_loss")
    of_run = json.loads((run / "result.json").read_text())["metrics"]["test_loss"]
    assert float(rows[0].split(",")[at]) == pytest.approx(of_run, rel=1e-5)

    with pytest.raises(RunError, match=r"is not empty: give a new folder"):
        command.main([str(run), "--sigma-rel", "0.15"])
    with pytest.raises(RunError, match=r"has not tracked decay-0.5 \(it has tracked decay-0.9, decay-0.995\)"):
        command.main([str(run), "--decay", "0.5"])
    with pytest.raises(ConfigurationError, match="the width of no power average"):
        command.main([str(run), "--sigma-rel", "0.3"])


@pytest.mark.slow
def test_a_learned_weighting_trains_along_and_stays_out_of_the_model(tmp_path):
    given = [*LITTLE, "trainer.max_steps=20", "weighting=uncertainty", "optimizer.lr_schedule=inverse_sqrt"]
    result = train(tmp_path / "run", *given, "optimizer.ema.rampup=0.05")
    checkpoint = torch.load(tmp_path / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["state_dict"]["learned.v"].abs().max() > 0
    model = flowdiff.load(tmp_path / "run")
    assert result["parameters"] == sum(p.numel() for p in model.parameters())
    with pytest.raises(RunError, match="has kept no snapshots"):
        command.main([str(tmp_path / "run"), "--sigma-rel", "0.1"])
