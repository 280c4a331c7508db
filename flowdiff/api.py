"""flowdiff from Python. The command line uses the same functions."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowdiff import config
from flowdiff.diffusion.inversion import Through, inversion_of
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.diffusion.posteriors import Drawing
from flowdiff.diffusion.samplers.clipping import Clip
from flowdiff.errors import ConfigurationError, nearest
from flowdiff.evaluation.image_start import points
from flowdiff.evaluation.restoration.restore import Restoration
from flowdiff.evaluation.restoration.restore import restore as restore_samples
from flowdiff.export.hub import located
from flowdiff.models.conditioning import Conditioning
from flowdiff.registry import completed, create
from flowdiff.training import assembly
from flowdiff.training.assembly import guide_by

if TYPE_CHECKING:
    from flowdiff.training.engine import Engine

__all__ = ["between", "build", "change", "load", "restore", "sample"]

log = logging.getLogger(__name__)

Shown = int | str | Sequence[int] | Sequence[str] | None
"""What samples show: a class or a prompt, or one for each sample; None for a model without conditions."""


def build(*overrides: str) -> Engine:
    """The untrained engine of a configuration, e.g. build("flow=realnvp", "dataset=digits").

    It has `.denoiser`, `.denoiser.network`, `.conditioner` and `.data`; `.measure()` reads the data and sets sigma_data
    and the whitening's statistics, which is the first thing that training does.

    Args:
        *overrides: what would follow `python train.py`.

    Raises:
        ConfigurationError: the configuration does not work, in the sentences of the command line.
    """
    from flowdiff.training.engine import Engine  # imports Lightning, which only training needs

    composed = config.compose(overrides)
    config.check(composed, overrides)
    return Engine.of(config.resolved(composed))


def load(
    run: str | Path,
    device: torch.device | str = "cpu",
    moved: Mapping[str, Any] | None = None,
    adapters: Sequence[Mapping[str, Any]] = (),
) -> ConditionedDenoiser:
    """The trained model of a run with its averaged weights, in eval mode.

    The changes of an adapter are added to the weights of its base, W = W₀ + ΔW, and those of several adapters too,
    W = W₀ + Σ wᵢ·ΔWᵢ.

    Args:
        run: a run folder, a folder that `flowdiff export` wrote, or such a folder on the Hugging Face hub:
            "hub:user/name", behind which @ and a revision may stand.
        device: where to put the model.
        moved: paths that are not where the run recorded them, e.g. {"first_stage.run": "vae", "dataset.path": "data"}.
        adapters: adapters of this run with their weights, [{"run": folder, "weight": 0.7}, …]; a folder is that of a
            run, or of files of peft; without a weight it is 1.

    Raises:
        RunError: there is no trained model, or it cannot be downloaded.
    """
    return assembly.load(located(run), device, moved, adapters)


def sample(
    denoiser: ConditionedDenoiser,
    n: int,
    *,
    sampler: str | None = None,
    schedule: str | None = None,
    guidance: str | None = None,
    label: int | Sequence[int] | None = None,
    prompt: str | Sequence[str] | None = None,
    negative_prompt: str | None = None,
    seed: int = 0,
    start: str | None = None,
    sigma_start: float | None = None,
    start_model: ConditionedDenoiser | None = None,
    clip: Clip | None = None,
    batch_size: int = 512,
    image: Tensor | None = None,
    strength: float = 0.6,
    hint: Tensor | None = None,
    **settings: Any,
) -> Tensor:
    """n samples in data space, (n, *shape): images in [-1, 1]. Sample i of a seed does not depend on batch_size.

    Args:
        denoiser: a model from `load`.
        n: number of samples.
        sampler: name of an option in conf/sampler; the run's own sampler by default.
        schedule: name of an option in conf/schedule; the run's own schedule by default.
        guidance: name of an option in conf/guidance; the run's own guidance by default.
        label: one class, one class per sample, or None: every class in turn.
        prompt: one text, or several, which are taken in turn; None: examples of the training captions.
        negative_prompt: what guidance="cfg" leads away from, in place of the empty caption.
        seed: seed of all random numbers.
        start: noise, flow: an exact sample of the density at sigma_start, or image; as the run does by default.
        sigma_start: noise level in data units at which start=flow begins; None for the schedule's smallest.
        start_model: start=flow: the model of a flow of the same data, from `load`, whose exact samples this denoiser
            begins with; by default its own.
        clip: whether D is kept in the range of the data: auto, True or False; as the run does by default.
        batch_size: samples per batch.
        image: start="image": what all samples begin with, in data space, (*shape).
        strength: start="image": how far it is noised, more than 0 and at most 1, which leaves nothing of it.
        hint: of a model that reads hints, the hints (m, C, H, W) in [-1, 1] that samples obey, in turn; of pictures x
            they are `denoiser.hinting.of(x)`; None: those of its examples, test images.
        **settings: hyperparameters of the three, e.g. sample(denoiser, 16, sampler="heun", num_steps=18,
            guidance="cfg", scale=2.0).

    Raises:
        ConfigurationError: a name or a setting does not exist, or does not fit the model.
    """
    tell_cut_words(denoiser, [*([prompt] if isinstance(prompt, str) else prompt or ()), negative_prompt or ""])
    nodes, left = {}, dict(settings)
    for group, name in (("sampler", sampler), ("schedule", schedule), ("guidance", guidance)):
        node = dict(denoiser.sampling.settings[group] if name is None else config.defaults(group, name))
        node.update({key: left.pop(key) for key in list(left) if key in node and key != "name"})
        nodes[group] = node
    if left:
        key, allowed = next(iter(left)), [k for node in nodes.values() for k in node if k != "name"]
        raise ConfigurationError(f"{key} is not a setting of sampling: {nearest(key, allowed)}.")
    return denoiser.sample(
        n,
        label=label,
        prompt=prompt,
        seed=seed,
        sampler=create("sampler", nodes["sampler"]),
        schedule=create("schedule", nodes["schedule"]),
        guidance=guide_by(nodes["guidance"], negative_prompt)(denoiser, start_model),
        start=start,
        sigma_start=sigma_start,
        start_model=start_model,
        clip=clip,
        batch_size=batch_size,
        image=image,
        strength=strength,
        hint=hint,
    )


@torch.no_grad()
def restore(
    denoiser: ConditionedDenoiser,
    x: Tensor,
    measurement: str | Mapping[str, Any],
    posterior: str | Mapping[str, Any] = "mmps",
    *,
    draws: int = 19,
    label: Sequence[int] | None = None,
    prompt: Sequence[str] | None = None,
    seed: int = 0,
    clip: Clip | None = None,
    batch_size: int = 512,
) -> Restoration:
    """Measure samples x and draw them again from the posterior of what was measured.

    It samples by the run's own sampler and schedule. The result has the measurements, the draws, their mean and
    standard deviation, and `numbers()`, which says what they are worth.

    Args:
        denoiser: a model from `load`.
        x: samples in data space, (N, *shape).
        measurement: name of an option in conf/measurement, or its settings, e.g. {"name": "inpaint", "mask": "top"};
            settings that are left out are the option's own.
        posterior: name of an option in conf/posterior, or its settings.
        draws: draws of each sample, ≥ 1.
        label: the class of each sample, (N,), for a model of classes.
        prompt: the text of each sample, for a model of captions.
        seed: seed of all random numbers.
        clip: whether D is kept in the range of the data: auto, True or False; as the run does by default.
        batch_size: samples per batch.

    Raises:
        ConfigurationError: a name or a setting does not exist, or does not fit the model.
    """
    operator, method = (
        completed(group, {"name": given} if isinstance(given, str) else given)
        for group, given in (("measurement", measurement), ("posterior", posterior))
    )
    made = create("measurement", operator, shape=denoiser.first_stage.latent_shape)
    by = create("posterior", method, measurement=made, sigma_data=float(denoiser.sigma_data))
    drawing = Drawing(draws, seed, label, prompt, clip=clip, batch_size=batch_size)
    return restore_samples(denoiser, made, by, x, drawing)


def change(
    denoiser: ConditionedDenoiser,
    x: Tensor,
    *,
    source: Shown,
    target: Shown,
    through: Through = "z",
    num_steps: int = 50,
) -> Tensor:
    """Samples x encoded at one condition and decoded at another, (N, *shape); nothing is random.

    With source = target they come back: exactly through "z", up to the steps of the ODE through "ddim".

    Args:
        denoiser: a model from `load`, in data space.
        x: samples, (N, *shape).
        source: what they show: a class, or a prompt, or one for each; None for a model without conditions.
        target: what they are to show, in the same form.
        through: z, the base points of a flow, or ddim, the probability-flow ODE of any denoiser.
        num_steps: Euler's steps of ddim.

    Raises:
        ConfigurationError: the model is no flow, works in latents, or does not know the conditions.
    """
    inversion = inversion_of(denoiser, through, num_steps)
    _check_data_space(denoiser)
    conditions = (_conditions(denoiser, len(x), given) for given in (source, target))
    return points.changed(inversion, x.to(denoiser.sigma_data), *conditions)


def between(
    denoiser: ConditionedDenoiser,
    a: Tensor,
    b: Tensor,
    count: int = 9,
    *,
    condition: int | str | None = None,
    through: Through = "z",
    num_steps: int = 50,
) -> Tensor:
    """`count` samples on the way between two, on the great circle of their points, (count, *shape).

    Args:
        denoiser: a model from `load`, in data space.
        a: the first sample, (*shape).
        b: the last sample.
        count: ≥ 2, with both ends.
        condition: the class or the prompt of all of them; None for a model without conditions.
        through: as of `change`.
        num_steps: as of `change`.
    """
    inversion = inversion_of(denoiser, through, num_steps)
    _check_data_space(denoiser)
    ends = torch.stack([a, b]).to(denoiser.sigma_data)
    source, target = (_conditions(denoiser, n, condition) for n in (2, count))
    return points.between(inversion, ends, source, target, count)


def _check_data_space(denoiser: ConditionedDenoiser) -> None:
    if not denoiser.first_stage.is_identity:
        raise ConfigurationError(
            "this model works in the latents of an autoencoder: encode the samples by denoiser.first_stage, and use "
            "flowdiff.evaluation.image_start.points."
        )


def _conditions(denoiser: ConditionedDenoiser, n: int, given: Shown) -> Conditioning | None:
    """The conditions of n samples by their classes or prompts."""
    if isinstance(given, str):
        return denoiser.conditions(n, prompt=given)(range(n))
    if given is None or isinstance(given, int):
        return denoiser.conditions(n, label=given)(range(n))
    prompts = [one for one in given if isinstance(one, str)]
    if prompts:
        return denoiser.conditions(n, prompt=prompts)(range(n))
    return denoiser.conditions(n, label=[one for one in given if isinstance(one, int)])(range(n))


def tell_cut_words(denoiser: ConditionedDenoiser, prompts: Iterable[str]) -> None:
    """Say which words of each prompt are left out because the prompt is longer than the model reads."""
    for text in dict.fromkeys(prompts):
        if cut := denoiser.conditioner.cut(text):
            log.warning("a prompt is longer than the model reads; these words are left out: %s", cut)
