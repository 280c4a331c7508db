"""`python sample.py run=<run folder> …`: sample a finished run, and measure the samples if asked to."""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

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


BETWEEN = 3.0  # start=compare: the flow that is denoised starts at sigma_data over this, where noise hides its errors
_FALLBACK = {"sampler": "heun", "schedule": "karras", "guidance": "none"}  # what --help shows without a run


def run(cfg: DictConfig) -> float | None:
    """Draw the samples, write the picture and samples.npz, and with evaluate=true measure them."""
    for group in _FALLBACK:
        config.registry.check(group, config.resolved(cfg)[group])
    config.check(cfg)
    settings = config.resolved(cfg)
    folder = RunFolder.open(settings["run"])
    return _sample(settings, folder, _what(list(HydraConfig.get().overrides.task)))


class Way(NamedTuple):
    """One way to samples: what it is called in samples.npz, and where it starts."""

    name: str
    start: str
    sigma_start: float | None


def _sample(settings: dict[str, Any], folder: RunFolder, what: str) -> float | None:
    import numpy as np
    import torch

    from flowdiff.api import load_parts
    from flowdiff.registry import build

    device = settings["device"]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    parts = load_parts(folder.path, device)
    ways = _ways(settings, parts.denoiser)
    options = {
        "label": settings["class_label"],
        "sampler": build("sampler", settings["sampler"]),
        "schedule": build("schedule", settings["schedule"]),
        "guidance": lambda inner: inner.guided(settings["guidance"]),
        "batch_size": settings["batch_size"],
    }
    drawn = [_timed(parts.denoiser, way, settings, options, warm=len(ways) > 1) for way in ways]
    out = Path(settings["out"]) if settings["out"] else folder.path / "samples" / what
    out.mkdir(parents=True, exist_ok=True)
    n = settings["num_samples"]
    for way, (_, seconds) in zip(ways, drawn, strict=True):
        log.info("%d samples in %.2f s (%.0f /s) by %s: %s", n, seconds, n / seconds, _describe(settings, way), out)
    kept = _draw(parts.data, settings, list(zip(ways, drawn, strict=True)), out)
    with whole(out / "samples.npz") as path:
        np.savez_compressed(path, **kept)
    if not settings["evaluate"]:
        return None
    return _evaluate(settings, ways, parts, folder, options)


def _ways(settings: dict[str, Any], denoiser: Any) -> list[Way]:
    if settings["start"] != "compare":
        return [Way("arr_0", settings["start"], settings["sigma_start"])]
    between = settings["sigma_start"] or float(denoiser.sigma_data) / BETWEEN
    return [Way("flow", "flow", None), Way("denoised", "flow", between), Way("diffusion", "noise", None)]


def _timed(denoiser: Any, way: Way, settings: dict[str, Any], options: dict[str, Any], warm: bool) -> Any:
    """Samples on the CPU, and the seconds they took; warm: not counting what only the first sample of all takes."""
    from flowdiff.progress import counting

    start = {"start": way.start, "sigma_start": way.sigma_start, "seed": settings["seed"]}
    if warm:
        denoiser.sample(1, **start, **{**options, "label": None})
    with counting("sampling") as progress:
        began = time.perf_counter()
        samples = denoiser.sample(settings["num_samples"], progress=progress, **start, **options).cpu()
        return samples, time.perf_counter() - began


def _draw(data: Any, settings: dict[str, Any], drawn: list[tuple[Way, Any]], out: Path) -> dict[str, Any]:
    """Draw samples.png, or comparison.png; the arrays to keep, images as (n, H, W, C) uint8."""
    from flowdiff.evaluation import pictures
    from flowdiff.evaluation.drawing import points_of

    vectors = len(data.shape) == 1
    shown = {way.name: samples if vectors else data.to_uint8(samples) for way, (samples, _) in drawn}
    points = None
    if vectors:
        data.prepare_data()
        data.setup()
        points = points_of(data)
    if len(drawn) > 1:
        n = settings["num_samples"]
        titles = [f"{_describe(settings, way)}\n{n} samples in {seconds:.2f} s" for way, (_, seconds) in drawn]
        panels = [(title, x[: 2000 if vectors else 64]) for title, x in zip(titles, shown.values(), strict=True)]
        with whole(out / "comparison.png") as path:
            pictures.side_by_side(panels, path, columns=8, data=points)
    else:
        (samples,) = shown.values()
        with whole(out / "samples.png") as path:
            if vectors:
                pictures.scatter(samples, points[: len(samples)], path)
            else:
                pictures.sample_grid(samples[:100], path, columns=10)
    return {name: (x if vectors else x.permute(0, 2, 3, 1)).numpy() for name, x in shown.items()}


