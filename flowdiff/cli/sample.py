"""`python sample.py run=<run folder> …`: sample a finished run, and measure the samples if asked to."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from flowdiff import config, registry
from flowdiff.cli.sentences import hydra_command, run_in_sentences
from flowdiff.errors import ConfigurationError, RunError
from flowdiff.runs.files import whole
from flowdiff.runs.identity import unique_slug
from flowdiff.runs.machine_settings import MOVABLE
from flowdiff.runs.processes import place
from flowdiff.runs.run_folder import RunFolder

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from flowdiff.diffusion.model import ConditionedDenoiser
    from flowdiff.evaluation.evaluate import Request, Way
    from flowdiff.training.assembly import ModelParts

log = logging.getLogger(__name__)


def main() -> None:
    """Entry point of sample.py and `flowdiff sample`."""

    def command() -> None:
        arguments = config.quoted(sys.argv[1:])
        check_out(arguments)
        _claimed.clear()
        with _other_processes():
            for given in one_run_each(arguments):
                arguments, moved = config.without(given, NOT_IN_SAMPLE)
                offer_settings_of_run(arguments, moved)
                hydra_command(partial(run, moved=moved), "sample", swept_together(arguments))

    run_in_sentences(command, "sample")


def _other_processes() -> AbstractContextManager[None]:
    """The group of the processes that torchrun started; detected by the environment, without importing torch."""
    here = place()
    if here.launcher != "torchrun" or here.size == 1:
        return nullcontext()
    if here.rank > 0:
        logging.getLogger("flowdiff").setLevel(logging.WARNING)
    from flowdiff.evaluation import ranks

    return ranks.joined()


def one_run_each(arguments: list[str]) -> list[list[str]]:
    """The command line once for each folder of run=a,b,…, because each run has its own settings to sweep from."""
    for i, override in enumerate(map(config.parsed, arguments)):
        if override is not None and override.key_or_group == "run" and override.is_sweep_override():
            return [[*arguments[:i], one, *arguments[i + 1 :]] for one in config.several(override)]
    return [arguments]


def check_out(arguments: list[str]) -> None:
    """ConfigurationError if several jobs would write their samples into the one folder that out=… names."""
    sweep = any(argument in ("-m", "--multirun") for argument in arguments)
    given = {override.key_or_group: override for override in map(config.parsed, arguments) if override is not None}
    if "out" not in given or "${" in given["out"].get_value_string() or given["out"].value() is None:
        return
    several = [key for key, one in given.items() if (sweep or key == "run") and len(config.several(one)) > 1]
    if several and "out" not in several:
        raise ConfigurationError(
            f"{given['out'].input_line} names one folder for the samples of every {' and '.join(several)}: write "
            f"'out=…/${{{several[-1]}}}' to give each its own, or remove out, so that each is written below its run."
        )


def swept_together(arguments: list[str]) -> list[str]:
    """The command line with each setting of a swept group turned into a sweep too, if only over one value.

    Before it expands a sweep, Hydra composes everything that is not swept; guidance.rescale=0.5 exists only after one
    of guidance=cfg,flow_classifier has been chosen.
    """
    given = [config.parsed(argument) for argument in arguments]
    swept = {override.key_or_group for override in given if override is not None and override.is_sweep_override()}

    def waiting(override: Override) -> bool:
        return "." in override.key_or_group and override.key_or_group.split(".")[0] in swept

    return [
        f"{argument.partition('=')[0]}=choice({override.get_value_string()})"
        if override is not None and waiting(override) and not override.is_sweep_override()
        else argument
        for argument, override in zip(arguments, given, strict=True)
    ]


def offer_settings_of_run(arguments: list[str], moved: Mapping[str, Any] | None = None) -> None:
    """Offer the run's own sampler, schedule, guidance and metrics as the options `of_run`, the defaults of sampling."""
    given = config.setting(arguments, "run")
    if given is None:
        if any(a in ("--help", "-h", "--cfg", "-c") for a in arguments):
            settings = {group: config.defaults(group, name) for group, name in _FALLBACK.items()}
        else:
            raise ConfigurationError(
                "sample.py needs run=<run folder>: give the folder of a training run, e.g. outputs/…."
            )
    else:
        settings = config.of_run(RunFolder.open(given), moved)
    for group in _FALLBACK:
        ConfigStore.instance().store(group=group, name="of_run", node=settings[group])


