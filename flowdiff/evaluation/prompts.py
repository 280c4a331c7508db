"""Whether samples show what their prompts ask for, as a classifier of the data's attributes sees it.

The classifier is trained on the training split. Its own accuracy on real pictures of the same prompts is the floor.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import get_args

import torch
from torch import Tensor

from flowdiff.data.attributes import AttributedData, Part
from flowdiff.evaluation.features.small_cnn import SmallCNN

PROMPTS = 500  # of each part: the standard error of an accuracy is at most 2.2 %


def prompt_accuracy(
    draw: Callable[[list[str]], Tensor], data: AttributedData, judge: SmallCNN, seed: int
) -> dict[str, float]:
    """The shares of samples that show everything, and each attribute, that their prompts ask for.

    Args:
        draw: prompts → a sample of each in model space, (n, …).
        data: the data set.
        judge: the classifier of the data's attributes.
        seed: seed of the prompts.

    Returns:
        {"prompts_<part>": share of samples with every attribute right, "prompts_<part>_<attribute>": of one attribute},
        for each part, seen and held_out, and the same of real pictures, with _floor.
    """
    found: dict[str, float] = {}
    for part in get_args(Part):
        asked = data.ask(part, PROMPTS, seed)
        drawn, real = draw(asked.prompts).cpu(), data.centre(asked.x)
        for x, suffix in ((drawn, ""), (real, "_floor")):
            right = _right(judge, data, x, asked.attributes)
            everything = torch.stack(list(right.values())).all(0)
            for name, hits in {"": everything, **{f"_{name}": hits for name, hits in right.items()}}.items():
                found[f"prompts_{part}{name}{suffix}"] = hits.double().mean().item()
    return found


@torch.no_grad()
def _right(judge: SmallCNN, data: AttributedData, x: Tensor, attributes: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """{attribute: whether its highest score of each picture x (n, …) is that of the right value, (n,) bool}."""
    scores = judge.scores(data.quantize(x.float()))
    return {name: scores[name].argmax(1) == value for name, value in attributes.items()}
