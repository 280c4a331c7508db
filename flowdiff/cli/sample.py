"""`python sample.py run=<run folder> …`: sample a finished run, and measure the samples if asked to."""

from __future__ import annotations

import logging
import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from flowdiff import config
from flowdiff.cli import hydra_command, in_sentences
from flowdiff.errors import ConfigurationError
from flowdiff.evaluation.evaluate import Way, describe, evaluate
from flowdiff.runs.files import whole
from flowdiff.runs.identity import slug
from flowdiff.runs.run_folder import RunFolder

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point of sample.py and `flowdiff sample`."""

    def command() -> None:
        with _other_processes():
            for arguments in one_run_each(sys.argv[1:]):
                offer_settings_of_run(arguments)
                sys.argv[1:] = swept_together(arguments)
                hydra_command(run, "sample")

    in_sentences(command, "sample")


def _other_processes() -> AbstractContextManager[None]:
    """Those that torchrun has started beside this one; it tells by the environment, without importing torch."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return nullcontext()
    if int(os.environ["RANK"]) > 0:
        logging.getLogger("flowdiff").setLevel(logging.WARNING)
    from flowdiff.evaluation import ranks

    return ranks.joined()


def one_run_each(arguments: list[str]) -> list[list[str]]:
    """The command line once for each folder of run=a,b,…: each run brings settings of its own to sweep from."""
    for i, argument in enumerate(arguments):
        key, _, folders = argument.partition("=")
        if key == "run" and "," in folders:
            return [[*arguments[:i], f"run={folder}", *arguments[i + 1 :]] for folder in folders.split(",") if folder]
    return [arguments]


def swept_together(arguments: list[str]) -> list[str]:
    """The command line with each key of a swept group swept, too, if only over one value.

    Before it expands a sweep, Hydra composes all that is not swept, and guidance.rescale=0.5 has to wait until one of
    guidance=cfg,flow_classifier is there to have it.
    """
    read = OverridesParser.create().parse_override
    given = [read(a) if "=" in a and not a.startswith("-") else None for a in arguments]
    swept = {override.key_or_group for override in given if override is not None and override.is_sweep_override()}

    def waiting(override: Override) -> bool:
        return "." in override.key_or_group and override.key_or_group.split(".")[0] in swept

    return [
        f"{argument.partition('=')[0]}=choice({override.get_value_string()})"
        if override is not None and waiting(override) and not override.is_sweep_override()
        else argument
        for argument, override in zip(arguments, given, strict=True)
    ]


def offer_settings_of_run(arguments: list[str]) -> None:
    """Make the run's own sampler, schedule, guidance and metrics the options `of_run`, from which sampling starts."""
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
# What --help shows without a run.
_FALLBACK = {"sampler": "heun", "schedule": "karras", "guidance": "none", "metrics": "default"}


def run(cfg: DictConfig) -> float | None:
    """Draw the samples, write the picture and samples.npz, and with evaluate=true measure them."""
    for group in _FALLBACK:
        config.registry.check(group, config.resolved(cfg)[group])
    config.check(cfg)
    settings = config.resolved(cfg)
    folder = RunFolder.open(settings["run"])
    return _sample(settings, folder, _what(list(HydraConfig.get().overrides.task)))


def _sample(settings: dict[str, Any], folder: RunFolder, what: str) -> float | None:
    import torch

    from flowdiff.api import load_parts
    from flowdiff.evaluation import ranks
    from flowdiff.registry import create

    device = settings["device"]
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device == "cuda" and ranks.world_size() > 1:
        device = ranks.local_device()
    parts = load_parts(folder.path, device)
    ways = _ways(settings, parts.denoiser)
    guide = parts.denoiser.guided(settings["guidance"])  # once: it may be a run of its own
    options = {
        "label": settings["class_label"],
        "sampler": create("sampler", settings["sampler"]),
        "schedule": create("schedule", settings["schedule"]),
        "guidance": lambda inner: guide,
        "batch_size": settings["batch_size"],
    }
    if ranks.rank() == 0:
        _show(settings, ways, parts, options, Path(settings["out"] or folder.path / "samples" / what))
    return evaluate(settings, ways, parts, folder, options) if settings["evaluate"] else None


def _show(settings: dict[str, Any], ways: list[Way], parts: Any, options: dict[str, Any], out: Path) -> None:
    """Draw each way's samples, timed, into a picture and samples.npz."""
    import numpy as np

    drawn = [_timed(parts.denoiser, way, settings, options, warm=len(ways) > 1) for way in ways]
    out.mkdir(parents=True, exist_ok=True)
    n = settings["num_samples"]
    for way, (_, seconds) in zip(ways, drawn, strict=True):
        log.info("%d samples in %.2f s (%.0f /s) by %s: %s", n, seconds, n / seconds, describe(settings, way), out)
    kept = _draw(parts.data, settings, list(zip(ways, drawn, strict=True)), out)
    with whole(out / "samples.npz") as path:
        np.savez_compressed(path, **kept)


def _ways(settings: dict[str, Any], denoiser: Any) -> list[Way]:
    if denoiser.is_autoencoder:
        if settings["start"] != "noise":
            raise ConfigurationError(
                f"start={settings['start']} makes no sense for an autoencoder, which samples its prior: leave it out."
            )
        return [Way("arr_0", "prior", None)]
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
    from flowdiff.evaluation.pictures import plots as pictures
    from flowdiff.evaluation.pictures.drawing import points_of

    vectors = len(data.shape) == 1
    shown = {way.name: samples if vectors else data.to_uint8(samples) for way, (samples, _) in drawn}
    points = None
    if vectors:
        data.prepare_data()
        data.setup()
        points = points_of(data)
    if len(drawn) > 1:
        n = settings["num_samples"]
        titles = [f"{describe(settings, way)}\n{n} samples in {seconds:.2f} s" for way, (_, seconds) in drawn]
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


def _what(overrides: list[str]) -> str:
    """A folder name for what was asked: the overrides less the run, or "default"."""
    kept = [o for o in overrides if o.split("=")[0] not in ("run", "out", "evaluate", "device", "batch_size")]
    return slug(" ".join(kept)) or "default"
