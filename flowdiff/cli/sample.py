"""`python sample.py run=<run folder> …`: sample a finished run, and measure the samples if asked to."""

from __future__ import annotations

import logging
import os
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from flowdiff import config, registry
from flowdiff.cli.sentences import hydra_command, run_in_sentences
from flowdiff.errors import ConfigurationError
from flowdiff.runs.files import whole
from flowdiff.runs.identity import slug
from flowdiff.runs.run_folder import RunFolder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from flowdiff.data.base import DataModule
    from flowdiff.diffusion.model import ConditionedDenoiser
    from flowdiff.evaluation.evaluate import Request, Way
    from flowdiff.training.assembly import ModelParts

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point of sample.py and `flowdiff sample`."""

    def command() -> None:
        with _other_processes():
            for arguments in one_run_each(sys.argv[1:]):
                offer_settings_of_run(arguments)
                sys.argv[1:] = swept_together(arguments)
                hydra_command(run, "sample")

    run_in_sentences(command, "sample")


def _other_processes() -> AbstractContextManager[None]:
    """The group of the processes that torchrun started; detected by the environment, without importing torch."""
    if int(os.environ.get("WORLD_SIZE", 1)) == 1:
        return nullcontext()
    if int(os.environ["RANK"]) > 0:
        logging.getLogger("flowdiff").setLevel(logging.WARNING)
    from flowdiff.evaluation import ranks

    return ranks.joined()


def one_run_each(arguments: list[str]) -> list[list[str]]:
    """The command line once for each folder of run=a,b,…, because each run has its own settings to sweep from."""
    for i, argument in enumerate(arguments):
        key, _, folders = argument.partition("=")
        if key == "run" and "," in folders:
            return [[*arguments[:i], f"run={folder}", *arguments[i + 1 :]] for folder in folders.split(",") if folder]
    return [arguments]


def swept_together(arguments: list[str]) -> list[str]:
    """The command line with each setting of a swept group turned into a sweep too, if only over one value.

    Before it expands a sweep, Hydra composes everything that is not swept; guidance.rescale=0.5 exists only after one
    of guidance=cfg,flow_classifier has been chosen.
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
    """Offer the run's own sampler, schedule, guidance and metrics as the options `of_run`, the defaults of sampling."""
    runs = [a.partition("=")[2] for a in arguments if a.startswith("run=")]
    if not runs:
        if any(a in ("--help", "-h", "--cfg", "-c") for a in arguments):
            settings = {group: config.defaults(group, name) for group, name in _FALLBACK.items()}
        else:
            raise ConfigurationError(
                "sample.py needs run=<run folder>: give the folder of a training run, e.g. outputs/…."
            )
    else:
        settings = config.of_run(RunFolder.open(runs[-1]))
    for group in _FALLBACK:
        ConfigStore.instance().store(group=group, name="of_run", node=settings[group])


BETWEEN = 3.0  # start=compare denoises a flow sample at σ = sigma_data/BETWEEN, where the noise hides the flow's errors
# The options that --help shows without a run.
_FALLBACK = {"sampler": "heun", "schedule": "karras", "guidance": "none", "metrics": "default"}


def run(cfg: DictConfig) -> float | None:
    """Draw the samples, write the picture and samples.npz, and with evaluate=true measure them."""
    for group in _FALLBACK:
        registry.check(group, config.resolved(cfg)[group])
    config.check(cfg)
    settings = config.resolved(cfg)
    folder = RunFolder.open(settings["run"])
    return _sample(settings, folder, _folder_name(list(HydraConfig.get().overrides.task)))


def _sample(settings: dict[str, Any], folder: RunFolder, name: str) -> float | None:
    from flowdiff.evaluation import ranks
    from flowdiff.evaluation.evaluate import Request, evaluate
    from flowdiff.training.assembly import guide_by, load_parts

    parts = load_parts(folder.path, _device(settings["device"]))
    ways = _ways(settings, parts.denoiser)
    request = Request(
        registry.create("sampler", settings["sampler"]),
        registry.create("schedule", settings["schedule"]),
        guide_by(settings["guidance"])(parts.denoiser),
        settings["class_label"],
        settings["seed"],
        settings["batch_size"],
        settings,
    )
    if ranks.rank() == 0:
        out = Path(settings["out"] or folder.path / "samples" / name)
        _show(request, settings["num_samples"], ways, parts, out)
    if not settings["evaluate"]:
        return None
    parts.data.prepare_data()
    parts.data.setup()
    metrics = registry.create("metrics", settings["metrics"], data=parts.data)
    made_with = config.of_run(folder)
    return evaluate(
        request, ways, parts.denoiser, metrics, folder, made_with["seed"], lambda rows: _log(made_with, folder, rows)
    )


