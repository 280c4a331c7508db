"""`python sample.py run=<run folder> start=image image=a.png strength=0.6`: samples that begin with a picture."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import torch

from flowdiff.data.base import DataModule
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.errors import ConfigurationError
from flowdiff.evaluation.evaluate import Request
from flowdiff.evaluation.image_start.reading import read_picture
from flowdiff.evaluation.pictures import plots
from flowdiff.progress import counting
from flowdiff.runs.files import whole

log = logging.getLogger(__name__)

COLUMNS = 10  # pictures in a row of samples.png; the first of all is the picture that was given
SHOWN = 99  # samples in the picture, at most


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