_claimed: dict[Path, str] = {}  # folders that a job of this command writes, and the job
# The options that --help shows without a run.
_FALLBACK = {"sampler": "ancestral", "schedule": "karras", "guidance": "none", "metrics": "default"}
# Settings of the machine that Hydra cannot read here: sampling has no such groups.
NOT_IN_SAMPLE = [*(key for key in MOVABLE if key.split(".")[0] not in _FALLBACK), "adapter.strength"]
BETWEEN = 3.0  # start=compare denoises a flow sample at σ = sigma_data/BETWEEN, where the noise hides the flow's errors


def run(cfg: DictConfig, moved: Mapping[str, Any]) -> float | None:
    """Draw the samples, write the picture and samples.npz, and with evaluate=true measure them.

    moved: settings of NOT_IN_SAMPLE that are given again for the run.
    """
    for group in _FALLBACK:
        registry.check(group, config.resolved(cfg)[group])
    config.check(cfg)
    settings = config.resolved(cfg)
    folder = RunFolder.open(settings["run"])
    again = [f"adapter.strength={moved['adapter.strength']}"] if "adapter.strength" in moved else []
    name = _folder_name([*HydraConfig.get().overrides.task, *again])
    out = Path(settings["out"] or folder.path / "samples" / name)
    job = f"{folder.path}: {name}"
    if (other := _claimed.setdefault(out.resolve(), job)) != job:
        raise ConfigurationError(
            f"out={out} holds the samples of another job of this command ({other}): give each job its own folder, e.g. "
            "'out=…/${guidance.scale}', or remove out."
        )
    return _sample(settings, folder, out, moved)


def prompts_of(settings: Mapping[str, Any]) -> list[str] | None:
    """The prompts of `prompt`, one text or a list, or those of the file `prompts`, one in each line; None without."""
    prompt, path = settings["prompt"], settings["prompts"]
    if prompt is not None and path is not None:
        raise ConfigurationError("prompt and prompts both say what to draw: give one of them.")
    if path is None:
        return prompt if prompt is None or isinstance(prompt, list) else [prompt]
    try:
        lines = Path(path).expanduser().read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text in UTF-8"
        raise ConfigurationError(
            f"prompts={path} cannot be read ({reason}): give a text file with a prompt in each line."
        ) from error
    found = [line.strip() for line in lines if line.strip()]
    if not found:
        raise ConfigurationError(f"prompts={path} holds no prompt: write one in each line.")
    return found


def _sample(settings: dict[str, Any], folder: RunFolder, out: Path, moved: Mapping[str, Any]) -> float | None:
    from flowdiff.api import tell_cut_words
    from flowdiff.evaluation import ranks
    from flowdiff.evaluation.evaluate import Request, evaluate
    from flowdiff.training.assembly import guide_by, load, load_parts

    if settings["adapters"] and settings["evaluate"]:
        raise ConfigurationError(
            "evaluate=true measures the model of the run itself, without adapters: write the run of their sum by "
            "flowdiff adapter merge, and evaluate that."
        )
    device = _device(settings["device"])
    parts = load_parts(folder.path, device, moved, settings["adapters"])
    ways = [] if settings["start"] == "image" else _ways(settings, parts.denoiser)
    start_model = None
    if (start_run := settings["start_run"]) is not None:
        try:
            start_model = load(start_run, device)
        except RunError as error:
            raise RunError(f"start_run={start_run} cannot give the start: {error}") from error
    prompt = prompts_of(settings)
    tell_cut_words(parts.denoiser, [*(prompt or ()), settings["negative_prompt"] or ""])
    if prompt and settings["num_samples"] < len(prompt):
        raise ConfigurationError(
            f"num_samples={settings['num_samples']} is less than the {len(prompt)} prompts: set num_samples to "
            f"{len(prompt)} or more, so that each is drawn."
        )
    hint = _hint(settings, parts)
    _choose_threads(parts, min(settings["num_samples"], settings["batch_size"]))
    request = Request(
        registry.create("sampler", settings["sampler"]),
        registry.create("schedule", settings["schedule"]),
        guide_by(settings["guidance"], settings["negative_prompt"])(parts.denoiser, start_model),
        settings["class_label"],
        prompt,
        settings["seed"],
        settings["batch_size"],
        settings,
        settings["clip"],
        start_model,
        hint,
    )
    if start_model is not None:
        for way in (way for way in ways if way.start == "flow"):
            sigma = request.schedule.sigma_min if way.sigma_start is None else way.sigma_start
            parts.denoiser.check_start(start_model, way.start, sigma, f"start_run={start_run}")
    if settings["start"] == "image":
        _change(settings, request, parts, out)
        return None
    if settings["measurement"]["name"] != "none":
        _restore(settings, request, parts, out)
        return None
    metrics = None
    if settings["evaluate"]:  # before anything is drawn, in case data are missing
        parts.data.prepare_data()
        parts.data.setup()
        metrics = registry.create("metrics", settings["metrics"], data=parts.data)
        metrics.check_cache()
    if ranks.rank() == 0:
        _show(request, settings["num_samples"], ways, parts, out)
    if metrics is None:
        return None
    made_with = config.of_run(folder, moved)
    return evaluate(
        request, ways, parts.denoiser, metrics, folder, made_with["seed"], lambda rows: _log(made_with, folder, rows)
    )


