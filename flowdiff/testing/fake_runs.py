"""Run folders as training writes them, without training: for tests of code that reads runs.

The numbers are invented, and drawn from a generator that is seeded by the settings.
"""

from __future__ import annotations

import csv
import itertools
import json
import math
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

from flowdiff.runs.health import Health

GROUPS = "whitening scaling weighting sigma_sampler loss conditioner first_stage schedule sampler guidance metrics"
EVALUATED = "sampler num_steps schedule guidance guidance_scale start sigma_start num_samples seed nfe seconds fd_cnn"
ACTIVATION_FACTORS = {"elu": 1.0, "tanh": 1.3, "softplus": 0.9, "swish": 0.95}


def fake_config(folder: Path, seed: int = 0, **groups: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved config of realistic size, updated with the settings of `groups`."""
    filler = {"scale": 0.5, "levels": [64, 64], "enabled": True, "rate": None}
    made: dict[str, Any] = {"seed": seed, "resume": None, "plugins": [], "tags": ["fake"]}
    made |= {group: {"name": f"{group}_a", **filler} for group in GROUPS.split()}
    made |= {
        "dataset": {"name": "digits", "batch_size": 64, "num_workers": 0, "root": str(folder), "flip": False},
        "network": {"name": "score_flow", "eps": 1e-5},
        "flow": {"name": "linear_activation", "n_flows": 3, "width": 64},
        "activation": {"name": "elu", "min_slope": 0.1},
        "optimizer": {"name": "adamw", "lr": 1e-3, "betas": [0.9, 0.999]},
        "logger": {"name": "csv", "group": folder.name},
        "trainer": {"max_steps": 2000, "devices": 1, "gradient_clip_val": 1.0},
        "paths": {"output_dir": str(folder)},
    }
    return made | {group: {**made.get(group, {}), **settings} for group, settings in groups.items()}


def write_run(
    folder: Path,
    seed: int = 0,
    metrics: Mapping[str, float] | None = None,
    result: Mapping[str, Any] | None = None,
    complete: bool = True,
    error: str | None = None,
    steps: int = 2000,
    rows: int = 60,
    evaluations: bool = False,
    picture: bool = True,
    health: Health | None = None,
    **groups: Mapping[str, Any],
) -> Path:
    """Write one run folder; returns its path.

    Args:
        folder: where; it must not exist.
        seed: seed of the run and of its invented numbers.
        metrics: metrics that result.json gets as given.
        result: further keys of result.json that it gets as given.
        complete: whether result.json is written.
        error: message of a failed.json; None writes none.
        steps: optimiser steps.
        rows: rows of metrics.csv, spread over the steps.
        evaluations: whether the run was sampled again (evaluations.csv).
        picture: whether samples.png is written.
        health: what health.json holds; None writes none.
        **groups: settings by config group, e.g. flow={"n_flows": 2}.
    """
    settings = fake_config(folder, seed, **groups)
    flow, activation = settings["flow"], settings["activation"]["name"]
    draw = random.Random(f"{seed} {flow} {activation} {settings['network']}")
    n, unet = flow["n_flows"], settings["network"]["name"] == "unet"
    fd = 60 / n**0.7 * ACTIVATION_FACTORS.get(activation, 1.1) * draw.gauss(1, 0.04)
    fd = 9 * draw.gauss(1, 0.05) if unet else fd

    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.dump(settings, sort_keys=False), encoding="utf-8")
    (folder / "train.log").write_text("fake\n", encoding="utf-8")
    curve = []
    for i in range(1, rows + 1):
        step = steps * i // rows
        loss = 0.2 + fd / 100 + 3 * math.exp(-step / 200) + abs(draw.gauss(0, 0.02))
        evaluated = f"{loss + 0.02:.5f}" if i % 5 == 0 else "", f"{fd * (1 + 300 / step):.4f}" if i % 10 == 0 else ""
        curve.append((step, f"{loss:.5f}", *evaluated))
    _write_csv(folder / "metrics.csv", "step train_loss val_loss fd_cnn", curve)
    if picture:
        noise = np.random.default_rng(seed).integers(0, 256, (80, 80), dtype=np.uint8)
        tile = np.kron(np.eye(10, dtype=np.uint8), np.full((8, 8), 40 * n % 200 + 55, dtype=np.uint8))
        Image.fromarray(np.maximum(tile, noise // (2 * n))).save(folder / "samples.png")
    if evaluations:
        drawn = []
        for sampler, order, k in ((*s, k) for s in (("euler", 1), ("heun", 2)) for k in (10, 20, 50, 100)):
            worse = fd * (1 + 40 / k ** (order + 0.3)) * draw.gauss(1, 0.02)
            sampled = sampler, k, "karras", "none", "", "noise", "", 1000, 0
            drawn.append((*sampled, order * k, k * order * 0.02, f"{worse:.4f}"))
        _write_csv(folder / "evaluations.csv", EVALUATED, drawn)
    if health is not None:
        (folder / "health.json").write_text(json.dumps(health.to_json()), encoding="utf-8")
    if error is not None:
        (folder / "failed.json").write_text(json.dumps({"error": error}), encoding="utf-8")
    if complete:
        measured = {"test_loss": 0.2 + fd / 100, "fd_cnn": fd, "fd_cnn_sd": 0.3, "fd_cnn_floor": 1.25}
        measured |= {"num_samples": 1000} | ({} if unet else {"bpd": 3 + fd / 60, "bpd_se": 0.02})
        measured |= {"samples_per_second": 900 / n * draw.gauss(1, 0.05), "nfe": 35, "extractor_accuracy": 0.98}
        made = {
            "run_id": f"{abs(hash(str(folder))):x}"[:8],
            "name": folder.name,
            "sweep": folder.parent.name,
            "overrides": [f"flow.n_flows={n}", f"activation={activation}", f"seed={seed}"],
            "seed": seed,
            "metrics": {**measured, **(metrics or {})},
            "parameters": 250_000 if unet else 20_000 * n,
            "steps": steps,
            "seconds": {"train": 12.0 * n * draw.gauss(1, 0.03), "total": 14.0 * n},
            "device": "cpu",
            "versions": {"torch": "2"},
            "git_commit": None,
            **(result or {}),
        }
        (folder / "result.json").write_text(json.dumps(made), encoding="utf-8")
    return folder


def write_runs(root: Path, *lines: str) -> Path:
    """Write small runs into root/0, root/1, …; returns root.

    Each line holds the arguments of one `write_run`, e.g. "flow.n_flows=2 metrics.fid=3".
    """
    for i, line in enumerate(lines):
        given: dict[str, Any] = {"picture": False, "rows": 1}
        for key, _, text in (part.partition("=") for part in line.split()):
            group, _, name = key.partition(".")
            value = yaml.safe_load(text)
            given[group] = {**given.get(group, {}), name: value} if name else value
        write_run(root / str(i), **given)
    return root


def write_sweep(root: Path) -> Path:
    """Write a sweep of n_flows × activation × seed, a unet, one failed run and one that was stopped; returns root."""
    for activation, n, seed in itertools.product(("elu", "softplus"), (1, 2, 5, 10), range(3)):
        folder = root / f"n_flows={n},activation={activation},seed={seed}"
        write_run(folder, seed, evaluations=True, flow={"n_flows": n}, activation={"name": activation})
    for seed in range(3):
        write_run(root / f"network=unet,seed={seed}", seed, network={"name": "unet", "channels": 32, "depth": 3})
    error = "Traceback (most recent call last):\n  …\nRuntimeError: loss is nan at step 40"
    folder = root / "n_flows=10,activation=tanh"
    tanh = {"name": "tanh"}
    write_run(folder, complete=False, error=error, steps=40, rows=4, flow={"n_flows": 10}, activation=tanh)
    write_run(root / "n_flows=20", steps=700, complete=False, picture=False, flow={"n_flows": 20})
    return root


def _write_csv(path: Path, head: str, rows: Iterable[tuple[Any, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([head.split(), *rows])