def _device(asked: str) -> torch.device | str:
    import torch

    from flowdiff.evaluation import ranks

    device = "cuda" if asked == "auto" and torch.cuda.is_available() else "cpu" if asked == "auto" else asked
    return ranks.local_device() if device == "cuda" and ranks.world_size() > 1 else device


def _show(request: Request, n: int, ways: list[Way], parts: ModelParts, out: Path) -> None:
    """Draw n samples of each way, timed, into a picture and samples.npz."""
    import numpy as np

    drawn = [_timed(parts.denoiser, way, request, n, warm=len(ways) > 1) for way in ways]
    out.mkdir(parents=True, exist_ok=True)
    for way, (_, seconds) in zip(ways, drawn, strict=True):
        log.info("%d samples in %.2f s (%.0f /s) by %s: %s", n, seconds, n / seconds, request.describe(way), out)
    arrays = _draw(parts.data, request, n, list(zip(ways, drawn, strict=True)), out)
    with whole(out / "samples.npz") as path, path.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _ways(settings: dict[str, Any], denoiser: ConditionedDenoiser) -> list[Way]:
    from flowdiff.evaluation.evaluate import Way

    if denoiser.is_autoencoder:
        if settings["start"] != "noise":
            raise ConfigurationError(
                f"start={settings['start']} makes no sense for an autoencoder, which samples its prior: remove start."
            )
        return [Way("arr_0", "prior", None)]
    if settings["start"] != "compare":
        return [Way("arr_0", settings["start"], settings["sigma_start"])]
    between = settings["sigma_start"] or float(denoiser.sigma_data) / BETWEEN
    return [Way("flow", "flow", None), Way("denoised", "flow", between), Way("diffusion", "noise", None)]


def _timed(denoiser: ConditionedDenoiser, way: Way, request: Request, n: int, warm: bool) -> tuple[Tensor, float]:
    """n samples on the CPU, and their seconds; warm: draw one sample first, so that set-up costs are not counted."""
    from flowdiff.progress import counting

    if warm:
        denoiser.sample(1, seed=request.seed, **{**request.options(way), "label": None})
    with counting("sampling") as progress:
        began = time.perf_counter()
        samples = denoiser.sample(n, seed=request.seed, progress=progress, **request.options(way)).cpu()
        return samples, time.perf_counter() - began


def _draw(
    data: DataModule, request: Request, n: int, drawn: list[tuple[Way, tuple[Tensor, float]]], out: Path
) -> dict[str, Any]:
    """Draw samples.png or comparison.png; returns the arrays to keep, images as (n, H, W, C) uint8."""
    from flowdiff.evaluation.pictures import plots
    from flowdiff.evaluation.pictures.drawing import points_of

    vectors = len(data.shape) == 1
    shown = {way.name: samples if vectors else data.to_uint8(samples) for way, (samples, _) in drawn}
    points = None
    if vectors:
        data.prepare_data()
        data.setup()
        points = points_of(data)
    if len(drawn) > 1:
        titles = [f"{request.describe(way)}\n{n} samples in {seconds:.2f} s" for way, (_, seconds) in drawn]
        panels = [(title, x[: 2000 if vectors else 64]) for title, x in zip(titles, shown.values(), strict=True)]
        with whole(out / "comparison.png") as path:
            plots.side_by_side(panels, path, columns=8, data=points)
    else:
        (samples,) = shown.values()
        with whole(out / "samples.png") as path:
            if points is not None:
                plots.scatter(samples, points[: len(samples)], path)
            else:
                plots.sample_grid(samples[:100], path, columns=10)
    return {name: (x if vectors else x.permute(0, 2, 3, 1)).numpy() for name, x in shown.items()}


def _log(made_with: dict[str, Any], folder: RunFolder, rows: list[dict[str, Any]]) -> None:
    """Append the rows to the run in its logger, if the run is complete."""
    if not folder.is_complete:
        log.info("%s is not complete yet: its logger does not receive this evaluation", folder.path)
        return
    result = folder.result()
    about = {key: result.get(key) for key in ("run_id", "name", "sweep")}
    tracker = registry.create("logger", made_with["logger"])
    tracker.evaluations(folder.path, {**about, "tags": made_with["tags"]}, rows)


def _folder_name(overrides: list[str]) -> str:
    """A folder name for what was asked: the overrides without the run, or "default"."""
    kept = [o for o in overrides if o.split("=")[0] not in ("run", "out", "evaluate", "device", "batch_size")]
    return slug(" ".join(kept)) or "default"
