"""Writes docs/samplers.md: how fast every sampler converges, that it is what others call so, and what its loop costs.

    pip install -e '.[bench]' && pip install --no-deps k-diffusion
    python benchmarks/samplers.py [--run FOLDER] [--samples 20000] [--rounds 40] [--output FILE] [--json FILE]

Orders and errors are measured on a mixture of four Gaussians in the plane, whose denoiser is exact. Equality with
k-diffusion and diffusers is measured there and on a trained run, by default a small one of the digits that is trained
first. k-diffusion is left out if it is not installed; --no-deps, because one of its dependencies requires numpy<2.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch import Tensor

import flowdiff
from flowdiff import config, registry
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.diffusion.samplers.base import Sampler
from flowdiff.noise import generators, randn
from flowdiff.runs import identity
from flowdiff.runs.run_folder import RunFolder
from flowdiff.testing import oracles
from flowdiff.testing.count_calls import CountCalls
from flowdiff.training import run as training

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "support"))  # the public samplers are those of the tests
from public_samplers import CASES, Case, difference, k_diffusion  # noqa: E402

SMALL = ["dataset=digits", "trainer.max_steps=300", "metrics.frechet=false", "metrics.likelihood=false", "logger=csv"]
EQUAL = 1e-4  # ‖ours − theirs‖/‖theirs‖ at most
OVERHEAD = 1.02  # seconds of ours / k-diffusion's at most
MIXTURE = oracles.two_by_two()
KARRAS = registry.create("schedule", "karras")
STEPS = (8, 16, 32, 64, 128, 256, 512)
TOLERANCES = (0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4)
FEW = (5, 10, 20, 40, 80)
ODES = {"dpmpp_3m_sde, η = 0": ("dpmpp_3m_sde", {"eta": 0.0})}  # what no name stands for by its default settings
COMPARED = ("euler", "heun", "dpmpp_2s", "dpmpp_2m", "unipc")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path)
    parser.add_argument("--samples", type=int, default=20_000, help="for the distributions of samplers with noise")
    parser.add_argument("--rounds", type=int, default=40, help="of timing")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "samplers.md")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if k_diffusion() is None:
        print("k-diffusion is not installed and left out: pip install --no-deps k-diffusion")
    run = given.run or trained(SMALL)
    denoiser = flowdiff.load(run)
    measured = {
        "errors": errors(),
        "distributions": distributions(given.samples),
        "equality": equality(denoiser),
        "overhead": overhead(denoiser, given.rounds),
        "levels": levels(denoiser),
    }
    draw(measured["errors"], measured["distributions"], given.samples, given.output.with_suffix(".png"))
    given.output.write_text(page(measured, given))
    missed = list(misses(measured))
    print("not reached: " + "; ".join(missed) if missed else "all reached")
    if given.json:
        given.json.write_text(json.dumps(measured | {"missed": missed}, indent=2) + "\n")


def trained(overrides: list[str]) -> Path:
    """The folder of a run, which is trained if it is not there."""
    composed = config.compose(overrides)
    config.check(composed)
    settings = config.resolved(composed)
    run_id, name = identity.run_id(settings), identity.run_name(overrides)
    folder = RunFolder(Path("outputs") / identity.run_folder(name, run_id))
    if not folder.is_complete:
        training.train(settings, folder, name=name, run_id=run_id, sweep=None, overrides=overrides)
    return folder.path


def has_noise(name: str) -> bool:
    """Whether a sampler draws any at its default settings."""
    source = torch.Generator().manual_seed(0)
    before = source.get_state()
    registry.create("sampler", name)(MIXTURE, torch.ones(1, 2), [2.0, 1.0, 0.5, 0.0], generator=source)
    return not torch.equal(source.get_state(), before)


def sampled(sampler: Sampler, n: int, sigmas: Tensor, seed: int = 0) -> tuple[Tensor, float]:
    """n samples of the mixture, of a float64 that shows a method's error only, and denoiser calls for each."""
    counted, sources = CountCalls(MIXTURE), generators(seed, range(n)) if n < 1000 else torch.Generator().manual_seed(0)
    x = float(sigmas[0]) * randn((n, 2), sources, dtype=torch.float64)
    return sampler(counted, x, sigmas, None, sources), counted.rows / n