def _evaluate(
    settings: dict[str, Any], ways: list[Way], parts: Any, folder: RunFolder, options: dict[str, Any]
) -> float | None:
    """Measure the density and each way's samples as the run's own evaluation does; a row each in <run>/evaluations.csv.

    Returns the Fréchet distance of the last way, None where there is none.
    """
    from flowdiff.registry import build
    from flowdiff.result_table import rows_of, show_rows

    parts.data.prepare_data()
    parts.data.setup()
    config_ = config.of_run(folder)
    metrics = build("metrics", config_["metrics"], data=parts.data)
    denoiser = parts.denoiser
    sigma_min = build("schedule", config_["schedule"]).sigma_min
    densities = metrics.densities(denoiser, denoiser.cond_of, sigma_min, config_["seed"])
    distance = None
    for way in ways:
        row, numbers = _measure(settings, way, denoiser, metrics, options)
        folder.append_evaluation({**row, **numbers, **densities})
        show_rows(f"{folder.path}: {_describe(settings, way)}", rows_of({**numbers, **densities}))
        distance = next((value for key, value in numbers.items() if key.startswith("fd_")), None)
    log.info("appended to %s", folder.evaluations)
    return distance


def _measure(settings: dict[str, Any], way: Way, denoiser: Any, metrics: Any, options: dict[str, Any]) -> Any:
    """What was asked, and what came of it: two mappings of columns to values."""
    drawn = {"rows": 0, "samples": 0}
    hook = denoiser.denoiser.register_forward_pre_hook(
        lambda module, arguments: drawn.update(rows=drawn["rows"] + len(arguments[0]))
    )

    def sample(n: int, seed: int) -> Any:
        drawn["samples"] += n
        return denoiser.sample(n, seed=seed, start=way.start, sigma_start=way.sigma_start, **options)

    began = time.perf_counter()
    numbers = metrics.quality(sample, settings["seed"])
    seconds = time.perf_counter() - began
    hook.remove()
    row = {
        "sampler": settings["sampler"]["name"],
        "num_steps": settings["sampler"]["num_steps"],
        "schedule": settings["schedule"]["name"],
        "guidance": settings["guidance"]["name"],
        "guidance_scale": settings["guidance"].get("scale", ""),
        "start": way.start,
        "sigma_start": way.sigma_start if way.sigma_start is not None else "",
        "class_label": settings["class_label"] if settings["class_label"] is not None else "",
        "seed": settings["seed"],
        "nfe": drawn["rows"] / max(1, drawn["samples"]),
        "seconds": round(seconds, 3),
    }
    return row, numbers


def _what(overrides: list[str]) -> str:
    """A folder name for what was asked: the overrides less the run, or "default"."""
    kept = [o for o in overrides if o.split("=")[0] not in ("run", "out", "evaluate", "device", "batch_size")]
    return slug(" ".join(kept)) or "default"


def _describe(settings: dict[str, Any], way: Way) -> str:
    guidance = settings["guidance"]
    guided = "" if guidance["name"] == "none" else f", {guidance['name']} at scale {guidance['scale']:g}"
    sampler = f"{settings['sampler']['name']} with {settings['sampler']['num_steps']} steps{guided}"
    if way.start == "noise":
        return f"diffusion, {sampler}"
    if way.sigma_start is None:
        return "one-shot flow"
    return f"flow at σ = {way.sigma_start:.3g}, then {sampler}"
