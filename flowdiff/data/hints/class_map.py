"""The class of each place of a picture, for data sets that know the classes of pixels."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from pydantic import PositiveInt
from torch import Tensor

from flowdiff.data.base import DataModule
from flowdiff.data.captioned_digits import COLOURS, CaptionedDigits
from flowdiff.data.hints.base import Hint, share_that_agrees
from flowdiff.errors import ConfigurationError
from flowdiff.registry import register
from flowdiff.shapes import times

INK = 0.5  # of the brightest channel in [0, 1], from which on a pixel belongs to a digit


@register("hint", "class_map")
class ClassMap(Hint):
    """A map of classes for dataset=captioned_digits: the colour of the digit in each cell of cell × cell pixels.

    A cell has the class of its brightest pixel, that of the nearest of the six colours by direction in RGB; a cell
    without ink is black. Agreement is the share of pixels with the same class.

    Args:
        data: the data set.
        cell: side of a cell in pixels, ≥ 1; it divides the sides of a picture.

    Raises:
        ConfigurationError: the data set is another one, or the cell does not divide the sides.
    """

    agreement = "class_map_agreement"
    channels = 3

    def __init__(self, data: DataModule, *, cell: PositiveInt):
        if not isinstance(data, CaptionedDigits):
            raise ConfigurationError(
                f"hint=class_map is for dataset=captioned_digits, which knows the classes of its pixels, and this is "
                f"dataset={data.name}: take another hint, or that dataset."
            )
        super().__init__(data.shape)
        self.cell = cell
        if self.sides[0] % cell:
            raise ConfigurationError(
                f"cell={cell} of hint=class_map does not divide the sides of pictures of {times(data.shape)}: choose a "
                "divisor."
            )

    def __call__(self, x: Tensor) -> Tensor:
        colours = (x.clamp(-1, 1) + 1) / 2  # (B, 3, H, W)
        ink, place = F.max_pool2d(colours.amax(1, keepdim=True), self.cell, return_indices=True)
        brightest = colours.flatten(2).gather(2, place.flatten(2).expand(-1, 3, -1))  # (B, 3, cells)
        tints = F.normalize(x.new_tensor(list(COLOURS.values())), dim=1)
        nearest = (tints @ F.normalize(brightest, dim=1)).argmax(1)  # (B, cells)
        shown = x.new_tensor(list(COLOURS.values()))[nearest].mT.unflatten(2, ink.shape[2:])
        classes = torch.where(ink > INK, 2 * shown - 1, -1.0)
        return classes.repeat_interleave(self.cell, 2).repeat_interleave(self.cell, 3)

    def obeyed(self, asked: Tensor, found: Tensor) -> Tensor:
        return share_that_agrees(asked, found)
