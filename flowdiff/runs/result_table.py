"""What a run has reached, as a table in the terminal: a number, and what it is."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

log = logging.getLogger(__name__)

Row = tuple[str, str, str]
"""Metric, value, what it is."""

# What is said of a comparison of samples, by its name; n and the floor, the number for real test samples, follow.
COMPARED = {
    "precision": "share of samples that lie among real ones",
    "recall": "share of real ones that lie among samples",
    "density": "real neighbourhoods that a sample is in; a real one is in 1",
    "coverage": "share of real neighbourhoods with a sample in them",
    "memorised": "share of samples as near to training samples as copies are",
    "train_distance": "median distance to the nearest training sample, over √dim",
    "sample_accuracy": "share that the extractor's classifier takes for the class asked for",
    "is": "Inception score: how sure and how various the classes are",
}
UNITS = {"bpd": "bits/dim", "nats_per_dim": "nats/dim", "latent_nats_per_dim": "nats/dim of the latent"}


def show(result: Mapping[str, Any], folder: Path) -> None:
    """Print the table of a finished run; what an older version did not write is left out."""
    rows = rows_of(result.get("metrics", {}))
    if "seconds" in result and "steps" in result:
        about = f"{result['steps']:,} steps on {result.get('device', 'an unknown device')}"
        rows.append(("training time", f"{result['seconds']['train']:.0f} s", about))
    if "parameters" in result:
        rows.append(("parameters", f"{result['parameters']:,}", ""))
    show_rows(f"{result.get('name', folder.name)}  ({result.get('run_id', '?')})", rows)
    log.info("results in %s", folder)


def show_rows(title: str, rows: Iterable[Row]) -> None:
    """Print rows under a title."""
    table = Table(title=title, title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    table.add_column("about", style="dim")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def rows_of(numbers: Mapping[str, float]) -> list[Row]:
    """The lines of the result table, of those metrics that there are."""

    def value(key: str) -> str:
        spread = numbers.get(f"{key}_se")
        return f"{numbers[key]:.4f}" + ("" if spread is None else f" ± {spread:.4f}")

    def count(key: str) -> str:
        return f"{numbers[key]:,} " if key in numbers else ""

    rows = []
    if "test_loss" in numbers:
        if "bpd_bound" in numbers and "latent_nats_per_dim" not in numbers:  # an autoencoder, which denoises nothing
            rows.append(("test loss", value("test_loss"), "negative ELBO per dimension, nats"))
        else:
            rows.append(("denoising test loss", value("test_loss"), "EDM weighting, per dimension"))
    for key in numbers:
        if f"{key}_floor" in numbers or _is_frechet(key):
            rows += _compared(key, numbers, count)
    if "bpd" in numbers:
        rows.append(("bits/dim", value("bpd"), "exact density, uniform dequantisation"))
    if "nats_per_dim" in numbers:
        rows.append(("nats/dim", value("nats_per_dim"), "−log p per dimension, exact density"))
    if "latent_nats_per_dim" in numbers:
        about = "−log p per dimension of z, exact density of the latent"
        rows.append(("nats/dim of the latent", value("latent_nats_per_dim"), about))
    if "bpd_bound" in numbers:
        rows.append(
            ("bits/dim, bound", value("bpd_bound"), "upper bound by the ELBO, uniform dequantisation; not exact")
        )
    rows += _of_autoencoder(numbers)
    rows += _further_likelihoods(numbers, value)
    rows += _of_density(numbers, value, count)
    if "samples_per_second" in numbers:
        rows.append(("sampling speed", f"{numbers['samples_per_second']:,.0f} /s", ""))
    return rows


def _compared(key: str, numbers: Mapping[str, float], count: Any) -> list[Row]:
    floor, spread = numbers.get(f"{key}_floor"), numbers.get(f"{key}_sd")
    shown = f"{numbers[key]:.4g}" + ("" if spread is None else f" ± {spread:.2g}")
    if not _is_frechet(key):
        about = COMPARED.get("is" if key.startswith("is_") else key, "samples against the training split")
        most = numbers.get(f"{key}_n", math.inf)
        n, of_floor = (
            f" (n = {min(numbers[which], most):,})" if which in numbers else "" for which in ("num_samples", "num_test")
        )
        return [(key.replace("_", " "), shown, f"{about}{n}; floor {floor:.4g}{of_floor}")]
    rows = [(key, shown, f"{count('num_samples')}samples against the training split")]
    if floor is not None:
        rows.append((f"{key} floor", f"{floor:.4g}", f"{count('num_test')}real test samples, same reference"))
    return rows


def _is_frechet(key: str) -> bool:
    return key == "fid" or (key.startswith("fd_") and not key.endswith(("_sd", "_floor")))


def _further_likelihoods(numbers: Mapping[str, float], value: Any) -> list[Row]:
    rows = []
    for unit, shown in UNITS.items():
        if f"{unit}_ode" in numbers:
            rows.append(
                (
                    f"{shown}, ODE",
                    value(f"{unit}_ode"),
                    "probability-flow ODE, trace by Hutchinson; exact if ode_probes=null",
                )
            )
        for key in numbers:
            if key.startswith(f"{unit}_sigma_") and not key.endswith("_se"):
                sigma = key.removeprefix(f"{unit}_sigma_")
                rows.append((f"{shown} at σ = {sigma}", value(key), "exact density at another noise level"))
    return rows


def _of_autoencoder(numbers: Mapping[str, float]) -> list[Row]:
    rows = []
    for key in numbers:
        if key.startswith("reconstruction_f") and not key.endswith("_n"):
            about = "the test split's reconstructions: what samples of latents have as their floor"
            rows.append((key.replace("reconstruction_", "") + " reconstructed", f"{numbers[key]:.4g}", about))
    if "reconstruction_mse" in numbers:
        rows.append(("reconstruction error", f"{numbers['reconstruction_mse']:.4g}", "mean square, of [−1, 1]"))
    if "kl" in numbers:
        rows.append(("KL", f"{numbers['kl']:.4g}", "nats an image, posterior from N(0, I)"))
    if "active_units" in numbers:
        dims = numbers["latent_dims"]
        rows.append(("active units", f"{numbers['active_units']:g}", f"of {dims:g} dimensions of the latent"))
    return rows


def _of_density(numbers: Mapping[str, float], value: Any, count: Any) -> list[Row]:
    rows = []
    if "class_accuracy" in numbers:
        whose = "exact posterior p(c | x)" if numbers.keys() & UNITS.keys() else "p(c | x, σ)"
        about = f"{whose}, {count('num_classified')}test samples"
        rows.append(("class accuracy", value("class_accuracy"), about))
    for key in numbers:
        if key.startswith("class_accuracy_sigma_") and not key.endswith("_se"):
            sigma = key.removeprefix("class_accuracy_sigma_")
            rows.append((f"class accuracy at σ = {sigma}", value(key), "the same of samples with so much noise"))
    if "class_ece" in numbers:
        rows.append(("calibration error", value("class_ece"), "mean |confidence − accuracy| of that posterior"))
    for key in numbers:
        if key.startswith("auroc_"):
            name = key.removeprefix("auroc_")
            foreign = "its pixels permuted" if name == "permuted" else name
            rows.append((f"AUROC {name}", value(key), f"test split against {foreign}, by density"))
    for unit, shown in UNITS.items():
        if f"interpolation_{unit}" in numbers:
            straight = numbers.get("interpolation_straight")
            about = "between test samples, in z" + ("" if straight is None else f"; {straight:.4f} straight in x")
            rows.append((f"interpolation, {shown}", value(f"interpolation_{unit}"), about))
    return rows
