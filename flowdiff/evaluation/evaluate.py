"""`python sample.py run=<run folder> evaluate=true …`: measure ways to sample, into evaluations.csv and the logger."""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from flowdiff.diffusion.guidance import Guidance
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.diffusion.samplers.base import Sampler
from flowdiff.diffusion.samplers.clipping import Clip
from flowdiff.diffusion.schedules import Schedule
from flowdiff.evaluation import ranks
from flowdiff.evaluation.metrics import Metrics
from flowdiff.evaluation.obedience import obedience
from flowdiff.evaluation.pictures import plots
from flowdiff.evaluation.sample_accuracy import sample_accuracy
from flowdiff.progress import counting
from flowdiff.runs.files import whole
from flowdiff.runs.result_table import rows_of, show_rows
from flowdiff.runs.run_folder import RunFolder
from flowdiff.runs.undefined import explained, written

log = logging.getLogger(__name__)

Row = dict[str, Any]
SAMPLED_BY = ("sampler", "schedule", "guidance")  # groups whose settings describe how samples were drawn

_of_model: dict[tuple[str, int, str], dict[str, float]] = {}  # by checkpoint, its time and the metrics' settings


@dataclass(frozen=True)
class Way:
    """One way to draw samples: its name in samples.npz, and where it starts."""

    name: str
    start: str
    sigma_start: float | None


@dataclass(frozen=True)
class Request:
    """What to sample, and how: built parts, and the settings that describe them in tables.

    settings holds the config of sample.py: the groups of SAMPLED_BY, `metrics`, seed, class_label and start_run. clip
    says whether D is kept in the range of the data; None is what the model itself does. start_model is the model of
    start_run, from whose density start=flow draws; None is the model itself. hint holds the hints of given pictures;
    None: those of the model's examples.
    """

    sampler: Sampler
    schedule: Schedule
    guidance: Guidance
    label: int | list[int] | None
    prompt: str | list[str] | None
    seed: int
    batch_size: int
    settings: Mapping[str, Any]
    clip: Clip | None = None
    start_model: ConditionedDenoiser | None = None
    hint: Tensor | None = None

    def options(self, way: Way) -> dict[str, Any]:
        """Arguments of `ConditionedDenoiser.sample`, without seed and progress."""
        return {
            "label": self.label,
            "prompt": self.prompt,
            "sampler": self.sampler,
            "schedule": self.schedule,
            "guidance": self.guidance,
            "batch_size": self.batch_size,
            "start": way.start,
            "sigma_start": way.sigma_start,
            "start_model": self.start_model if way.start == "flow" else None,
            "clip": self.clip,
            "hint": self.hint,
        }

    def columns(self, way: Way, denoiser: ConditionedDenoiser) -> Row:
        """How a way samples, as columns: of each group its name, <group>, and its settings, <group>_<key>."""
        row: Row = {}
        for group in SAMPLED_BY:
            node = self.settings[group]
            row[group] = node["name"]
            row |= {f"{group}_{key}": _cell(value) for key, value in node.items() if key != "name"}
        row["num_steps"] = row.pop("sampler_num_steps")
        asked = {"sigma_start": way.sigma_start, "class_label": self.label}
        if self.prompt is not None:
            row["prompt"] = _cell(self.prompt)
        row |= {"start": way.start, **{key: "" if value is None else value for key, value in asked.items()}}
        if self.start_model is not None:
            row["start_run"] = self.settings["start_run"] if way.start == "flow" else ""
        row["clip"] = _cell(denoiser.clips(self.clip, self.schedule, way.start, way.sigma_start))
        return {**row, "seed": self.seed}

    def describe(self, way: Way) -> str:
        """A way of sampling in words."""
        if way.start == "prior":
            return "the autoencoder's prior"
        guidance, sampler = self.settings["guidance"], self.settings["sampler"]
        guided = "" if guidance["name"] == "none" else f", {guidance['name']}"
        if "scale" in guidance:
            guided += f" at scale {guidance['scale']:g}"
        steps = f"{sampler['name']} with {sampler['num_steps']} steps{guided}"
        if way.start == "noise":
            return f"diffusion, {steps}"
        if way.sigma_start is None:
            return "one-shot flow" if self.start_model is None else "one-shot flow of another run"
        whose = "" if self.start_model is None else " of another run"
        return f"flow{whose} at σ = {way.sigma_start:.3g}, then {steps}"


