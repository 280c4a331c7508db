"""Writes docs/samplers.md: convergence of every sampler, equality with public implementations, cost of the loop.

    pip install -e '.[bench]' && pip install --no-deps k-diffusion
    python benchmarks/samplers.py [--run FOLDER] [--samples 20000] [--rounds 40] [--output FILE] [--json FILE]

Orders and errors are measured on a mixture of four Gaussians in the plane, whose denoiser is exact. Equality with
k-diffusion and diffusers is measured there and on a trained run; without --run, a small run on the digits is trained
first. k-diffusion is left out if it is not installed; --no-deps is needed, because one of its dependencies requires
numpy<2.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
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
from flowdiff.testing.public_samplers import CASES, Case, difference, k_diffusion
from flowdiff.training import run as training

ROOT = Path(__file__).resolve().parents[1]
SMALL = ["dataset=digits", "trainer.max_steps=300", "metrics.frechet=false", "metrics.likelihood=false", "logger=csv"]
MAX_DIFFERENCE = 1e-4  # limit: ‖ours − theirs‖/‖theirs‖, at most
MAX_OVERHEAD = 1.02  # limit: seconds of ours / k-diffusion's, at most
MIXTURE = oracles.two_by_two()
KARRAS = registry.create("schedule", "karras")
STEPS = (8, 16, 32, 64, 128, 256, 512)
TOLERANCES = (0.3, 0.1, 0.03, 0.01, 3e-3, 1e-3, 3e-4)
FEW = (5, 10, 20, 40, 80)
ODES = {"dpmpp_3m_sde, η = 0": ("dpmpp_3m_sde", {"eta": 0.0})}  # ODE methods that are no sampler's default settings
COMPARED = ("euler", "heun", "dpmpp_2s", "dpmpp_2m", "unipc")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path)
    parser.add_argument("--samples", type=int, default=20_000, help="samples per distribution of a sampler with noise")
    parser.add_argument("--rounds", type=int, default=40, help="pairs of calls per timing")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "samplers.md")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    if k_diffusion() is None:
        print("k-diffusion is left out, because it is not installed: pip install --no-deps k-diffusion")
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
    missed = list(missed_limits(measured))
    print("limits not met: " + "; ".join(missed) if missed else "all limits are met")
    if given.json:
        given.json.write_text(json.dumps(measured | {"missed": missed}, indent=2) + "\n")


def trained(overrides: list[str]) -> Path:
    """The folder of a run, which is trained first if it is not complete."""
    composed = config.compose(overrides)
    config.check(composed)
    settings = config.resolved(composed)
    run_id, name = identity.run_id(settings), identity.run_name(overrides)
    folder = RunFolder(Path("outputs") / identity.run_folder(name, run_id))
    if not folder.is_complete:
        training.train(settings, folder, name=name, run_id=run_id, sweep=None, overrides=overrides)
    return folder.path


def has_noise(name: str) -> bool:
    """Whether a sampler draws noise at its default settings."""
    source = torch.Generator().manual_seed(0)
    before = source.get_state()
    registry.create("sampler", name)(MIXTURE, torch.ones(1, 2), [2.0, 1.0, 0.5, 0.0], generator=source)
    return not torch.equal(source.get_state(), before)


def sampled(sampler: Sampler, n: int, sigmas: Tensor, seed: int = 0) -> tuple[Tensor, float]:
    """n samples of the mixture in float64, which hides no error of the method, and denoiser calls per sample."""
    counted = CountCalls(MIXTURE)
    sources = generators(seed, range(n)) if n < 1000 else torch.Generator().manual_seed(0)
    x = float(sigmas[0]) * randn((n, 2), sources, dtype=torch.float64)
    return sampler(counted, x, sigmas, None, sources), counted.rows / n


def of_denoisers() -> list[str]:
    """The samplers that take a denoiser; a consistency function is another function of the mixture."""
    return [name for name in registry.names("sampler") if not registry.create("sampler", name).of_consistency]


def errors() -> dict[str, list[tuple[float, float]]]:
    """(calls, error) of each sampler: the median distance of 256 samples from the solution.

    A sampler with a Brownian path is compared with its own solution along the same path.
    """
    named = {name: (name, {}) for name in of_denoisers()} | ODES
    with_path = [name for name in named if name.endswith("_sde")]
    exact, _ = sampled(registry.create("sampler", "unipc", order=3), 256, KARRAS(4000))
    found = {}
    for label, (name, settings) in track(named.items(), "convergence"):
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
    """(calls, error) of each sampler with noise: the error of mean and covariance of n samples / the covariance."""
    found = {}
    for name in track([name for name in of_denoisers() if has_noise(name)], "distributions"):
        found[name] = []
        for num_steps in FEW:
            x, calls = sampled(registry.create("sampler", name), n, KARRAS(num_steps))
            error = torch.cat([x.mean(0)[None] - MIXTURE.mean, x.T.cov() - MIXTURE.covariance])
            found[name].append((calls, float(error.norm() / MIXTURE.covariance.norm())))
    return found


def order(points: list[tuple[float, float]]) -> float:
    """−d ln error/d ln calls over the last doubling but one, where rounding errors do not matter yet."""
    (few, large), (many, small) = points[-3], points[-2]
    return math.log(large / small) / math.log(many / few)


def equality(denoiser: ConditionedDenoiser) -> list[dict[str, Any]]:
    """The difference of each public sampler from ours, on the mixture and on the run, in float64."""
    plane = randn((64, 2), generators(0, range(64)), dtype=torch.float64)
    inner = denoiser.denoiser.double()
    labels = denoiser.labels(16, None)
    cond = None if labels is None else denoiser.conditioner.double()(labels)
    images = randn((16, *denoiser.first_stage.latent_shape), generators(0, range(16)), dtype=torch.float64)
    rows = []
    for case in track(CASES, "equality"):
        if case.package == "k-diffusion" and k_diffusion() is None:
            continue
        rows.append(
            {
                "package": case.package,
                "theirs": case.theirs,
                "ours": case.ours + "".join(f", {key} {value}" for key, value in case.settings.items()),
                "mixture": largest_difference(case, MIXTURE, plane),
                "run": largest_difference(case, lambda x, sigma: inner(x, sigma, cond), images),
            }
        )
    denoiser.float()
    return rows


def largest_difference(case: Case, denoiser: Callable[[Tensor, Tensor], Tensor], noise: Tensor) -> float:
    """The larger difference of 10 and 20 steps."""
    return max(difference(case, denoiser, noise, num_steps) for num_steps in (10, 20))


@torch.no_grad()
def overhead(denoiser: ConditionedDenoiser, rounds: int) -> list[dict[str, Any]]:
    """CPU seconds of ours / k-diffusion's for 18 steps of 16 samples, and microseconds per step of the loops alone."""
    if k_diffusion() is None:
        return []
    labels = denoiser.labels(16, None)
    cond = None if labels is None else denoiser.cond_of(labels)
    sigmas = KARRAS(18).float()
    x = float(sigmas[0]) * randn((16, *denoiser.first_stage.latent_shape), generators(0, range(16)))
    rows = []
    for case in track([case for case in CASES if case.package == "k-diffusion"], "overhead"):
        grid = sigmas[: len(case.sigmas(18))]
        sampler = registry.create("sampler", case.ours, num_steps=18, **case.settings)

        def pair(D: Callable[..., Tensor], case: Case = case, grid: Tensor = grid, sampler: Sampler = sampler) -> Any:
            return (
                lambda: sampler(lambda x, sigma, _: D(x, sigma), x, grid),
                lambda: case.samples(lambda x, sigma, **_: D(x, sigma), x, grid),
            )

        _, ratio, error = alternate(*pair(lambda x, sigma: denoiser(x, sigma, cond)), rounds)
        alone, ratio_alone, _ = alternate(*pair(lambda x, sigma: x), 10 * rounds)
        step = 1e6 * alone / (len(grid) - 1)
        costs = {"ours / theirs": ratio, "±": error, "ours µs": step, "theirs µs": step / ratio_alone}
        rows.append({"sampler": case.ours} | costs)
    return rows


