"""flowdiff from Python: what the command line does goes through the same functions."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from flowdiff import config, registry
from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.errors import ConfigurationError, RunError, nearest
from flowdiff.runs.run_folder import RunFolder
from flowdiff.training.assembly import Parts, assemble

if TYPE_CHECKING:
    from flowdiff.training.engine import Engine


def build(*overrides: str) -> Engine:
    """The untrained engine of a configuration, e.g. build("flow=realnvp", "dataset=digits").

    Has `.denoiser`, `.denoiser.network`, `.conditioner`, `.data`; `.measure()` reads the data and sets sigma_data and
    the whitening's statistics, as training does first. Raises ConfigurationError with the command line's sentences.
    """
    from flowdiff.training.engine import Engine  # which needs Lightning; what has been trained does not

    composed = config.compose(overrides)
    config.check(composed)
    return Engine.of(config.resolved(composed))


def load(run: str | Path, device: torch.device | str = "cpu") -> ConditionedDenoiser:
    """The trained denoiser of a run folder, with its averaged weights, in eval mode; RunError if there is none."""
    return load_parts(run, device).denoiser


def load_parts(run: str | Path, device: torch.device | str = "cpu") -> Parts:
    """The trained denoiser of a run folder, what trained it, and the data it was trained on (not read yet)."""
    folder = RunFolder.open(run)
    parts = assemble(config.of_run(folder))
    if not folder.checkpoint.is_file():
        raise RunError(f"run={run} has no checkpoint {folder.checkpoint.name} yet: let it train first.")
    try:
        checkpoint = torch.load(folder.checkpoint, map_location="cpu", weights_only=True)
        weights = {key.removeprefix("denoiser."): value for key, value in checkpoint["state_dict"].items()}
        parts.denoiser.load_state_dict(weights)
        parts.denoiser.levels_file = folder.path / f"levels_of_step_{checkpoint['global_step']}.json"
    except Exception as error:
        reason = str(error).splitlines()[0].split(". ")[0].rstrip(":")
        raise RunError(
            f"{folder.checkpoint} is not a checkpoint of this run's configuration ({reason}): give the folder of a "
            "run made by this version of flowdiff."
        ) from error
    parts.denoiser.to(device).eval().requires_grad_(False)
    return parts


def sample(
    denoiser: ConditionedDenoiser,
    n: int,
    *,
    sampler: str | None = None,
    schedule: str | None = None,
    guidance: str | None = None,
    label: int | Sequence[int] | None = None,
    seed: int = 0,
    start: str = "noise",
    sigma_start: float | None = None,
    batch_size: int = 512,
    **settings: Any,
) -> Tensor:
    """n samples in model space, (n, *shape): images in [-1, 1].

    sampler, schedule, guidance: names of conf/ options, by default what the run was configured with; further keywords
    are their hyperparameters, e.g. sample(denoiser, 16, sampler="heun", num_steps=18, guidance="cfg", scale=2.0).
    label: a class, one per sample, or None for every class in turn. Sample i of a seed does not depend on batch_size.
    Raises ConfigurationError for a name or keyword that does not exist.
    """
    nodes, left = {}, dict(settings)
    for group, name in (("sampler", sampler), ("schedule", schedule), ("guidance", guidance)):
        node = dict(denoiser.settings[group] if name is None else config.defaults(group, name))
        node.update({key: left.pop(key) for key in list(left) if key in node and key != "name"})
        nodes[group] = node
    if left:
        key, allowed = next(iter(left)), [k for node in nodes.values() for k in node if k != "name"]
        raise ConfigurationError(f"{key} is not a setting of sampling: {nearest(key, allowed)}.")
    return denoiser.sample(
        n,
        label=label,
        seed=seed,
        sampler=registry.create("sampler", nodes["sampler"]),
        schedule=registry.create("schedule", nodes["schedule"]),
        guidance=partial(ConditionedDenoiser.guided, node=nodes["guidance"]),
        start=start,
        sigma_start=sigma_start,
        batch_size=batch_size,
    )
