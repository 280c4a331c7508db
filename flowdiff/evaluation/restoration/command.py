"""`python sample.py run=<run folder> measurement=… posterior=…`: test samples measured, restored and shown."""

from __future__ import annotations

import logging
from pathlib import Path

import torch

from flowdiff.data.base import DataModule
from flowdiff.data.readers import evenly
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.diffusion.posteriors import Drawing
from flowdiff.errors import ConfigurationError
from flowdiff.evaluation.evaluate import Request
from flowdiff.evaluation.restoration.files import write
from flowdiff.evaluation.restoration.restore import restore, rows_of
from flowdiff.noise import generators
from flowdiff.progress import counting
from flowdiff.registry import create
from flowdiff.runs.result_table import show_rows

log = logging.getLogger(__name__)


@torch.no_grad()
def restore_test_samples(
    model: ConditionedDenoiser, data: DataModule, request: Request, n: int, draws: int, out: Path
) -> None:
    """Measure n test samples, draw each again from its posterior, print what the draws are worth and write the files.

    A model of classes, or of captions, is told those of the test sample, unless others were asked for.

    Raises:
        ConfigurationError: the measurement does not fit the samples, or the posterior the model.
    """
    settings = {group: request.settings[group] for group in ("measurement", "posterior")}
    measurement = create("measurement", settings["measurement"], shape=data.shape)
    posterior = create("posterior", settings["posterior"], measurement=measurement, sigma_data=float(model.sigma_data))
    posterior.check(model, request.guidance)
    data.prepare_data()
    data.setup()
    if n > len(data.test):
        raise ConfigurationError(
            f"num_samples={n} is more than the {len(data.test)} test samples of {data.name}: set num_samples to "
            f"{len(data.test)} or less."
        )
    chosen = evenly(len(data.test), n)
    batch = data.test[chosen]
    truth = data.dequantize(batch.x, generators(request.seed, chosen.tolist()))
    labels = batch.label.tolist() if model.num_classes is not None else None
    if request.label is not None:
        asked = model.labels(n, request.label)
        labels = None if asked is None else asked.tolist()
    prompts = [texts[0] for texts in batch.captions] if batch.captions and model.conditioner.reads_text else None
    if request.prompt is not None:
        prompts = model.prompts(n, request.label, request.prompt)
    with counting("restoring") as progress:
        drawing = Drawing(
            draws,
            request.seed,
            labels,
            prompts,
            request.sampler,
            request.schedule,
            request.guidance,
            request.clip,
            request.batch_size,
            progress,
        )
        found = restore(model, measurement, posterior, truth, drawing)
    names = f"{settings['measurement']['name']} by {settings['posterior']['name']}"
    title = f"{names}: {measurement.describe()}"
    write(found, data, title, out)
    show_rows(f"{title}, {n} test samples, {draws} draws", rows_of(found.numbers()))
    log.info("restored.png, restored.npz and restored.json are in %s", out)