def _hint(settings: Mapping[str, Any], parts: ModelParts) -> Tensor | None:
    """The hints of the pictures that hint_of names; None without, for those of the run's examples."""
    if settings["hint_of"] is None:
        return None
    import torch

    from flowdiff.evaluation.image_start.reading import read_picture

    if parts.denoiser.hinting is None:
        raise ConfigurationError(
            f"hint_of={settings['hint_of']} is for runs that read hints, and run={settings['run']} reads none: remove "
            "hint_of, or give a run of adapter=control."
        )
    paths = [settings["hint_of"]] if isinstance(settings["hint_of"], str) else settings["hint_of"]
    pictures = torch.stack([read_picture(path, parts.data, "hint_of") for path in paths])
    return parts.denoiser.hinting.of(pictures)


def _change(settings: dict[str, Any], request: Request, parts: ModelParts, out: Path) -> None:
    """Draw samples that begin with a picture, and write them beside it."""
    from flowdiff.evaluation.image_start.command import Source, draw_changed, draw_through

    refused = [key for key in ("measurement", "posterior") if settings[key]["name"] != "none"]
    if settings["evaluate"] or refused:
        given = f"{refused[0]}={settings[refused[0]]['name']}" if refused else "evaluate=true"
        raise ConfigurationError(
            f"{given} does not go with start=image, whose samples are changes of one picture: remove "
            f"{given.split('=')[0]}, or choose another start."
        )
    n, image, strength = settings["num_samples"], settings["image"], float(settings["strength"])
    if settings["through"] == "noise":
        draw_changed(parts.denoiser, parts.data, request, n, image, strength, out)
        return
    source = Source([image] if isinstance(image, str) else image, settings["source_label"], settings["source_prompt"])
    draw_through(parts.denoiser, parts.data, request, n, source, settings["through"], out)


def _restore(settings: dict[str, Any], request: Request, parts: ModelParts, out: Path) -> None:
    """Measure test samples, draw them again, and write the picture, the arrays and what the draws are worth."""
    from flowdiff.evaluation.restoration.command import restore_test_samples

    if settings["start"] not in (None, "noise") or settings["evaluate"]:
        given = "evaluate=true" if settings["evaluate"] else f"start={settings['start']}"
        raise ConfigurationError(
            f"{given} does not go with measurement={settings['measurement']['name']}, which starts from noise and "
            f"measures its own draws: remove {given.split('=')[0]}."
        )
    restore_test_samples(parts.denoiser, parts.data, request, settings["num_samples"], settings["draws"], out)


def _device(asked: str) -> torch.device | str:
    import torch

    from flowdiff.evaluation import ranks

    device = "cuda" if asked == "auto" and torch.cuda.is_available() else "cpu" if asked == "auto" else asked
    return ranks.local_device() if device == "cuda" and ranks.world_size() > 1 else device


def _choose_threads(parts: ModelParts, batch_size: int) -> None:
    """Choose the number of threads for one process on the CPU, from the work of one D."""
    import torch

    from flowdiff.evaluation import ranks
    from flowdiff.training.threads import threads_for

    model = parts.denoiser
    if model.is_autoencoder or model.sigma_data.device.type != "cpu" or ranks.world_size() > 1:
        return

    def compute(n: int) -> object:
        z, sigma = torch.zeros(n, *model.first_stage.latent_shape), torch.ones(n)
        return model.denoiser(z, sigma, model.conditioner.null(n))

    with torch.no_grad():
        threads_for(compute, batch_size)