def errors() -> dict[str, list[tuple[float, float]]]:
    """(calls, error) of each sampler: the median distance of 256 samples from the solution, by its own noise's path."""
    named = {name: (name, {}) for name in registry.names("sampler")} | ODES
    with_path = [name for name in named if name.endswith("_sde")]
    exact, _ = sampled(registry.create("sampler", "unipc", order=3), 256, KARRAS(4000))
    found = {}
    for label, (name, settings) in track(named.items(), "converging"):
        if has_noise(name) and label not in (*with_path, *ODES):
            continue
        truth = exact
        if label in with_path:
            truth, _ = sampled(registry.create("sampler", name), 256, KARRAS(4000))
        found[label] = []
        for value in TOLERANCES if name == "adaptive" else STEPS:
            chosen = {"rtol": value, "atol": value} if name == "adaptive" else settings
            sigmas = KARRAS(2 if name == "adaptive" else value)
            x, calls = sampled(registry.create("sampler", name, **chosen), 256, sigmas)
            found[label].append((calls, float((x - truth).norm(dim=1).median())))
    return found


def distributions(n: int) -> dict[str, list[tuple[float, float]]]:
    """(calls, error) of each sampler with noise: of mean and covariance of n samples, in units of the covariance."""
    found = {}
    for name in track([name for name in registry.names("sampler") if has_noise(name)], "drawing"):
        found[name] = []
        for num_steps in FEW:
            x, calls = sampled(registry.create("sampler", name), n, KARRAS(num_steps))
            off = torch.cat([x.mean(0)[None] - MIXTURE.mean, x.T.cov() - MIXTURE.covariance])
            found[name].append((calls, float(off.norm() / MIXTURE.covariance.norm())))
    return found


def order(points: list[tuple[float, float]]) -> float:
    """−d ln error/d ln calls over the last doubling but one, where nothing has come down to rounding yet."""
    (few, large), (many, small) = points[-3], points[-2]
    return math.log(large / small) / math.log(many / few)


def equality(denoiser: ConditionedDenoiser) -> list[dict[str, Any]]:
    """Each public sampler's distance from ours at 10 and 20 steps, on the mixture and on the run in float64."""
    plane = randn((64, 2), generators(0, range(64)), dtype=torch.float64)
    inner = denoiser.denoiser.double()
    labels = denoiser.labels(16, None)
    cond = None if labels is None else denoiser.conditioner.double()(labels)
    images = randn((16, *denoiser.first_stage.latent_shape), generators(0, range(16)), dtype=torch.float64)
    rows = []
    for case in track(CASES, "comparing"):
        if case.package == "k-diffusion" and k_diffusion() is None:
            continue
        rows.append(
            {
                "package": case.package,
                "theirs": case.theirs,
                "ours": case.ours + "".join(f", {key} {value}" for key, value in case.settings.items()),
                "mixture": worst(case, MIXTURE, plane),
                "run": worst(case, lambda x, sigma: inner(x, sigma, cond), images),
            }
        )
    denoiser.float()
    return rows


def worst(case: Case, denoiser: Callable[[Tensor, Tensor], Tensor], noise: Tensor) -> float:
    return max(difference(case, denoiser, noise, num_steps) for num_steps in (10, 20))


@torch.no_grad()
def overhead(denoiser: ConditionedDenoiser, rounds: int) -> list[dict[str, Any]]:
    """CPU seconds of ours / k-diffusion's: 18 steps of 16 samples by the run, and microseconds of each loop alone."""
    if k_diffusion() is None:
        return []
    labels = denoiser.labels(16, None)
    cond = None if labels is None else denoiser.cond_of(labels)
    sigmas = KARRAS(18).float()
    x = float(sigmas[0]) * randn((16, *denoiser.first_stage.latent_shape), generators(0, range(16)))
    rows = []
    for case in track([case for case in CASES if case.package == "k-diffusion"], "timing"):
        grid = sigmas[: len(case.sigmas(18))]
        sampler = registry.create("sampler", case.ours, num_steps=18, **case.settings)

        def pair(D: Callable[..., Tensor], case: Case = case, grid: Tensor = grid, sampler: Sampler = sampler) -> Any:
            return (
                lambda: sampler(lambda x, sigma, _: D(x, sigma), x, grid),
                lambda: case.samples(lambda x, sigma, **_: D(x, sigma), x, grid),
            )

        _, ratio, error = turns(*pair(lambda x, sigma: denoiser(x, sigma, cond)), rounds)
        alone, ratio_alone, _ = turns(*pair(lambda x, sigma: x), 10 * rounds)
        step = 1e6 * alone / (len(grid) - 1)
        costs = {"ours / theirs": ratio, "±": error, "ours µs": step, "theirs µs": step / ratio_alone}
        rows.append({"sampler": case.ours} | costs)
    return rows


