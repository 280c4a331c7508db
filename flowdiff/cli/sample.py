"""`python sample.py run=<run folder> …`: sample a finished run, and measure the samples if asked to."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from flowdiff import config
from flowdiff.cli import hydra_command, in_sentences
from flowdiff.errors import ConfigurationError
from flowdiff.launch.identity import slug
from flowdiff.launch.run_folder import RunFolder, whole

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point of sample.py and `flowdiff sample`."""

    def command() -> None:
        for arguments in one_run_each(sys.argv[1:]):
            sys.argv[1:] = arguments
            offer_settings_of_run(arguments)
            hydra_command(run, "sample")

    in_sentences(command, "sample")


def one_run_each(arguments: list[str]) -> list[list[str]]:
    """The command line once for each folder of run=a,b,…: each run brings settings of its own to sweep from."""
    for i, argument in enumerate(arguments):
        key, _, folders = argument.partition("=")
        if key == "run" and "," in folders:
            return [[*arguments[:i], f"run={folder}", *arguments[i + 1 :]] for folder in folders.split(",") if folder]
    return [arguments]


def offer_settings_of_run(arguments: list[str]) -> None:
    """Make the run's own sampler, schedule and guidance the options `of_run`, from which sampling starts."""
    runs = [a.partition("=")[2] for a in arguments if a.startswith("run=")]
    if not runs:
        if any(a in ("--help", "-h", "--cfg", "-c") for a in arguments):
            settings = {group: config.defaults(group, name) for group, name in _FALLBACK.items()}
        else:
            raise ConfigurationError("sample.py needs run=<run folder>: the folder of a training run, e.g. outputs/….")
    else:
        settings = config.of_run(RunFolder.open(runs[-1]))
    for group in _FALLBACK:
        ConfigStore.instance().store(group=group, name="of_run", node=settings[group])


_FALLBACK = {"sampler": "heun", "schedule": "karras", "guidance": "none"}  # what --help shows without a run


def run(cfg: DictConfig) -> float | None:
    """Draw the samples, write the picture and samples.npz, and with evaluate=true measure them."""
    for group in _FALLBACK:
        config.registry.check(group, config.resolved(cfg)[group])
    config.check(cfg)
    settings = config.resolved(cfg)
    folder = RunFolder.open(settings["run"])
    return _sample(settings, folder, _what(list(HydraConfig.get().overrides.task)))


def _sample(settings: dict[str, Any], folder: RunFolder, what: str) -> float | None:
    import numpy as np
    import torch

    from flowdiff.api import load_parts
    from flowdiff.evaluation import pictures
    from flowdiff.progress import counting
    from flowdiff.registry import build

    device = settings["device"]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    parts = load_parts(folder.path, device)
    denoiser = parts.denoiser
    label = settings["class_label"]
    options = {
        "sampler": build("sampler", settings["sampler"]),
        "schedule": build("schedule", settings["schedule"]),
        "guidance": lambda inner: inner.guided(settings["guidance"]),
        "start": settings["start"],
        "sigma_start": settings["sigma_start"],
        "batch_size": settings["batch_size"],
    }
    n = settings["num_samples"]
    with counting("sampling") as progress:
        began = time.perf_counter()
        samples = denoiser.sample(n, label=label, seed=settings["seed"], progress=progress, **options).cpu()
        seconds = time.perf_counter() - began
    out = Path(settings["out"]) if settings["out"] else folder.path / "samples" / what
    out.mkdir(parents=True, exist_ok=True)
    if len(parts.data.shape) == 1:
        kept = samples
        parts.data.prepare_data()
        parts.data.setup()
        with whole(out / "samples.png") as path:
            pictures.scatter(samples, parts.data.to_model(parts.data.train[:n].x), path)
    else:
        pixels = parts.data.to_uint8(samples)
        kept = pixels.permute(0, 2, 3, 1)  # (n, H, W, C)
        with whole(out / "samples.png") as path:
            pictures.sample_grid(pixels[:100], path, columns=10)
    with whole(out / "samples.npz") as path:
        np.savez_compressed(path, arr_0=kept.numpy())
    log.info("%d samples in %.2f s (%.0f /s) by %s: %s", n, seconds, n / seconds, _describe(settings), out)
    return _evaluate(settings, parts, folder, options) if settings["evaluate"] else None


def _evaluate(settings: dict[str, Any], parts: Any, folder: RunFolder, options: dict[str, Any]) -> float | None:
    """Measure the samples as the run's own evaluation does; one more row in <run>/evaluations.csv."""
    from rich.console import Console
    from rich.table import Table

    from flowdiff.registry import build
    from flowdiff.training import rows_of

    parts.data.prepare_data()
    parts.data.setup()
    metrics = build("metrics", config.of_run(folder)["metrics"], data=parts.data)
    denoiser = parts.denoiser
    drawn = {"rows": 0, "samples": 0}
    hook = denoiser.denoiser.register_forward_pre_hook(
        lambda module, arguments: drawn.update(rows=drawn["rows"] + len(arguments[0]))
    )

    def sample(n: int, seed: int) -> Any:
        drawn["samples"] += n
        return denoiser.sample(n, seed=seed, label=settings["class_label"], **options)

    began = time.perf_counter()
    numbers = metrics.quality(sample, settings["seed"])
    hook.remove()
    row = {
        "sampler": settings["sampler"]["name"],
        "num_steps": settings["sampler"]["num_steps"],
        "schedule": settings["schedule"]["name"],
        "guidance": settings["guidance"]["name"],
        "guidance_scale": settings["guidance"].get("scale", ""),
        "start": settings["start"],
        "sigma_start": settings["sigma_start"] if settings["sigma_start"] is not None else "",
        "class_label": settings["class_label"] if settings["class_label"] is not None else "",
        "seed": settings["seed"],
        "nfe": drawn["rows"] / max(1, drawn["samples"]),
        "seconds": round(time.perf_counter() - began, 3),
        **numbers,
    }
    folder.append_evaluation(row)
    table = Table(title=f"{folder.path}: {_describe(settings)}", title_justify="left")
    for column in ("metric", "value", "about"):
        table.add_column(column)
    for cells in rows_of(numbers):
        table.add_row(*cells)
    Console().print(table)
    log.info("appended to %s", folder.evaluations)
    return next((value for key, value in numbers.items() if key.startswith("fd_")), None)


def _what(overrides: list[str]) -> str:
    """A folder name for what was asked: the overrides less the run, or "default"."""
    kept = [o for o in overrides if o.split("=")[0] not in ("run", "out", "evaluate", "device", "batch_size")]
    return slug(" ".join(kept)) or "default"


def _describe(settings: dict[str, Any]) -> str:
    guidance = settings["guidance"]
    guided = "" if guidance["name"] == "none" else f", {guidance['name']} at scale {guidance['scale']:g}"
    start = (
        "" if settings["start"] == "noise" else f", started from the flow at σ = {settings['sigma_start'] or 'σ_min'}"
    )
    return f"{settings['sampler']['name']} with {settings['sampler']['num_steps']} steps{guided}{start}"
