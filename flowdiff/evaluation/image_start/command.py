"""`python sample.py run=<run folder> start=image image=a.png strength=0.6`: samples that begin with a picture."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from flowdiff.data.base import DataModule
from flowdiff.diffusion.inversion import Through, inversion_of
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.errors import ConfigurationError
from flowdiff.evaluation.evaluate import Request
from flowdiff.evaluation.image_start.points import between, changed, reconstruction_error
from flowdiff.evaluation.image_start.reading import read_picture
from flowdiff.evaluation.pictures import plots
from flowdiff.models.conditioning import Conditioning
from flowdiff.noise import generators
from flowdiff.progress import counting
from flowdiff.runs.files import whole

log = logging.getLogger(__name__)

COLUMNS = 10  # pictures in a row of samples.png; the first of all is the picture that was given
SHOWN = 99  # samples in the picture, at most
POINTS = 9  # samples on the way between two pictures, at most


@torch.no_grad()
def draw_changed(
    model: ConditionedDenoiser,
    data: DataModule,
    request: Request,
    n: int,
    image: str,
    strength: float,
    out: Path,
) -> None:
    """Draw n samples that begin with a picture, into samples.png, whose first picture it is, and samples.npz.

    Raises:
        ConfigurationError: the picture cannot be read, or the model cannot begin with one.
    """
    if model.is_autoencoder:
        raise ConfigurationError(
            "start=image makes no sense for an autoencoder, which samples its prior: remove start and image."
        )
    x0 = read_picture(image, data)
    with counting("sampling") as progress:
        samples = model.sample(
            n,
            label=request.label,
            prompt=request.prompt,
            seed=request.seed,
            sampler=request.sampler,
            schedule=request.schedule,
            guidance=request.guidance,
            start="image",
            clip=request.clip,
            batch_size=request.batch_size,
            progress=progress,
            image=x0,
            strength=strength,
        )
    pictures = data.to_uint8(torch.cat([x0[None], samples.cpu()]))
    out.mkdir(parents=True, exist_ok=True)
    title = f"{Path(image).name}, and samples that begin with it at strength {strength:g}"
    prompts = model.prompts(n, request.label, request.prompt) or []
    with whole(out / "samples.png") as path:
        plots.sample_grid(pictures[: SHOWN + 1], path, columns=COLUMNS, title=title, prompts=prompts[:SHOWN])
    with whole(out / "samples.npz") as path, path.open("wb") as file:
        np.savez_compressed(file, arr_0=pictures[1:].permute(0, 2, 3, 1).numpy())
    log.info("%d samples that begin with %s at strength %g: %s", n, image, strength, out)


@dataclass(frozen=True)
class Source:
    """The pictures that samples are made of, one or two, and the conditions at which they are encoded."""

    images: list[str]
    label: int | list[int] | None
    prompt: str | list[str] | None


def draw_through(
    model: ConditionedDenoiser,
    data: DataModule,
    request: Request,
    n: int,
    source: Source,
    through: Through,
    out: Path,
) -> None:
    """Change a picture, or draw the way between two, by the points that they are images of; nothing is random.

    Of one picture there is a sample for each class or prompt that is asked for, by default each class; between two
    there are POINTS. samples.png shows the pictures first; reconstruction.json holds the error of encoding and decoding
    them.

    Raises:
        ConfigurationError: a picture cannot be read, the model cannot be inverted so, or it is not said at which class
            or prompt the pictures are encoded.
    """
    schedule, steps = request.schedule, request.sampler.num_steps
    inversion = inversion_of(model, through, steps, schedule)
    x = torch.stack([read_picture(path, data) for path in source.images])
    z0 = model.first_stage.encode(x.to(model.sigma_data), generators(request.seed, list(range(len(x)))))
    encoded_at = _source_conditions(model, source, request)
    if len(x) == 2:
        n = min(n, POINTS)
        target = _conditions_between(model, source, request, n)
        samples = between(inversion, z0, encoded_at, target, n)
    else:
        label, prompt = _asked(model, request)
        n = min(n, len(label or prompt or [None]))
        target = model.conditions(n, label and label[:n], prompt and prompt[:n], request.hint)(range(n))
        rows = torch.zeros(n, dtype=torch.int64)
        samples = changed(inversion, z0[rows], None if encoded_at is None else encoded_at[rows], target)
    errors = {through: float(reconstruction_error(inversion, z0, encoded_at).mean())}
    if through == "z":
        errors["ddim"] = float(
            reconstruction_error(inversion_of(model, "ddim", steps, schedule), z0, encoded_at).mean()
        )
    pictures = data.to_uint8(torch.cat([x, model.first_stage.decode(samples).cpu()]))
    out.mkdir(parents=True, exist_ok=True)
    names = " and ".join(Path(path).name for path in source.images)
    title = f"{names}, and {'the way between them' if len(x) == 2 else 'what becomes of it'} through {through}"
    with whole(out / "samples.png") as path:
        plots.sample_grid(pictures[: SHOWN + 1], path, columns=COLUMNS + (len(x) == 2), title=title)
    with whole(out / "samples.npz") as path, path.open("wb") as file:
        np.savez_compressed(file, arr_0=pictures[len(x) :].permute(0, 2, 3, 1).numpy())
    with whole(out / "reconstruction.json") as path:
        path.write_text(json.dumps({"num_steps": steps, **errors}, indent=2), encoding="utf-8")
    told = ", ".join(f"{name} {error:.3g}" for name, error in errors.items())
    log.info("error of encoding and decoding, root mean square (ddim in %d steps): %s", steps, told)
    log.info("%d samples of %s through %s: %s", n, names, through, out)


def _source_conditions(model: ConditionedDenoiser, source: Source, request: Request) -> Conditioning | None:
    """The condition at which each picture is encoded."""
    n = len(source.images)
    if model.conditioner.reads_text and source.prompt is None:
        raise ConfigurationError(
            "source_prompt is missing: this model reads text, so say what the picture shows, source_prompt='…'."
        )
    if model.num_classes is not None and not model.conditioner.reads_text and source.label is None:
        raise ConfigurationError(
            "source_label is missing: this model has classes, so say which class the picture shows, source_label=…."
        )
    return model.conditions(n, source.label, source.prompt, request.hint)(range(n))


def _asked(model: ConditionedDenoiser, request: Request) -> tuple[list[int] | None, list[str] | None]:
    """The classes and the prompts that one picture is changed to, each once; None for a model without."""
    label = [request.label] if isinstance(request.label, int) else request.label
    prompt = [request.prompt] if isinstance(request.prompt, str) else request.prompt
    if model.conditioner.reads_text:
        return label, prompt or list(model.conditioner.examples()[:COLUMNS])
    if model.num_classes is not None and label is None:
        label = list(range(model.num_classes))
    return label, prompt


def _conditions_between(model: ConditionedDenoiser, source: Source, request: Request, n: int) -> Conditioning | None:
    """The conditions on the way: those asked for, or those of the first picture up to the middle, then the second's."""
    label, prompt = request.label, request.prompt
    first = (n + 1) // 2
    if label is None and source.label is not None:
        ends = source.label if isinstance(source.label, list) else [source.label] * 2
        label = [ends[0]] * first + [ends[1]] * (n - first)
    if prompt is None and source.prompt is not None:
        texts = source.prompt if isinstance(source.prompt, list) else [source.prompt] * 2
        prompt = [texts[0]] * first + [texts[1]] * (n - first)
    return model.conditions(n, label, prompt, request.hint)(range(n))