def turns(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """Median CPU seconds of the first; median ratio of neighbours, and its standard error if they were normal."""
    ours(), theirs()
    first, ratios = [], []
    for i in range(rounds):
        seconds = {}
        for call in (ours, theirs) if i % 2 else (theirs, ours):
            began = time.process_time()  # of one thread: what else runs on the machine is not in it
            call()
            seconds[call] = time.process_time() - began
        first.append(seconds[ours])
        ratios.append(seconds[ours] / seconds[theirs])
    middle = statistics.median(ratios)
    spread = 1.48 * statistics.median(abs(ratio - middle) for ratio in ratios)  # a standard deviation, outliers or not
    return statistics.median(first), middle, 1.25 * spread / math.sqrt(rounds)


def levels(denoiser: ConditionedDenoiser) -> list[dict[str, Any]]:
    """Distance from the solution of the run's own 64 samples, relative, by karras and by optimal levels."""
    chosen = {"n": 64, "guidance": denoiser_alone, "seed": 1}
    exact = denoiser.sample(sampler=registry.create("sampler", "heun", num_steps=128), schedule=KARRAS, **chosen)
    rows = []
    for name in track(COMPARED, "placing"):
        for num_steps in (5, 10, 20):
            row: dict[str, Any] = {"sampler": name, "steps": num_steps}
            for schedule in ("karras", "optimal"):
                sampler = registry.create("sampler", name, num_steps=num_steps)
                x = denoiser.sample(sampler=sampler, schedule=registry.create("schedule", schedule), **chosen)
                row[schedule] = float((x - exact).norm() / exact.norm())
            rows.append(row)
    return rows


def denoiser_alone(denoiser: ConditionedDenoiser) -> Any:
    return registry.create("guidance", "none", denoiser=denoiser)


def misses(measured: dict[str, Any]) -> Any:
    """What was asked and is not reached."""
    for row in measured["equality"]:
        for where in ("mixture", "run"):
            if not row[where] <= EQUAL:
                yield f"{row['package']} {row['theirs']} on the {where} {row[where]:.1e}"
    for row in measured["overhead"]:
        if row["ours / theirs"] > OVERHEAD:
            yield f"{row['sampler']} takes {row['ours / theirs']:.3f} of k-diffusion's time"


def draw(errors: dict, distributions: dict, n: int, path: Path) -> None:
    """Error against calls, log–log: of samples on the left, of their distribution on the right."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 6), layout="constrained")
    names = list(dict.fromkeys([*errors, *distributions]))
    style = {name: {"color": plt.get_cmap("tab20")(i % 20), "marker": "osv^Dx"[i % 6]} for i, name in enumerate(names)}
    for points, labels in by_curve(errors):
        own = "--" if labels[0].endswith("_sde") else "-"
        label = f"{' = '.join(labels)} ({order(points):.1f})"
        left.loglog(*zip(*points, strict=True), own, label=label, markersize=4, **style[labels[0]])
    left.set(xlabel="denoiser calls for a sample", ylabel="median distance of a sample from the solution")
    left.set_title("Samples (dashed: by the path of their own noise; in brackets the order)")
    for points, labels in by_curve(distributions):
        right.loglog(*zip(*points, strict=True), "-", label=" = ".join(labels), markersize=4, **style[labels[0]])
    right.axhline(1 / math.sqrt(n), color="grey", linestyle=":", label=f"{n:,} exact samples, about")
    right.set(xlabel="denoiser calls for a sample", ylabel="error of mean and covariance / covariance")
    right.set_title("Distribution of samplers with noise")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def by_curve(measured: dict[str, Any]) -> list[tuple[list[tuple[float, float]], list[str]]]:
    """Curves, each once, with the names of all samplers it is of."""
    names: dict[tuple[tuple[float, float], ...], list[str]] = {}
    for name, points in measured.items():
        names.setdefault(tuple(map(tuple, points)), []).append(name)
    return [(list(points), labels) for points, labels in names.items()]


def page(measured: dict[str, Any], given: argparse.Namespace) -> str:
    command = "python benchmarks/samplers.py" + (f" --run {given.run}" if given.run else "")
    of_samples = [
        (name if "=" in name else f"`{name}`", f"{order(points):.2f}", f"{points[4][0]:.0f}", f"{points[4][1]:.1e}")
        for name, points in measured["errors"].items()
    ]
    drawn = [
        (f"`{name}`", *(f"{error:.3f}" for _, error in points)) for name, points in measured["distributions"].items()
    ]
    equal = [
        (row["package"], row["theirs"], f"`{row['ours']}`", f"{row['mixture']:.0e}", f"{row['run']:.0e}")
        for row in measured["equality"]
    ]
    costs = [
        (
            f"`{row['sampler']}`",
            f"{row['ours / theirs']:.3f} ± {row['±']:.3f}",
            f"{row['ours µs']:.0f}",
            f"{row['theirs µs']:.0f}",
        )
        for row in measured["overhead"]
    ]
    placed = [
        (f"`{row['sampler']}`", str(row["steps"]), f"{row['karras']:.3f}", f"{row['optimal']:.3f}")
        for row in measured["levels"]
    ]
    nearer = sum(row["optimal"] < row["karras"] for row in measured["levels"])
    return f"""# The samplers

Made by `{command}`, torch {torch.__version__.split("+")[0]}, one CPU thread.

## How fast they converge

The samplers run from σ = 80 to 0.002 on `schedule=karras`, on a mixture of four Gaussians in the plane, whose denoiser
is exact. The error is the median distance of 256 samples from the solution of the probability-flow ODE, or, for a
sampler whose name ends in `_sde`, from its own solution along the same Brownian paths. It is plotted against the number
of denoiser calls per sample; the second plot shows the error of the distribution for the samplers with noise. The order
is the slope between {STEPS[-3]} and {STEPS[-2]} steps, and the error is that at {STEPS[-3]} steps; `adaptive` has
tolerances from {TOLERANCES[0]} to {TOLERANCES[-1]} instead of steps. The theoretical orders are 1 for `euler` and the
samplers with noise, 2 for `heun`, `dpm_solver_2`, `dpmpp_2s` and `dpmpp_2m`, and at the default settings 3 for `unipc`
and 4 for `lms`.

![error against denoiser calls]({given.output.with_suffix(".png").name})

{markdown(("sampler", "order", "denoiser calls", "error"), of_samples)}
`dpm_solver_1`, `ddim` and `euler` are the same method in these coordinates. `dpmpp_3m_sde` without noise has order 2,
as in every public implementation: see `flowdiff/diffusion/samplers/dpmpp.py`.

The next table shows the samplers with noise: the error of the mean and covariance of {given.samples:,} samples,
relative to the covariance. As many exact samples have an error of about {1 / math.sqrt(given.samples):.3f}.

{markdown(("sampler", *(f"{num_steps} steps" for num_steps in FEW)), drawn)}
## Names in other packages

The table shows ‖ours − theirs‖/‖theirs‖ from the same noise on the same levels, the larger value of 10 and 20 steps, on
the mixture and on a trained run, in float64; diffusers keeps its levels and parts of its arithmetic in float32.

{markdown(("package", "theirs", "ours", "mixture", "run"), equal)}
k-diffusion's `sample_lms` is compared down to σ_min: it extrapolates to σ = 0, where all samplers here end with x = D.

## Cost of the loop

The first column shows CPU seconds of ours / k-diffusion's for 18 steps of 16 samples by the run's denoiser: the median
of {given.rounds} alternating pairs with its standard error. The other columns show microseconds per step of each loop
alone, with a denoiser that does nothing.

{markdown(("sampler", "ours / theirs", "ours, µs per step", "theirs, µs per step"), costs)}
## Levels of smallest error

`schedule=optimal` measures where the run's own trajectories bend and places its levels there. The table shows the
relative distance of 64 of the run's samples from the solution, for `karras` and for `optimal`, which is closer in
{nearer} of {len(placed)} rows.

{markdown(("sampler", "steps", "karras", "optimal"), placed)}"""


def markdown(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [columns, ("---",) * len(columns), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


if __name__ == "__main__":
    main()