def alternate(ours: Callable[[], object], theirs: Callable[[], object], rounds: int) -> tuple[float, float, float]:
    """Median CPU seconds of `ours`; the median ratio ours / theirs of neighbouring calls; its standard error.

    The standard error assumes normal ratios.
    """
    ours(), theirs()
    first, ratios = [], []
    for i in range(rounds):
        seconds = {}
        for call in (ours, theirs) if i % 2 else (theirs, ours):
            began = time.process_time()  # of this process only: other programs do not count
            call()
            seconds[call] = time.process_time() - began
        first.append(seconds[ours])
        ratios.append(seconds[ours] / seconds[theirs])
    middle = statistics.median(ratios)
    spread = 1.48 * statistics.median(abs(ratio - middle) for ratio in ratios)  # standard deviation, robust to outliers
    return statistics.median(first), middle, 1.25 * spread / math.sqrt(rounds)


def levels(denoiser: ConditionedDenoiser) -> list[dict[str, Any]]:
    """The relative distance of 64 samples of the run from the solution, with karras and with optimal levels."""
    chosen = {"n": 64, "guidance": registry.create("guidance", "none", denoiser=denoiser), "seed": 1}
    exact = denoiser.sample(sampler=registry.create("sampler", "heun", num_steps=128), schedule=KARRAS, **chosen)
    rows = []
    for name in track(COMPARED, "levels"):
        for num_steps in (5, 10, 20):
            row: dict[str, Any] = {"sampler": name, "steps": num_steps}
            for schedule in ("karras", "optimal"):
                sampler = registry.create("sampler", name, num_steps=num_steps)
                x = denoiser.sample(sampler=sampler, schedule=registry.create("schedule", schedule), **chosen)
                row[schedule] = float((x - exact).norm() / exact.norm())
            rows.append(row)
    return rows


