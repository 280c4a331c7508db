"""Features in which samples are compared: x in [−1, 1] ↦ φ(x), (N, num_features).

Real and generated images are both snapped to the data's grey levels first, so that neither dequantisation noise nor an
out-of-range pixel tells them apart.
"""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowdiff.data.readers import centred, split_batches
from flowdiff.digests import digest, fingerprint
from flowdiff.evaluation.features.cache import cached
from flowdiff.evaluation.features.extractor import Extractor

log = logging.getLogger(__name__)


class SmallCNN(Extractor):
    """Strided convolutions and a hidden layer, whose output is φ(x), below a linear classifier.

    SiLU throughout, so that φ is smooth; batch normalisation, because in use it is a fixed affine map and leaves the
    contrast of an image in its features. Untrained it is worthless: `trained_cnn` makes one.
    """

    def __init__(self, name: str, shape: tuple[int, int, int], num_classes: int) -> None:
        super().__init__()
        self.name = name
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
        # 2 × 2 means of the last map keep a rough idea of where things are.
        self.maps = nn.Sequential(*blocks, nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.hidden = nn.Linear(channels * 2 * 2, self.num_features)
        self.head = nn.Linear(self.num_features, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return functional.silu(self.hidden(self.maps(x)))

    def logits(self, x: Tensor) -> Tensor:
        """Class scores (N, num_classes) of images x (N, C, H, W)."""
        return self.head(self(x))


# How a SmallCNN is trained: part of the cached file's key, so that a change here makes a new one.
TRAINING = {
    "version": 1,
    "seed": 0,
    "steps": 800,
    "batch_size": 64,
    "learning_rate": 3e-3,
    "weight_decay": 0.05,
    "label_smoothing": 0.1,
}


def trained_cnn(data: Any, cache_dir: Path) -> SmallCNN:
    """A `SmallCNN` named <dataset>_cnn, trained deterministically on the training split or read from the cache.

    Leaves the global random state, the gradient mode and the number of threads as they were.
    """
    model = _initialised(data)
    key = digest(
        TRAINING,
        repr(model),
        data.name,
        list(data.shape),
        data.levels,
        fingerprint(data.train),
        fingerprint(data.test),
    )

    def make() -> dict[str, Any]:
        log.info("Training the feature extractor %s, once; it is kept in %s.", model.name, cache_dir)
        # A caller may be in no_grad, inference_mode or autocast: none of them may reach the training.
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
            _train(model, data)
        return {"weights": model.state_dict(), "accuracy": _accuracy(model, data)}

    saved = cached(Path(cache_dir) / "extractors" / f"{model.name}-{key}.pt", make)
    model.load_state_dict(saved["weights"])
    model.accuracy = saved["accuracy"]
    model.weight_hash = digest(*(t.numpy().tobytes() for t in model.state_dict().values()))
    log.info("Feature extractor %s: test accuracy %.1f %%.", model.name, 100 * model.accuracy)
    return model.eval().requires_grad_(False)


def _initialised(data: Any) -> SmallCNN:
    with torch.inference_mode(False), torch.random.fork_rng(devices=[]):
        # torch.manual_seed would reach CUDA's state as well.
        torch.default_generator.manual_seed(TRAINING["seed"])
        return SmallCNN(f"{data.name}_cnn", data.shape, data.num_classes)


def _train(model: SmallCNN, data: Any) -> None:
    """AdamW on the smoothed cross-entropy, cosine learning rate."""
    generator = torch.Generator().manual_seed(TRAINING["seed"])
    steps = TRAINING["steps"]
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=TRAINING["learning_rate"], weight_decay=TRAINING["weight_decay"]
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (1 + math.cos(math.pi * step / steps)) / 2)
    order = torch.empty(0, dtype=torch.long)
    model.train()
    for _ in range(steps):
        while len(order) < TRAINING["batch_size"]:
            order = torch.cat([order, torch.randperm(len(data.train), generator=generator)])
        indices, order = order[: TRAINING["batch_size"]], order[TRAINING["batch_size"] :]
        batch = data.train[indices]
        loss = functional.cross_entropy(
            model.logits(centred(data, batch.x)), batch.label, label_smoothing=TRAINING["label_smoothing"]
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    model.eval()


@torch.no_grad()
def _accuracy(model: SmallCNN, data: Any) -> float:
    correct = [model.logits(x).argmax(1) == label for x, label in split_batches(data, data.test, 500)]
    return torch.cat(correct).double().mean().item()
