"""Run folders as training leaves them, without training: made-up numbers from a seeded generator."""

from __future__ import annotations

import csv
import json
import math
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from PIL import Image

GROUPS = "whitening scaling weighting sigma_sampler loss conditioner first_stage schedule sampler guidance metrics"

EVALUATED = (
    *("sampler", "num_steps", "schedule", "guidance", "guidance_scale", "start", "sigma_start"),
    *("num_samples", "seed", "nfe", "seconds", "fd_cnn"),
)


def config(folder: Path, seed: int = 0, **groups: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved config of realistic size; `groups` are laid over it."""
    made: dict[str, Any] = {"seed": seed, "resume": None, "plugins": [], "tags": ["fake"]}
    made |= {
        g: {"name": f"{g}_a", "scale": 0.5, "levels": [64, 64], "enabled": True, "rate": None} for g in GROUPS.split()
    }
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
    for group, settings in groups.items():
        made[group] = {**made.get(group, {}), **settings}
    return made


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
    **groups: Mapping[str, Any],
) -> Path:
    """Write one run folder. `metrics` and `result` are laid over what a complete run would have."""
    settings = config(folder, seed, **groups)
    flow, activation = settings["flow"], settings["activation"]["name"]
    draw = random.Random(f"{seed} {flow} {activation} {settings['network']}")
    n, unet = flow["n_flows"], settings["network"]["name"] == "unet"
    fd = (
        60
        / n**0.7
        * {"elu": 1.0, "tanh": 1.3, "softplus": 0.9, "swish": 0.95}.get(activation, 1.1)
        * draw.gauss(1, 0.04)
    )
    fd = 9 * draw.gauss(1, 0.05) if unet else fd

    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.dump(settings, sort_keys=False))
    (folder / "train.log").write_text("fake\n")
    with open(folder / "metrics.csv", "w", newline="") as file:
        write = csv.writer(file)
        write.writerow(["step", "train_loss", "val_loss", "fd_cnn"])
        for i in range(1, rows + 1):
            step = steps * i // rows
            loss = 0.2 + fd / 100 + 3 * math.exp(-step / 200) + abs(draw.gauss(0, 0.02))
            write.writerow(
                [
                    step,
                    f"{loss:.5f}",
                    f"{loss + 0.02:.5f}" if i % 5 == 0 else "",
                    f"{fd * (1 + 300 / step):.4f}" if i % 10 == 0 else "",
                ]
            )
    if picture:
        noise = np.random.default_rng(seed).integers(0, 256, (80, 80), dtype=np.uint8)
        tile = np.kron(np.eye(10, dtype=np.uint8), np.full((8, 8), 40 * n % 200 + 55, dtype=np.uint8))
        Image.fromarray(np.maximum(tile, noise // (2 * n))).save(folder / "samples.png")
    if evaluations:
        with open(folder / "evaluations.csv", "w", newline="") as file:
            write = csv.writer(file)
            write.writerow(EVALUATED)
            for sampler, order in (("euler", 1), ("heun", 2)):
                for k in (10, 20, 50, 100):
                    worse = fd * (1 + 40 / k ** (order + 0.3)) * draw.gauss(1, 0.02)
                    write.writerow(
                        [
                            sampler,
                            k,
                            "karras",
                            "none",
                            "",
                            "noise",
                            "",
                            1000,
                            0,
                            order * k,
                            k * order * 0.02,
                            f"{worse:.4f}",
                        ]
                    )
    if error is not None:
        (folder / "failed.json").write_text(json.dumps({"error": error}))
    if complete:
        parameters = 250_000 if unet else 20_000 * n
        made = {
            "run_id": f"{abs(hash(str(folder))):x}"[:8],
            "name": folder.name,
            "sweep": folder.parent.name,
            "overrides": [f"flow.n_flows={n}", f"activation={activation}", f"seed={seed}"],
            "seed": seed,
            "metrics": {
                "test_loss": 0.2 + fd / 100,
                "fd_cnn": fd,
                "fd_cnn_sd": 0.3,
                "fd_cnn_floor": 1.25,
                "num_samples": 1000,
                **({} if unet else {"bpd": 3 + fd / 60, "bpd_se": 0.02}),
                "samples_per_second": 900 / n * draw.gauss(1, 0.05),
                "nfe": 35,
                "extractor_accuracy": 0.98,
                **(metrics or {}),
            },
            "parameters": parameters,
            "steps": steps,
            "seconds": {"train": 12.0 * n * draw.gauss(1, 0.03), "total": 14.0 * n},
            "device": "cpu",
            "versions": {"torch": "2"},
            "git_commit": None,
        }
        (folder / "result.json").write_text(json.dumps({**made, **(result or {})}))
    return folder


def write_sweep(root: Path, activations: tuple[str, ...] = ("elu", "softplus"), seeds: int = 3) -> list[Path]:
    """n_flows × activation × seed, a unet beside them, one failed run and one that was stopped."""
    made = []
    for activation in activations:
        for n in (1, 2, 5, 10):
            for seed in range(seeds):
                folder = root / f"n_flows={n},activation={activation},seed={seed}"
                settings = {"flow": {"n_flows": n}, "activation": {"name": activation}}
                made.append(write_run(folder, seed, evaluations=True, **settings))
    unet = {"network": {"name": "unet", "channels": 32, "depth": 3}}
    made += [write_run(root / f"network=unet,seed={seed}", seed, **unet) for seed in range(seeds)]
    failed = {
        "complete": False,
        "error": "Traceback (most recent call last):\n  …\nRuntimeError: loss is nan at step 40",
    }
    made.append(
        write_run(
            root / "n_flows=10,activation=tanh",
            steps=40,
            rows=4,
            **failed,
            flow={"n_flows": 10},
            activation={"name": "tanh"},
        )
    )
    made.append(write_run(root / "n_flows=20", steps=700, complete=False, picture=False, flow={"n_flows": 20}))
    return made