def missed_limits(measured: dict[str, Any]) -> Iterator[str]:
    """Each limit that a measurement does not meet."""
    for row in measured["equality"]:
        for where in ("mixture", "run"):
            if not row[where] <= MAX_DIFFERENCE:
                yield f"{row['package']} {row['theirs']} differs by {row[where]:.1e} on the {where}"
    for row in measured["overhead"]:
        if row["ours / theirs"] > MAX_OVERHEAD:
            yield f"{row['sampler']} takes {row['ours / theirs']:.3f} of k-diffusion's time"


def draw(errors: dict, distributions: dict, n: int, path: Path) -> None:
    """Plot errors against denoiser calls, log–log: of samples on the left, of their distribution on the right."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(13, 6), layout="constrained")
    names = list(dict.fromkeys([*errors, *distributions]))
    style = {name: {"color": plt.get_cmap("tab20")(i % 20), "marker": "osv^Dx"[i % 6]} for i, name in enumerate(names)}
    for points, labels in by_curve(errors):
        line = "--" if labels[0].endswith("_sde") else "-"
        label = f"{' = '.join(labels)} ({order(points):.1f})"
        left.loglog(*zip(*points, strict=True), line, label=label, markersize=4, **style[labels[0]])
    left.set(xlabel="denoiser calls per sample", ylabel="median distance of a sample from the solution")
    left.set_title("Samples (order in brackets; dashed: along the same Brownian path)")
    for points, labels in by_curve(distributions):
        right.loglog(*zip(*points, strict=True), "-", label=" = ".join(labels), markersize=4, **style[labels[0]])
    right.axhline(1 / math.sqrt(n), color="grey", linestyle=":", label=f"about the error of {n:,} exact samples")
    right.set(xlabel="denoiser calls per sample", ylabel="error of mean and covariance / covariance")
    right.set_title("Distribution of samplers with noise")
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def by_curve(measured: dict[str, Any]) -> list[tuple[list[tuple[float, float]], list[str]]]:
    """Each different curve once, with the names of all samplers that have it."""
    names: dict[tuple[tuple[float, float], ...], list[str]] = {}
    for name, points in measured.items():
        names.setdefault(tuple(map(tuple, points)), []).append(name)
    return [(list(points), labels) for points, labels in names.items()]


def page(measured: dict[str, Any], given: argparse.Namespace) -> str:
    command = "python benchmarks/samplers.py" + (f" --run {given.run}" if given.run else "")
    converging = [
        (name if "=" in name else f"`{name}`", f"{order(points):.2f}", f"{points[-3][0]:.0f}", f"{points[-3][1]:.1e}")
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

{markdown(("sampler", "order", "denoiser calls", "error"), converging)}
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
