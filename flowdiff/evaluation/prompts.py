"""Whether samples show what their prompts ask for, as a classifier of the data's attributes sees it.

The classifier is trained on the training split. Its own accuracy on real pictures of the same prompts is the floor.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor
from torch.nn import functional

from flowdiff.data.attributes import AttributedData, Part
from flowdiff.digests import digest
from flowdiff.evaluation.features.cache import cached
from flowdiff.evaluation.features.small_cnn import TRAINING, SmallCNN, train_cnn

log = logging.getLogger(__name__)

PROMPTS = 500  # of each part: the standard error of an accuracy is at most 2.2 %


def prompt_accuracy(
    draw: Callable[[list[str]], Tensor], data: AttributedData, cache_dir: Path, seed: int, batch_size: int
) -> dict[str, float]:
    """The shares of samples that show everything, and each attribute, that their prompts ask for.

    Args:
        draw: prompts → a sample of each in model space, (n, …).
        data: the data set.
        cache_dir: folder that keeps the classifier.
        seed: seed of the prompts.
        batch_size: samples that are classified at a time.

    Returns:
        {"prompts_<part>": share of samples with every attribute right, "prompts_<part>_<attribute>": of one attribute},
        for each part, seen and held_out, and the same of real pictures, with _floor.
    """
    judge = attribute_judge(data, cache_dir)
    found: dict[str, float] = {}
    for part in get_args(Part):
        asked = data.ask(part, PROMPTS, seed)
        drawn, real = draw(asked.prompts).cpu(), data.centre(asked.x)
        for x, suffix in ((drawn, ""), (real, "_floor")):
            scores = torch.cat([_scores(judge, data, rows) for rows in x.split(batch_size)])
            right = _right(scores, asked.attributes, data.attribute_sizes)
            everything = torch.stack(list(right.values())).all(0)
            for name, hits in {"": everything, **{f"_{name}": hits for name, hits in right.items()}}.items():
                found[f"prompts_{part}{name}{suffix}"] = hits.double().mean().item()
    return found


@torch.no_grad()
def _scores(judge: SmallCNN, data: AttributedData, x: Tensor) -> Tensor:
    return judge.logits(data.quantize(x.float()))


def _right(scores: Tensor, attributes: Mapping[str, Tensor], sizes: Mapping[str, int]) -> dict[str, Tensor]:
    """{attribute: whether its highest score is that of the right value, (n,) bool}."""
    parts = dict(zip(sizes, scores.split(list(sizes.values()), dim=1), strict=True))
    return {name: parts[name].argmax(1) == value for name, value in attributes.items()}


def attribute_judge(data: AttributedData, cache_dir: Path) -> SmallCNN:
    """A SmallCNN with a score for each value of each attribute, trained deterministically or read from the cache."""
    sizes = data.attribute_sizes
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(TRAINING["seed"]))
        model = SmallCNN(f"{data.name}_attributes", data.shape, sum(sizes.values()))

    def loss(indices: Tensor) -> Tensor:
        scores = model.logits(data.centre(data.train[indices].x)).split(list(sizes.values()), dim=1)
        values = data.attributes(indices)
        losses = [
            functional.cross_entropy(part, values[name], label_smoothing=TRAINING["label_smoothing"])
            for name, part in zip(sizes, scores, strict=True)
        ]
        return torch.stack(losses).sum()

    def make() -> dict[str, Any]:
        log.info("Training the classifier %s once; it is kept in %s.", model.name, cache_dir)
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
            train_cnn(model, data, loss)
        return {"weights": model.state_dict()}

    key = digest(TRAINING, repr(model), dict(sizes), data.train.fingerprint())
    saved = cached(cache_dir / "extractors" / f"{model.name}-{key}.pt", make)
    model.load_state_dict(saved["weights"])
    return model.eval().requires_grad_(False)