def evaluate(
    request: Request,
    ways: list[Way],
    denoiser: ConditionedDenoiser,
    metrics: Metrics,
    folder: RunFolder,
    run_seed: int,
    log_rows: Callable[[list[Row]], None],
) -> float | None:
    """Measure the model and the samples of each way like the run's own evaluation; one row each in evaluations.csv.

    What describes the model is its density and the health of its score, whose curves replace those in the run folder.

    Several processes share the samples; the first one writes.

    Args:
        request: how to sample.
        ways: the starts to compare.
        denoiser: the model.
        metrics: what to measure; its data are set up.
        folder: the run folder.
        run_seed: seed of the run, which the model is measured with.
        log_rows: passes the rows on to the run's logger.

    Returns:
        The Fréchet distance of the last way; None if it was not measured.
    """
    metrics.check(denoiser)
    folder.check_evaluations()
    weights = folder.weights_file
    known = str(weights.resolve()), weights.stat().st_mtime_ns, json.dumps(request.settings["metrics"])
    if known not in _of_model:  # no way of sampling changes the model: a sweep measures it once
        health = metrics.health(denoiser)
        _of_model[known] = metrics.densities(denoiser, run_seed) | health.numbers()
        if ranks.rank() == 0 and not health.is_empty:
            folder.write_health(health)
            with whole(folder.denoising) as path:
                plots.health(health, path)
    of_model = _of_model[known]
    rows, distance = [], None
    for way in ways:
        numbers = _measure(request, way, denoiser, metrics)
        row = {**request.columns(way, denoiser), **_cells(numbers | of_model)}
        if ranks.rank() == 0:
            row = {"number": folder.append_evaluation(row), **row}
            show_rows(f"{folder.path}: {request.describe(way)}", rows_of(explained(numbers | of_model)))
        rows.append(row)
        distance = next((value for key, value in numbers.items() if key.startswith(("fd_", "fid"))), None)
    if ranks.rank() == 0:
        log.info("appended to %s", folder.evaluations)
        log_rows(rows)
    return distance


def _cells(numbers: Mapping[str, float]) -> Row:
    """The numbers of a row; the cell of one that is not finite is empty."""
    return {key: "" if value is None else value for key, value in written(numbers).items()}


def _cell(value: Any) -> Any:
    """Numbers and text as they are, else YAML such as null, true, [0.2, 3.0]; an empty cell means "no such setting"."""
    return value if isinstance(value, str | int | float) and not isinstance(value, bool) else json.dumps(value)


def _measure(request: Request, way: Way, denoiser: ConditionedDenoiser, metrics: Metrics) -> dict[str, Any]:
    """The quality of one way's samples and their cost: nfe (network evaluations per sample) and seconds."""
    metrics.tell_what_is_left_out()
    obeyed = obedience(denoiser, metrics.periodic_num_samples, request.seed, **request.options(way))
    if not metrics.with_frechet:
        return dict(obeyed)
    judge = metrics.extractor  # made now, so that the seconds do not include its training
    judged: list[tuple[Tensor, Tensor]] = []  # samples with their labels
    drawn = 0

    def sample(n: int, seed: int) -> Tensor:
        nonlocal drawn
        mine = ranks.share(n)
        drawn += len(mine)
        x = denoiser.sample(n, seed=seed, indices=mine, progress=progress, **request.options(way))
        x = ranks.gather(x.cpu(), n)
        labels = denoiser.given(n, request.label, request.prompt)
        if judge.accuracy is not None and isinstance(labels, Tensor):
            judged.append((x, labels))
        return x

    before, began = request.guidance.evaluations, time.perf_counter()
    with counting("sampling for evaluation") if ranks.rank() == 0 else nullcontext() as progress:
        prompts = denoiser.prompts(metrics.num_samples, request.label, request.prompt)
        numbers = metrics.quality(sample, request.seed, prompts)
    seconds = time.perf_counter() - began
    accuracies = [sample_accuracy(judge, metrics.data, x, labels, metrics.batch_size) for x, labels in judged]
    evaluations = ranks.total(request.guidance.evaluations - before)
    cost = {"nfe": evaluations / ranks.total(drawn), "seconds": round(seconds, 3)}
    numbers |= metrics.prompted(denoiser, request.seed, **request.options(way))
    return {**cost, **numbers, **obeyed, **_mean("sample_accuracy", accuracies, judge.accuracy)}


def _mean(name: str, values: list[float], floor: float | None) -> dict[str, Any]:
    """Mean over the repeats, the standard deviation if there are several, and the value of real samples."""
    if not values:
        return {}
    spread = {f"{name}_sd": statistics.stdev(values)} if len(values) > 1 else {}
    return {name: statistics.fmean(values), **spread, f"{name}_floor": floor}
