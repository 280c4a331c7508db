"""Features of images with classes or attributes: a small classifier, trained on the training split and kept on disk.

Real and generated images are both snapped to the data's grey levels first, so that neither dequantisation noise nor
out-of-range pixels tell them apart.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowdiff.data.attributes import AttributedData
from flowdiff.data.base import DataModule
from flowdiff.data.readers import split_batches
from flowdiff.digests import digest
from flowdiff.evaluation.features.cache import cached
from flowdiff.evaluation.features.extractor import Extractor

log = logging.getLogger(__name__)


class SmallCNN(Extractor):
    """Strided convolutions and a hidden layer, whose output is φ(x), followed by a linear classifier of each attribute.

    All nonlinearities are SiLU, so φ is smooth. Batch normalisation is a fixed affine map after training, so features
    keep the contrast of an image. Use `trained_cnn`: untrained features mean nothing.

    Args:
        name: the name of the extractor.
        shape: shape of one image, (C, H, W).
        sizes: {attribute: number of its values, ≥ 1}; the first one is the class, and may be all.
    """

    def __init__(self, name: str, shape: tuple[int, ...], sizes: Mapping[str, int]) -> None:
        super().__init__()
        self.name = name
        self.sizes = dict(sizes)
        self.num_features = 64
        self.accuracy = None
        self.weight_hash = "untrained"
        channels, *sides = shape
        halvings = max(2, math.ceil(math.log2(max(sides) / 4)))  # until the map is 4 × 4, or 2 × 2 for 8 × 8 images
        blocks: list[nn.Module] = []
        for index in range(halvings + 1):
            width, stride = min(32 * 2**index, 128), 1 if index == 0 else 2
            blocks += [
                nn.Conv2d(channels, width, 3, stride, padding=1, bias=False),
                nn.BatchNorm2d(width),
                nn.SiLU(),
            ]
            channels = width
        # 2 × 2 means of the last map keep a rough position of its features.
        self.maps = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.hidden = nn.Linear(channels * 2 * 2, self.num_features)
        self.head = nn.Linear(self.num_features, sum(sizes.values()))

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(self.hidden(self.maps(x)))

    def class_scores(self, features: Tensor) -> Tensor:
        return super().class_scores(features)[:, : next(iter(self.sizes.values()))]

    def scores(self, x: Tensor) -> dict[str, Tensor]:
        """{attribute: scores (N, number of its values)} of images x (N, C, H, W)."""
        parts = super().class_scores(self(x)).split(list(self.sizes.values()), dim=1)
        return dict(zip(self.sizes, parts, strict=True))


# How a SmallCNN is trained. It is part of the key of the cached file: a change here makes a new file.
TRAINING = {
    "version": 1,
    "seed": 0,
    "steps": 800,
    "batch_size": 64,
    "learning_rate": 3e-3,
    "weight_decay": 0.05,
    "label_smoothing": 0.1,
}


def trained_cnn(data: DataModule, cache_dir: Path) -> SmallCNN:
    """A `SmallCNN` named <dataset>_cnn, trained deterministically on the training split or read from the cache.

    It tells the classes of the data, or all attributes of AttributedData, so that its features know all that a caption
    may ask for.

    Leaves the global random state, the gradient mode and the number of threads as they were.
    """
    model = _initialised(data)
    key = digest(
        TRAINING,
        repr(model),
        data.name,
        list(data.shape),
        data.levels,
        data.train.fingerprint(),
        data.test.fingerprint(),
    )

    def make() -> dict[str, Any]:
        log.info("Training the feature extractor %s once; it is kept in %s.", model.name, cache_dir)
        # The training must not inherit no_grad, inference_mode or autocast from the caller.
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
            train_cnn(model, data)
        return {"weights": model.state_dict(), "accuracy": _accuracy(model, data)}

    saved = cached(Path(cache_dir) / "extractors" / f"{model.name}-{key}.pt", make)
    model.load_state_dict(saved["weights"])
    model.accuracy = saved["accuracy"]
    model.weight_hash = digest(*(t.numpy().tobytes() for t in model.state_dict().values()))
    log.info("Feature extractor %s: test accuracy %.1f %%.", model.name, 100 * model.accuracy)
    return model.eval().requires_grad_(False)


def _initialised(data: DataModule) -> SmallCNN:
    assert data.num_classes is not None  # `check_extractable` refuses images without classes
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        # torch.manual_seed would change CUDA's state too.
        torch.default_generator.manual_seed(int(TRAINING["seed"]))
        sizes = data.attribute_sizes if isinstance(data, AttributedData) else {"class": data.num_classes}
        return SmallCNN(f"{data.name}_cnn", data.shape, sizes)


def train_cnn(model: SmallCNN, data: DataModule) -> None:
    """Train by AdamW on the smoothed cross-entropies of all attributes, with a cosine learning rate."""
    generator = torch.Generator().manual_seed(int(TRAINING["seed"]))
    steps, batch_size = int(TRAINING["steps"]), int(TRAINING["batch_size"])
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=TRAINING["learning_rate"], weight_decay=TRAINING["weight_decay"]
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    order = torch.empty(0, dtype=torch.long)
    model.train()
    for _ in range(steps):
        while len(order) < batch_size:
            order = torch.cat([order, torch.randperm(len(data.train), generator=generator)])
        indices, order = order[:batch_size], order[batch_size:]
        loss = _loss(model, data, indices)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


def _loss(model: SmallCNN, data: DataModule, indices: Tensor) -> Tensor:
    """The sum over the attributes of the smoothed cross-entropy of training samples."""
    batch = data.train[indices]
    values = data.attributes(indices) if isinstance(data, AttributedData) else {"class": batch.label}
    losses = [
        functional.cross_entropy(scores, values[name], label_smoothing=TRAINING["label_smoothing"])
        for name, scores in model.scores(data.centre(batch.x)).items()
    ]
    return torch.stack(losses).sum()


@torch.no_grad()
def _accuracy(model: SmallCNN, data: DataModule) -> float:
    correct = [model.class_scores(model(x)).argmax(1) == label for x, label in split_batches(data, data.test, 500)]
    return torch.cat(correct).double().mean().item()
