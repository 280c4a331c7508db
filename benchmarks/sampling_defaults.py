"""Which sampler suits which network: finished runs sampled in every way, at equal numbers of network evaluations.

    python benchmarks/sampling_defaults.py outputs/<run> … [--evaluations 18 36 72] [--samplers heun ancestral …]
        [--clip true false] [--seeds 0 1 2] [--n 1500] [--output sampling_defaults.jsonl]

Each line of the output is one measurement: the Fréchet distance, precision and recall of n samples, how many of them
are not finite, and the network evaluations per sample that it took. The features, and those of the real data, are the
run's own, from its cache. A command that is given again measures only what the output does not hold yet; then it prints
the mean over the seeds. Samples are drawn from noise, with the run's own schedule and guidance; only `ddpm` has its
own, schedule=ddpm. `adaptive` has the tolerance whose evaluations come closest. From these tables come the samplers of
conf/network/, and what clip=auto means.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table

from flowdiff import config, registry
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.diffusion.samplers.adaptive import Adaptive
from flowdiff.diffusion.schedules import Schedule
from flowdiff.evaluation.metrics import Metrics
from flowdiff.runs.files import write_whole
from flowdiff.runs.run_folder import RunFolder
from flowdiff.runs.undefined import written
from flowdiff.training.assembly import load_parts

Row = dict[str, Any]

SAMPLERS = ("heun", "ancestral", "ddpm", "dpmpp_2m_sde", "dpmpp_3m_sde", "unipc", "adaptive", "langevin")
TWO_PER_STEP = ("heun", "langevin")  # and one in the last step
KEY = ("run", "sampler", "evaluations", "clip", "seed", "n")  # what a line measures
COMPARED = {"precision_recall": {"neighbours": 3, "num_samples": 2000}}
TOLERANCES = (1e-4, 10.0)  # between which that of `adaptive` is searched, in HALVINGS halvings of the logarithm
HALVINGS, PROBED = 8, 32
WIDTH = 110  # characters of the printed table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", help="folders of finished runs")
    parser.add_argument("--samplers", nargs="+", choices=SAMPLERS, default=SAMPLERS)
    parser.add_argument("--evaluations", type=int, nargs="+", default=[18, 36, 72])
    parser.add_argument("--clip", nargs="+", choices=("true", "false"), default=["true", "false"])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--n", type=int, default=1500, help="samples of each measurement")
    parser.add_argument("--output", type=Path, default=Path("sampling_defaults.jsonl"))
    given = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    known = rows_of(given.output)
    write_whole(given.output, "".join(json.dumps(row) + "\n" for row in known))  # without a line that was cut off
    done = set(map(key_of, known))
    asked = set()
    for run in given.runs:
        name = str(RunFolder.open(run).path.resolve())
        wanted = [
            dict(zip(KEY, (name, sampler, evaluations, clip == "true", seed, given.n), strict=True))
            for evaluations in given.evaluations
            for sampler in given.samplers
            for clip in given.clip
            for seed in given.seeds
        ]
        asked |= set(map(key_of, wanted))
        missing = [row for row in wanted if key_of(row) not in done]
        for row in track(measured(run, missing), run.name, total=len(missing)):
            with given.output.open("a") as file:
                file.write(json.dumps(row) + "\n")
    found = [row for row in rows_of(given.output) if key_of(row) in asked]
    for run in dict.fromkeys(row["run"] for row in found):
        Console(width=WIDTH).print(table([row for row in found if row["run"] == run]))


def measured(run: Path, wanted: list[Row]) -> Iterator[Row]:
    """The wanted rows of a run with their numbers."""
    if not wanted:
        return
    settings = config.of_run(RunFolder.open(run))
    parts = load_parts(run)
    if not parts.denoiser.data_range.known:
        wanted = [row for row in wanted if not row["clip"]]
        print(f"{run} does not know the range of its data: it is measured without clipping only")
    parts.data.prepare_data()
    parts.data.setup()
    chosen = {**settings["metrics"], "num_samples": wanted[0]["n"], "repeats": 1, "compare": COMPARED}
    metrics = registry.create("metrics", chosen, data=parts.data)
    parts_of_name = [settings["network"]["name"], settings.get("flow", {}).get("name"), settings["loss"]["name"]]
    about = {"what": " ".join(filter(None, parts_of_name)), "data": parts.data.name}
    for row in wanted:
        yield row | about | measure(parts.denoiser, metrics, row)


def measure(model: ConditionedDenoiser, metrics: Metrics, row: Row) -> Row:
    """The numbers of one row."""
    schedule = registry.create("schedule", "ddpm") if row["sampler"] == "ddpm" else model.sampling.schedule
    options = {"schedule": schedule, "clip": row["clip"], "batch_size": metrics.batch_size}
    if row["sampler"] == "adaptive":
        sampler = adaptive(model, row["evaluations"], row["seed"], **options)
    else:
        sampler = registry.create("sampler", row["sampler"], num_steps=steps_of(row["sampler"], row["evaluations"]))
    before = model.evaluations
    x = model.sample(row["n"], seed=row["seed"], sampler=sampler, **options).cpu()
    numbers = {"nfe": (model.evaluations - before) / row["n"], "num_steps": sampler.num_steps}
    numbers["not_finite"] = int((~x.flatten(1).isfinite().all(1)).sum())
    if isinstance(sampler, Adaptive):
        numbers["tolerance"] = sampler.rtol
    found = metrics.quality(lambda n, seed: x, row["seed"])
    distance = next(value for name, value in found.items() if name.startswith(("fd_", "fid")))
    quality = {"fd": distance, "precision": found["precision"], "recall": found["recall"]}
    return {**numbers, **written(quality)}


def steps_of(name: str, evaluations: int) -> int:
    """The most steps of a sampler that take at most so many network evaluations per sample, ≥ 1."""
    return max(1, (evaluations + 1) // 2 if name in TWO_PER_STEP else evaluations)


def adaptive(
    model: ConditionedDenoiser, evaluations: int, seed: int, schedule: Schedule, clip: bool, batch_size: int
) -> Adaptive:
    """`adaptive` with the tolerance, relative and absolute, at which it takes nearly as many evaluations as asked."""
    low, high = map(math.log, TOLERANCES)
    for _ in range(HALVINGS):
        tolerance = math.exp((low + high) / 2)
        sampler = registry.create("sampler", "adaptive", rtol=tolerance, atol=tolerance)
        before = model.evaluations
        model.sample(PROBED, seed=seed, sampler=sampler, schedule=schedule, clip=clip, batch_size=batch_size)
        too_many = (model.evaluations - before) / PROBED > evaluations
        low, high = (math.log(tolerance), high) if too_many else (low, math.log(tolerance))
    sampler = registry.create("sampler", "adaptive", rtol=math.exp(high), atol=math.exp(high))
    assert isinstance(sampler, Adaptive)
    return sampler


def rows_of(path: Path) -> list[Row]:
    """The measurements in a file; a last line that was cut off is left out."""
    if not path.is_file():
        return []
    lines = path.read_text().splitlines(keepends=True)
    return [json.loads(line) for line in lines if line.endswith("\n")]


def key_of(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in KEY)


def table(rows: list[Row]) -> Table:
    """A run's mean and standard deviation over the seeds; the best distance of each number of evaluations is bold."""
    title = f"{rows[0]['what']}, {rows[0]['data']}, {rows[0]['n']:,} samples\n{rows[0]['run']}"
    shown = Table(title=title, title_justify="left", box=box.SIMPLE, pad_edge=False)
    for column in ("budget", "sampler", "clip", "nfe", "fd", "precision", "recall", "not finite"):
        shown.add_column(column, no_wrap=True, justify="left" if column in ("sampler", "clip") else "right")
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["evaluations"], row["sampler"], row["clip"]), []).append(row)
    best: dict[int, float] = {}
    for (evaluations, *_), group in groups.items():
        best[evaluations] = min(best.get(evaluations, math.inf), mean_of(group, "fd"))
    for (evaluations, sampler, clip), group in groups.items():
        distance = cell(group, "fd")
        shown.add_row(
            str(evaluations),
            sampler,
            str(clip).lower(),
            f"{mean_of(group, 'nfe'):.1f}",
            f"[bold]{distance}" if mean_of(group, "fd") == best[evaluations] else distance,
            cell(group, "precision"),
            cell(group, "recall"),
            f"{sum(row['not_finite'] for row in group)} of {sum(row['n'] for row in group)}",
        )
    return shown


def cell(rows: list[Row], name: str) -> str:
    """Mean and standard deviation of a number; a dash if it is undefined for a seed."""
    values = [row[name] for row in rows]
    if None in values:
        return "–"
    return f"{statistics.fmean(values):.3g}" + (f" ± {statistics.stdev(values):.2g}" if len(values) > 1 else "")


def mean_of(rows: list[Row], name: str) -> float:
    """The mean of a number over the seeds; infinite if it is undefined for one of them."""
    values = [row[name] for row in rows]
    return math.inf if None in values else statistics.fmean(values)


if __name__ == "__main__":
    main()