def _show(request: Request, n: int, ways: list[Way], parts: ModelParts, out: Path) -> None:
    """Draw n samples of each way, timed, into a picture and samples.npz."""
    import numpy as np

    drawn = [_timed(parts.denoiser, way, request, n, warm=len(ways) > 1) for way in ways]
    out.mkdir(parents=True, exist_ok=True)
    for way, (_, seconds) in zip(ways, drawn, strict=True):
        log.info("%d samples in %.2f s (%.0f /s) by %s: %s", n, seconds, n / seconds, request.describe(way), out)
    prompts = parts.denoiser.prompts(n, request.label, request.prompt)
    arrays = _draw(parts, request, n, list(zip(ways, drawn, strict=True)), prompts or [], out)
    if prompts is not None:
        arrays["prompts"] = np.array(prompts)
    with whole(out / "samples.npz") as path, path.open("wb") as file:
        np.savez_compressed(file, **arrays)


def _ways(settings: dict[str, Any], denoiser: ConditionedDenoiser) -> list[Way]:
    from flowdiff.evaluation.evaluate import Way

    if denoiser.is_autoencoder:
        if settings["start"] not in (None, "noise"):
            raise ConfigurationError(
                f"start={settings['start']} makes no sense for an autoencoder, which samples its prior: remove start."
            )
        return [Way("arr_0", "prior", None)]
    if settings["start"] != "compare":
        return [Way("arr_0", *denoiser.begins(settings["start"], settings["sigma_start"]))]
    between = settings["sigma_start"] or float(denoiser.sigma_data) / BETWEEN
    return [Way("flow", "flow", None), Way("denoised", "flow", between), Way("diffusion", "noise", None)]


def _timed(denoiser: ConditionedDenoiser, way: Way, request: Request, n: int, warm: bool) -> tuple[Tensor, float]:
    """n samples on the CPU, and their seconds; warm: draw one sample first, so that set-up costs are not counted."""
    from flowdiff.progress import counting

    if warm:
        denoiser.sample(1, seed=request.seed, **{**request.options(way), "label": None, "prompt": None})
    with counting("sampling") as progress:
        began = time.perf_counter()
        samples = denoiser.sample(n, seed=request.seed, progress=progress, **request.options(way)).cpu()
        return samples, time.perf_counter() - began


def _draw(
    parts: ModelParts,
    request: Request,
    n: int,
    drawn: list[tuple[Way, tuple[Tensor, float]]],
    texts: list[str],
    out: Path,
) -> dict[str, Any]:
    """Draw samples.png or comparison.png; returns the arrays to keep, images as (n, H, W, C) uint8.

    texts: the prompt of each sample, for the metadata of the picture; empty for a model without text.
    """
    from flowdiff.evaluation.pictures import plots
    from flowdiff.evaluation.pictures.drawing import draw_beside_hints, points_of

    data, vectors = parts.data, len(parts.data.shape) == 1
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
            plots.side_by_side(panels, path, columns=8, data=points, prompts=texts[:64])
    else:
        (samples,) = shown.values()
        with whole(out / "samples.png") as path:
            if points is not None:
                plots.scatter(samples, points[: len(samples)], path)
            elif parts.denoiser.hinting is not None:
                draw_beside_hints(parts.denoiser, parts.denoiser.hints(n, request.hint), samples, path, texts)
            else:
                _draw_grid(samples, request.prompt, texts, path)
    return {name: (x if vectors else x.permute(0, 2, 3, 1)).numpy() for name, x in shown.items()}


def _draw_grid(samples: Tensor, prompts: Sequence[str] | None, texts: Sequence[str], path: Path) -> None:
    """Up to 100 samples, ten in a row; with several prompts a row for each of up to 20, which it is named after.

    texts: the prompt of each sample.
    """
    import torch

    from flowdiff.evaluation.pictures import plots

    if not prompts:
        plots.sample_grid(samples[:100], path, columns=10, prompts=texts[:100])
    elif len(prompts) == 1:
        plots.sample_grid(samples[:100], path, columns=10, title=prompts[0], prompts=prompts)
    else:
        rows, columns = min(len(prompts), len(samples), 20), min(10, -(-len(samples) // len(prompts)))
        kept = [samples[row :: len(prompts)][:columns] for row in range(rows)]
        empty = samples.new_zeros(1, *samples.shape[1:])
        full = [torch.cat([part, *[empty] * (columns - len(part))]) for part in kept]
        labels = list(prompts[:rows])
        plots.sample_grid(torch.cat(full), path, columns=columns, row_labels=labels, prompts=labels)


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
    return unique_slug(kept) or "default"
