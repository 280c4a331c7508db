"""`python sample.py run=<run folder> evaluate=true …`: what ways of sampling are worth, in evaluations.csv and W&B."""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NamedTuple

from flowdiff import config
from flowdiff.runs.run_folder import RunFolder

if TYPE_CHECKING:
    from torch import Tensor

    from flowdiff.evaluation.metrics import Metrics
    from flowdiff.training.assembly import Parts

log = logging.getLogger(__name__)

_densities: dict[tuple[str, int, str], dict[str, float]] = {}  # of each checkpoint, by each metrics

SAMPLED_BY = ("sampler", "schedule", "guidance")  # groups whose settings say how was sampled


class Way(NamedTuple):
    """One way to samples: what it is called in samples.npz, and where it starts."""

    name: str
    start: str
    sigma_start: float | None


def evaluate(
    settings: Mapping[str, Any], ways: list[Way], parts: Parts, folder: RunFolder, options: Mapping[str, Any]
) -> float | None:
    """Measure the density and each way's samples as the run's own evaluation does; a row each in evaluations.csv.

    options: what `ConditionedDenoiser.sample` takes beside the way. Of several processes each draws its share of the
    samples, and the first writes. Returns the Fréchet distance of the last way, None where there is none.
    """
    from flowdiff.evaluation import ranks
    from flowdiff.registry import create
    from flowdiff.runs.result_table import rows_of, show_rows

    parts.data.prepare_data()
    parts.data.setup()
    config_ = config.of_run(folder)
    metrics = create("metrics", settings["metrics"], data=parts.data)
    denoiser = parts.denoiser
    metrics.check(denoiser)
    known = str(folder.checkpoint.resolve()), folder.checkpoint.stat().st_mtime_ns, json.dumps(settings["metrics"])
    if known not in _densities:  # no way of sampling changes them, so that a sweep measures them once
        sigma_min = create("schedule", config_["schedule"]).sigma_min
        _densities[known] = metrics.densities(denoiser, denoiser.cond_of, sigma_min, config_["seed"])
    densities = _densities[known]
    rows, distance = [], None
    for way in ways:
        numbers = _measure(settings, way, denoiser, metrics, options)
        rows.append({**columns(settings, way), **numbers, **densities})
        if ranks.rank() == 0:
            rows[-1] = {"number": folder.append_evaluation(rows[-1]), **rows[-1]}
            show_rows(f"{folder.path}: {describe(settings, way)}", rows_of({**numbers, **densities}))
        distance = next((value for key, value in numbers.items() if key.startswith(("fd_", "fid"))), None)
    if ranks.rank() == 0:
        log.info("appended to %s", folder.evaluations)
        _log(config_, folder, rows)
    return distance


def columns(settings: Mapping[str, Any], way: Way) -> dict[str, Any]:
    """How was sampled, as columns: of each group its name, <group>, and its settings, <group>_<key>."""
    row: dict[str, Any] = {}
    for group in SAMPLED_BY:
        row[group] = settings[group]["name"]
        row |= {f"{group}_{key}": _as_yaml(value) for key, value in settings[group].items() if key != "name"}
    row["num_steps"] = row.pop("sampler_num_steps")
    asked = {"sigma_start": way.sigma_start, "class_label": settings["class_label"]}
    row |= {"start": way.start, **{key: "" if value is None else value for key, value in asked.items()}}
    return {**row, "seed": settings["seed"]}


def _as_yaml(value: Any) -> Any:
    """Numbers and text as they are, else null, true, [0.2, 3.0]; an empty cell says that there is no such setting."""
    return value if isinstance(value, str | int | float) and not isinstance(value, bool) else json.dumps(value)


def describe(settings: Mapping[str, Any], way: Way) -> str:
    """A way of sampling in words."""
    if way.start == "prior":
        return "the autoencoder's prior"
    guidance = settings["guidance"]
    guided = "" if guidance["name"] == "none" else f", {guidance['name']}"
    if "scale" in guidance:
        guided += f" at scale {guidance['scale']:g}"
    sampler = f"{settings['sampler']['name']} with {settings['sampler']['num_steps']} steps{guided}"
    if way.start == "noise":
        return f"diffusion, {sampler}"
    if way.sigma_start is None:
        return "one-shot flow"
    return f"flow at σ = {way.sigma_start:.3g}, then {sampler}"


def _measure(
    settings: Mapping[str, Any], way: Way, denoiser: Any, metrics: Metrics, options: Mapping[str, Any]
) -> dict[str, Any]:
    """What the samples of one way are worth, and what they cost: nfe (evaluations of a network per sample), seconds."""
    from flowdiff.evaluation import ranks
    from flowdiff.evaluation.sample_accuracy import sample_accuracy
    from flowdiff.progress import counting

    if not metrics.with_frechet:
        return {}
    guide = options["guidance"](denoiser)
    options = {**options, "start": way.start, "sigma_start": way.sigma_start}
    judge = metrics.extractor  # made now: what it takes is no part of the seconds
    judged = []
    drawn = 0

    def sample(n: int, seed: int) -> Tensor:
        nonlocal drawn
        mine = ranks.share(n)
        drawn += len(mine)
        x = ranks.gathered(denoiser.sample(n, seed=seed, indices=mine, progress=progress, **options).cpu(), n)
        if judge.accuracy is not None and (labels := denoiser.labels(n, options["label"])) is not None:
            judged.append((x, labels))
        return x

    before, began = guide.evaluations, time.perf_counter()
    with counting("sampling for evaluation") if ranks.rank() == 0 else nullcontext() as progress:
        numbers = metrics.quality(sample, settings["seed"])
    seconds = time.perf_counter() - began
    accuracies = [sample_accuracy(judge, metrics.data, x, labels, metrics.batch_size) for x, labels in judged]
    cost = {"nfe": ranks.total(guide.evaluations - before) / ranks.total(drawn), "seconds": round(seconds, 3)}
    return {**cost, **numbers, **_mean("sample_accuracy", accuracies, judge.accuracy)}


def _mean(name: str, values: list[float], floor: float | None) -> dict[str, float]:
    """Mean of a number over the repeats, its standard deviation if there are several, and what real samples reach."""
    if not values:
        return {}
    spread = {f"{name}_sd": statistics.stdev(values)} if len(values) > 1 else {}
    return {name: statistics.fmean(values), **spread, f"{name}_floor": floor}


def _log(config_: Mapping[str, Any], folder: RunFolder, rows: list[dict[str, Any]]) -> None:
    """Append the rows to the run that a logger keeps elsewhere, once that run has ended."""
    from flowdiff.registry import create

    if not folder.is_complete:
        log.info("%s is not complete yet: its logger hears nothing of this evaluation", folder.path)
        return
    result = folder.result()
    about = {key: result.get(key) for key in ("run_id", "name", "sweep")}
    create("logger", config_["logger"]).evaluations(folder.path, {**about, "tags": config_["tags"]}, rows)
