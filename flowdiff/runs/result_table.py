"""The metrics of a run as a table in the terminal: each number and what it means."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from flowdiff.runs.undefined import Undefined, read

log = logging.getLogger(__name__)

Row = tuple[str, str, str]
"""Metric, value, meaning."""

# Description of each sample metric; the table appends n and the floor, which is the same metric of real test samples.
SAMPLE_METRICS = {
    "precision": "share of samples in the neighbourhood of a real sample",
    "recall": "share of real samples in the neighbourhood of a generated one",
    "density": "mean number of real neighbourhoods around a sample, over k; about 1 for real samples",
    "coverage": "share of real neighbourhoods that contain a sample",
    "memorised": "share of samples closer to a training sample than almost every test sample is",
    "train_distance": "median distance to the nearest training sample, divided by √dim",
    "sample_accuracy": "share of samples that the extractor's classifier assigns to the requested class",
    "clip_score": "100 × cosine of a sample and its prompt, by a CLIP model",
    "clip_recall_1": "share of samples whose own prompt is the nearest of 100, by a CLIP model",
    "is": "Inception score: higher for confident and diverse class predictions",
}
# Name and description of each likelihood on the test split.
LIKELIHOODS = {
    "bpd": ("bits/dim", "exact density, uniform dequantisation"),
    "nats_per_dim": ("nats/dim", "−log p per dimension, exact density"),
    "latent_nats_per_dim": ("nats/dim of the latent", "−log p per latent dimension, exact density of the latents"),
    "bpd_bound": ("bits/dim, bound", "upper bound from the ELBO, uniform dequantisation; not exact"),
}
NAMED = {"image": "image", "text": "caption"}
NO_NUMBER = "–"
AGAINST_TRAINING = "samples compared with the training split"
UNITS = {"bpd": "bits/dim", "nats_per_dim": "nats/dim", "latent_nats_per_dim": "nats/dim of the latent"}


def show(result: Mapping[str, Any], folder: Path) -> None:
    """Print the table of a finished run; rows that an older version did not write are left out."""
    rows = rows_of(read(result.get("metrics") or {}, result.get("reasons") or {}))
    seconds = (result.get("seconds") or {}).get("train")
    if seconds is not None and "steps" in result:
        about = f"{result['steps']:,} steps on {result.get('device', 'an unknown device')}"
        rows.append(("training time", f"{seconds:.0f} s", about))
    if "parameters" in result:
        rows.append(("parameters", f"{result['parameters']:,}", ""))
    show_rows(f"{result.get('name', folder.name)}  ({result.get('run_id', '?')})", rows)
    log.info("results in %s", folder)


def show_rows(title: str, rows: Iterable[Row]) -> None:
    """Print rows under a title."""
    table = Table(title=Text(title, style="table.title"), title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("about", style="dim")
    for row in rows:
        table.add_row(*map(Text, row))
    Console().print(table)


def rows_of(numbers: Mapping[str, float]) -> list[Row]:
    """The rows of the result table for the metrics that were measured; at the end, why some have no number."""
    rows: list[Row] = []
    if "test_loss" in numbers:
        if "num_candidates" in numbers:  # a model of images and captions has no denoising loss
            rows.append(("test loss", _value(numbers, "test_loss"), "contrastive, nats"))
        elif "bpd_bound" in numbers and "latent_nats_per_dim" not in numbers:  # an autoencoder has no denoising loss
            rows.append(("test loss", _value(numbers, "test_loss"), "negative ELBO, nats/dim"))
        else:
            rows.append(("denoising test loss", _value(numbers, "test_loss"), "EDM weighting, per dimension"))
    for key in numbers:
        if (f"{key}_floor" in numbers and not key.startswith("prompts_")) or _is_frechet(key):
            rows += _sample_metric(numbers, key)
    rows += [_hint_row(numbers, key) for key in numbers if f"{key}_shuffled" in numbers]
    rows += _prompt_rows(numbers)
    rows += _retrieval_rows(numbers)
    rows += [(name, _value(numbers, key), about) for key, (name, about) in LIKELIHOODS.items() if key in numbers]
    rows += [*_autoencoder_rows(numbers), *_likelihood_rows(numbers), *_density_rows(numbers)]
    rows += _health_rows(numbers)
    if "samples_per_second" in numbers:
        rows.append(("sampling speed", f"{numbers['samples_per_second']:,.0f} /s", ""))
    return rows + list(_reason_rows(numbers))


def _reason_rows(numbers: Mapping[str, float]) -> Iterator[Row]:
    """A row for each reason why metrics have no number; for standard errors the table says n = 1 instead."""
    without: dict[str, list[str]] = {}
    for key, value in numbers.items():
        if isinstance(value, Undefined) and not key.endswith("_se"):
            without.setdefault(value.reason, []).append(key)
    for reason, keys in without.items():
        yield "no number", NO_NUMBER, f"{', '.join(keys)}: {reason}"


def _shown(value: float | None, form: str) -> str:
    return NO_NUMBER if value is None or math.isnan(value) else format(value, form)


def _value(numbers: Mapping[str, float], key: str) -> str:
    """A metric with its standard error if there is one; a single sample has none."""
    error = numbers.get(f"{key}_se")
    value = _shown(numbers[key], ".4f")
    if error is None or math.isnan(numbers[key]):
        return value
    return f"{value} (n = 1)" if math.isnan(error) else f"{value} ± {error:.4f}"


def _count(numbers: Mapping[str, float], key: str) -> str:
    return f"{numbers[key]:,} " if key in numbers else ""


def _retrieval_rows(numbers: Mapping[str, float]) -> Iterator[Row]:
    """How often images find their captions, and captions their images."""
    for key in numbers:
        if found := re.fullmatch(r"recall_(\d+)_(\w+)_to_(\w+)", key):
            k, given, sought = found.groups()
            others = f"the {k} nearest of {numbers['num_candidates']}"
            about = f"share of {NAMED[given]}s whose own {NAMED[sought]} is among {others}"
            yield f"recall@{k}, {NAMED[given]} to {NAMED[sought]}", _value(numbers, key), about


def _hint_row(numbers: Mapping[str, float], key: str) -> Row:
    """The row of how well samples obey a hint."""
    shuffled = _shown(numbers[f"{key}_shuffled"], ".4g")
    about = f"samples and the hints that they were drawn for; {shuffled} with those of other samples"
    return key.replace("_", " "), _shown(numbers[key], ".4g"), about


def _is_frechet(key: str) -> bool:
    return key == "fid" or (key.startswith("fd_") and not key.endswith(("_sd", "_floor")))


def _sample_metric(numbers: Mapping[str, float], key: str) -> Iterator[Row]:
    """The row of a metric of samples, and of a Fréchet distance a further row with its floor."""
    floor, sd = numbers.get(f"{key}_floor"), numbers.get(f"{key}_sd")
    shown = _shown(numbers[key], ".4g") + ("" if sd is None or math.isnan(sd) else f" ± {sd:.2g}")
    if _is_frechet(key):
        yield key, shown, f"{_count(numbers, 'num_samples')}{AGAINST_TRAINING}"
        if floor is not None:
            about = f"the same distance of {_count(numbers, 'num_test')}real test samples"
            yield f"{key} floor", _shown(floor, ".4g"), about
        return
    about = SAMPLE_METRICS.get("is" if key.startswith("is_") else key, AGAINST_TRAINING)
    most = numbers.get(f"{key}_n", math.inf)
    n, n_floor = (f" (n = {min(numbers[of], most):,})" if of in numbers else "" for of in ("num_samples", "num_test"))
    yield key.replace("_", " "), shown, f"{about}{n}; floor {_shown(floor, '.4g')}{n_floor}"


def _prompt_rows(numbers: Mapping[str, float]) -> Iterator[Row]:
    """Whether samples show what their prompts ask for: everything, and each attribute."""
    for part, about in (("seen", "combinations of the training split"), ("held_out", "combinations it never shows")):
        whole = f"prompts_{part}"
        if whole not in numbers:
            continue
        keys = [key for key in numbers if key.startswith(f"{whole}_") and not key.endswith("_floor")]
        each = ", ".join(f"{key[len(whole) + 1 :].replace('_', ' ')} {_shown(numbers[key], '.2f')}" for key in keys)
        floor = _shown(numbers.get(f"{whole}_floor"), ".3g")
        name = f"prompts, {part.replace('_', ' ')}"
        yield name, _shown(numbers[whole], ".3f"), f"samples that show all that is asked, {about}; {each}; real {floor}"


def _autoencoder_rows(numbers: Mapping[str, float]) -> Iterator[Row]:
    for key in numbers:
        if key.startswith("reconstruction_f") and not key.endswith("_n"):
            about = "reconstructions of the test split; the floor of samples decoded from latents"
            yield key.replace("reconstruction_", "") + " reconstructed", _shown(numbers[key], ".4g"), about
    if "reconstruction_mse" in numbers:
        about = "mean squared error of pixels in [−1, 1]"
        yield "reconstruction error", _shown(numbers["reconstruction_mse"], ".4g"), about
    if "kl" in numbers:
        yield "KL", _shown(numbers["kl"], ".4g"), "nats per image, of the posterior from N(0, I)"
    if "active_units" in numbers:
        dims = f"of {numbers['latent_dims']:g} latent dimensions" if "latent_dims" in numbers else ""
        yield "active units", _shown(numbers["active_units"], "g"), dims


def _likelihood_rows(numbers: Mapping[str, float]) -> Iterator[Row]:
    """Likelihoods by the probability-flow ODE and at further noise levels."""
    for unit, shown in UNITS.items():
        if f"{unit}_ode" in numbers:
            about = "probability-flow ODE; trace by Hutchinson's estimator, or exact if configured"
            yield f"{shown}, ODE", _value(numbers, f"{unit}_ode"), about
        for key, sigma in _at_sigmas(numbers, unit):
            yield f"{shown} at σ = {sigma}", _value(numbers, key), "exact density at this noise level"


def _density_rows(numbers: Mapping[str, float]) -> Iterator[Row]:
    """Classification, outlier detection and interpolation by the density."""
    for kind in ("class", "caption"):
        name = f"{kind}_accuracy"
        if name in numbers:
            posterior = "exact posterior p(c | x)" if numbers.keys() & UNITS.keys() else "p(c | x, σ)"
            among = f", among the captions of {numbers['num_captions']}" if "num_captions" in numbers else ""
            about = f"{posterior}, {_count(numbers, 'num_classified')}test samples{among}"
            yield f"{kind} accuracy", _value(numbers, name), about
        for key, sigma in _at_sigmas(numbers, name):
            yield f"{kind} accuracy at σ = {sigma}", _value(numbers, key), "the same for samples with this much noise"
        if f"{kind}_ece" in numbers:
            yield "calibration error", _value(numbers, f"{kind}_ece"), "mean |confidence − accuracy| of this posterior"
    for key in numbers:
        if key.startswith("auroc_"):
            name = key.removeprefix("auroc_")
            other = "its images with permuted pixels" if name == "permuted" else name
            yield f"AUROC {name}", _value(numbers, key), f"test split against {other}, ranked by density"
    for unit, shown in UNITS.items():
        if f"interpolation_{unit}" in numbers:
            straight = numbers.get("interpolation_straight")
            about = "on paths between test samples through z"
            about += "" if straight is None else f"; {_shown(straight, '.4f')} on straight lines in x"
            yield f"interpolation, {shown}", _value(numbers, f"interpolation_{unit}"), about


def _health_rows(numbers: Mapping[str, float]) -> Iterator[Row]:
    """The worst error of D over the noise levels, and how far D and the densities are from those of one diffusion."""
    if "denoising_worst" in numbers:
        key, means = ("class_means_error", "class means")
        if key not in numbers:
            key, means = ("data_mean_error", "the data's mean")
        worst = _at(numbers, "denoising_worst")
        ratio, error = _times(numbers["denoising_worst_ratio"]), _shown(numbers.get(key), ".3g")
        yield "denoising error, worst σ", worst, f"{ratio} that of {means} ({error}); see denoising.png"
        if numbers.get("levels_worse_than_means"):
            about = f"D is worse than {means} by more than 10 % at noise levels that the sampler visits"
            yield (
                "denoising, worse levels",
                f"{numbers['levels_worse_than_means']:g} of {numbers['levels_visited']:g}",
                f"{about}, so its samples start from errors that the test loss hardly shows.",
            )
    if "min_eigenvalue" in numbers:
        about = "of ∂D/∂x on the sampler's trajectories; of any distribution's denoiser 0 or more"
        yield "smallest eigenvalue", _at(numbers, "min_eigenvalue"), about
    if "fokker_planck" in numbers:
        about = "mean over σ, 0 if the densities are those of one diffusion, about 1 if they are unrelated"
        yield "Fokker–Planck residual", _shown(numbers["fokker_planck"], ".3g"), about


def _at(numbers: Mapping[str, float], key: str) -> str:
    """A metric with the noise level at which it was measured."""
    value, sigma = numbers[key], numbers.get(f"{key}_sigma", math.nan)
    return f"{_shown(value, '.3g')} at σ = {sigma:.3g}" if math.isfinite(sigma) else _shown(value, ".3g")


def _times(ratio: float) -> str:
    return NO_NUMBER if math.isnan(ratio) else f"{ratio:,.0f} ×" if ratio >= 100 else f"{ratio:.3g} ×"


def _at_sigmas(numbers: Mapping[str, float], metric: str) -> Iterator[tuple[str, str]]:
    """The keys of a metric at further noise levels, with these levels."""
    for key in numbers:
        if key.startswith(f"{metric}_sigma_") and not key.endswith("_se"):
            yield key, key.removeprefix(f"{metric}_sigma_")
