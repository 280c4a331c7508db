"""scikit-learn's handwritten digits: 1,797 images of 8 × 8 pixels, levels 0…16, ten classes, no download."""

from __future__ import annotations

from typing import final

import torch
from pydantic import NonNegativeInt, PositiveInt

from flowdiff.data.base import DataModule, Split, TensorSplit, held_out, of_classes
from flowdiff.errors import ConfigurationError
from flowdiff.data.pixels import Pixels
from flowdiff.registry import register


@final
@register("dataset", "digits")
class Digits(DataModule):
    """Handwritten digits: 1,500 training and 297 test images (1, 8, 8), the same in every run.

    Args:
        batch_size: images per batch of one process, ≥ 1.
        num_workers: loader processes, ≥ 0; they change the speed only.
        dequantize: add uniform noise of one level's width to pixels; false takes the levels' midpoints.
        flip: mirror each training image left to right with probability 1/2.
        caption_template: caption of every image with {} for the name of its class; None: no captions.
        classes: classes whose images are read, of both splits; the others have no image, but keep their number.
        num_per_class: training images of each class, the first ones, ≥ 1; None: all.

    Raises:
        ConfigurationError: classes is empty, or names a class twice or one that there is not.

    Source: Alpaydin, Kaynak, "Optical recognition of handwritten digits", UCI repository, 1998 (test part).
    """

    name = "digits"
    shape = (1, 8, 8)
    num_classes = 10
    class_names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

    def __init__(
        self,
        *,
        batch_size: PositiveInt,
        num_workers: NonNegativeInt,
        dequantize: bool,
        flip: bool,
        caption_template: str | None,
        classes: list[int] | None,
        num_per_class: PositiveInt | None,
    ) -> None:
        if classes is not None and (not classes or len({*classes} & {*range(10)}) < len(classes)):
            raise ConfigurationError(
                f"dataset.classes={classes} is not allowed: it must be a list of different classes from 0 to 9, or null."
            )
        self.classes = classes
        self.num_per_class = num_per_class
        super().__init__(Pixels(17, dequantize, flip), batch_size, num_workers, caption_template)

    def load(self) -> tuple[Split, Split]:
        from sklearn.datasets import load_digits

        images, target = load_digits(return_X_y=True)
        x = torch.from_numpy(images).to(torch.uint8).reshape(-1, 1, 8, 8)
        label = torch.from_numpy(target).long()
        train, test = held_out(len(x), num_test=297)
        train = train[of_classes(label[train], self.classes, self.num_per_class)]
        test = test[of_classes(label[test], self.classes)]
        return TensorSplit(x[train], label[train]), TensorSplit(x[test], label[test])
