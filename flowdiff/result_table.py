"""What a run has reached, as a table in the terminal: a number, and what it is."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

log = logging.getLogger(__name__)

Row = tuple[str, str, str]
"""Metric, value, what it is."""


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
        rows.append(("denoising test loss", value("test_loss"), "EDM weighting, per dimension"))
    for key in numbers:
        if key.startswith("fd_") and not key.endswith(("_sd", "_floor")):
            rows.append((key, f"{numbers[key]:.4g}", f"{count('num_samples')}samples against the training split"))
        if key.startswith("fd_") and key.endswith("_floor"):
            name = key.removesuffix("_floor")
            about = f"{count('num_test')}real test samples, same reference"
            rows.append((f"{name} floor", f"{numbers[key]:.4g}", about))
    if "bpd" in numbers:
        rows.append(("bits/dim", value("bpd"), "exact density, uniform dequantisation"))
    if "nats_per_dim" in numbers:
        rows.append(("nats/dim", value("nats_per_dim"), "−log p per dimension, exact density"))
    rows += _of_density(numbers, value, count)
    if "samples_per_second" in numbers:
        rows.append(("sampling speed", f"{numbers['samples_per_second']:,.0f} /s", ""))
    return rows


def _of_density(numbers: Mapping[str, float], value: Any, count: Any) -> list[Row]:
    rows = []
    if "class_accuracy" in numbers:
        about = f"exact posterior p(c | x), {count('num_classified')}test samples"
        rows.append(("class accuracy", value("class_accuracy"), about))
    if "class_ece" in numbers:
        rows.append(("calibration error", value("class_ece"), "mean |confidence − accuracy| of that posterior"))
    for key in numbers:
        if key.startswith("auroc_"):
            name = key.removeprefix("auroc_")
            foreign = "its pixels permuted" if name == "permuted" else name
            rows.append((f"AUROC {name}", value(key), f"test split against {foreign}, by density"))
    for unit, shown in (("bpd", "bits/dim"), ("nats_per_dim", "nats/dim")):
        if f"interpolation_{unit}" in numbers:
            straight = numbers.get("interpolation_straight")
            about = "between test samples, in z" + ("" if straight is None else f"; {straight:.4f} straight in x")
            rows.append((f"interpolation, {shown}", value(f"interpolation_{unit}"), about))
    return rows
