"""How well samples obey the hints that they are drawn for."""

from __future__ import annotations

from typing import Any

import torch

from flowdiff.diffusion.model import ConditionedDenoiser
from flowdiff.runs.undefined import NOT_FINITE, Undefined


@torch.no_grad()
def obedience(denoiser: ConditionedDenoiser, n: int, seed: int, **options: Any) -> dict[str, float]:
    """Agreement of the hints of n samples with those that were asked for; {} for a model that reads no hints.

    Args:
        denoiser: the model.
        n: number of samples, ≥ 2.
        seed: their seed.
        **options: further arguments of `ConditionedDenoiser.sample`.

    Returns:
        The mean over the samples of what each hint measures, e.g. edge_f1, and <name>_shuffled: the same between each
        sample and the hint of the next one, which a model that ignores its hints reaches too.
    """
    if denoiser.hinting is None or not denoiser.can_sample:
        return {}
    asked = denoiser.hints(n, options.get("hint"))
    assert asked is not None  # it reads hints
    x = denoiser.sample(n, seed=seed, **options).cpu()
    finite = bool(x.isfinite().all())
    found = denoiser.hinting.of(x.nan_to_num())
    numbers: dict[str, float] = {}
    for suffix, wanted in (("", asked), ("_shuffled", asked.roll(1, 0))):
        for name, values in denoiser.hinting.obeyed(wanted, found).items():
            numbers[name + suffix] = float(values.double().mean()) if finite else Undefined(NOT_FINITE)
    return numbers
