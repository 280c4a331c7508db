"""Scenes of one or two coloured digits with captions: a world in which composition can be measured.

A scene has one digit, large in the middle or small at one side, or two small digits, beside or above each other. Every
digit has one of six colours. A caption says all of it in one of several wordings:

    "a big red three"      "small azure 7 at the top"      "a green two left of a golden nine"

Some combinations never occur in the training and test splits: a digit d with colour k where d + 3k is a multiple of 10
(6 of 60), and an ordered pair of digits (a, b), left or upper digit first, where 7a + 3b ends in 1 (10 of 100). A model
that draws them from their captions has composed what it knows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, final

import torch
import torch.nn.functional as F
from pydantic import NonNegativeInt, PositiveInt
from torch import Generator, Tensor

from flowdiff.data.attributes import Asked, AttributedData, Part
from flowdiff.data.base import Captions, DataModule, Split
from flowdiff.data.digits import Digits
from flowdiff.data.pixels import Pixels
from flowdiff.data.torchvision_sets import MNIST
from flowdiff.noise import step_generator
from flowdiff.registry import register

COLOURS = {
    ("red", "crimson"): (1.0, 0.1, 0.1),
    ("green", "emerald"): (0.1, 0.9, 0.2),
    ("blue", "azure"): (0.15, 0.35, 1.0),
    ("yellow", "golden"): (1.0, 0.9, 0.1),
    ("purple", "violet"): (0.75, 0.15, 0.9),
    ("white", "pale"): (1.0, 1.0, 1.0),
}
NUMERALS = [("zero", "0"), ("one", "1"), ("two", "2"), ("three", "3"), ("four", "4")]
NUMERALS += [("five", "5"), ("six", "6"), ("seven", "7"), ("eight", "8"), ("nine", "9")]
# Wordings of each layout; {0} and {1} are digits with their colours.
ONE = [
    ["a big {0}", "{0}, large, in the middle"],
    ["a small {0} on the left", "{0}, little, at the left side"],
    ["a small {0} on the right", "{0}, little, at the right side"],
    ["a small {0} at the top", "{0}, little, at the upper side"],
    ["a small {0} at the bottom", "{0}, little, at the lower side"],
]
TWO = [
    ["a {0} left of a {1}", "a {1} to the right of a {0}"],
    ["a {0} above a {1}", "a {1} below a {0}"],
]
# Upper left corner of each digit in sixteenths of the canvas; a large digit is 13 wide, a small one 8.
CORNERS_OF_ONE: list[tuple[tuple[int, int], ...]] = [((1, 1),), ((4, 0),), ((4, 8),), ((0, 4),), ((8, 4),)]
CORNERS_OF_TWO: list[tuple[tuple[int, int], ...]] = [((4, 0), (4, 8)), ((0, 4), (8, 4))]
LARGE, SMALL = 13, 8
MNIST_MARGIN = 2  # pixels at each side of MNIST's images, which hold at most 8 % of the ink of any of them


@dataclass(frozen=True)
class Scenes:
    """n scenes.

    Args:
        digits: (n, 2) int64 in 0 … 9; the second is −1 in a scene of one digit.
        colours: (n, 2) int64, positions in COLOURS; the second is −1 in a scene of one digit.
        layout: (n,) int64, position in ONE or TWO.
    """

    digits: Tensor
    colours: Tensor
    layout: Tensor

    def __len__(self) -> int:
        return len(self.layout)

    def __getitem__(self, rows: Tensor) -> Scenes:
        return Scenes(self.digits[rows], self.colours[rows], self.layout[rows])

    @property
    def two(self) -> Tensor:
        """Which scenes have two digits, (n,) bool."""
        return self.digits[:, 1] >= 0

    def attributes(self) -> dict[str, Tensor]:
        """The attributes of `CaptionedDigits.attribute_sizes`, (n,) int64 each."""
        return {
            "digit": self.digits[:, 0],
            "colour": self.colours[:, 0],
            "second_digit": self.digits[:, 1] + 1,
            "second_colour": self.colours[:, 1] + 1,
            "place": torch.where(self.two, len(ONE) + self.layout, self.layout),
        }

    def held_out(self) -> Tensor:
        """Which scenes show a combination that training never shows, (n,) bool."""
        coloured = (self.digits + 3 * self.colours) % 10 == 0
        coloured[:, 1] &= self.two
        pair = (7 * self.digits[:, 0] + 3 * self.digits[:, 1]) % 10 == 1
        return coloured.any(1) | (pair & self.two)


def drawn(n: int, part: Part, generator: Generator) -> Scenes:
    """n random scenes of a part. Half of them have two digits, and combinations of the other part do not occur."""
    found: list[Scenes] = []
    while sum(map(len, found)) < n:  # 10 % of the scenes of one digit are held out, and 27 % of those of two
        digits = torch.randint(10, (4 * n, 2), generator=generator)
        colours = torch.randint(len(COLOURS), (4 * n, 2), generator=generator)
        two = torch.rand(4 * n, generator=generator) < 0.5
        layout = torch.where(
            two,
            torch.randint(len(TWO), (4 * n,), generator=generator),
            torch.randint(len(ONE), (4 * n,), generator=generator),
        )
        digits[:, 1][~two] = -1
        colours[:, 1][~two] = -1
        scenes = Scenes(digits, colours, layout)
        found.append(scenes[scenes.held_out() if part == "held_out" else ~scenes.held_out()])
    return Scenes(*(torch.cat([getattr(s, name) for s in found])[:n] for name in ("digits", "colours", "layout")))


def captions(scenes: Scenes, generator: Generator) -> list[str]:
    """One caption of each scene; wording and synonyms are drawn at random."""
    choice = torch.randint(2, (len(scenes), 5), generator=generator).tolist()
    names, found = list(COLOURS), []
    for digits, colours, layout, (wording, *synonyms) in zip(
        scenes.digits.tolist(), scenes.colours.tolist(), scenes.layout.tolist(), choice, strict=True
    ):
        words = [
            f"{names[colour][synonyms[i]]} {NUMERALS[digit][synonyms[2 + i]]}"
            for i, (digit, colour) in enumerate(zip(digits, colours, strict=True))
            if digit >= 0
        ]
        text = (TWO if len(words) == 2 else ONE)[layout][wording].format(*words)
        found.append(re.sub(r"\ba (?=[aeiou])", "an ", text))
    return found


def pictures(scenes: Scenes, glyphs: Tensor, size: int) -> Tensor:
    """The scenes as uint8 images (n, 3, size, size).

    Args:
        scenes: n scenes.
        glyphs: (n, 2, s, s) in [0, 1], the handwriting of each digit; the second is ignored where there is one digit.
        size: pixels along a side.
    """
    unit = size / 16
    canvas = torch.zeros(len(scenes), 3, size, size)
    tint = torch.tensor(list(COLOURS.values()))
    for two, layouts in ((False, CORNERS_OF_ONE), (True, CORNERS_OF_TWO)):
        for layout, corners in enumerate(layouts):
            rows = ((scenes.two == two) & (scenes.layout == layout)).nonzero()[:, 0]
            for place, corner in enumerate(corners):
                side = round(unit * (LARGE if not two and layout == 0 else SMALL))
                top, left = (round(unit * start) for start in corner)
                shape = F.interpolate(glyphs[rows, place][:, None], (side, side), mode="bilinear", antialias=True)
                here = canvas[rows]
                here[:, :, top : top + side, left : left + side] += (
                    shape * tint[scenes.colours[rows, place]][..., None, None]
                )
                canvas[rows] = here
    return (canvas.clamp(0, 1) * 255).round().to(torch.uint8)


@final
class Handwriting:
    """Images of digits.

    Args:
        images: (m, s, s) uint8, from 0 to `ink`.
        digit: (m,) int64, the digit of each of them.
        ink: the level of full ink, ≥ 1.
    """

    def __init__(self, images: Tensor, digit: Tensor, ink: int) -> None:
        self.images = images
        self.digit = digit
        self.ink = ink

    def glyphs(self, sources: Tensor) -> Tensor:
        """The images at positions `sources`, int64 (…): (…, s, s) in [0, 1]."""
        return self.images[sources].float() / self.ink

    def drawn(self, scenes: Scenes, generator: Generator) -> Tensor:
        """For each digit of each of n scenes the position of an image of it, (n, 2); 0 where there is no digit."""
        pick = torch.rand(len(scenes), 2, generator=generator)
        sources = torch.zeros(len(scenes), 2, dtype=torch.int64)
        for k in range(10):
            images = (self.digit == k).nonzero()[:, 0]
            chosen = images[(pick * len(images)).long()]
            sources = torch.where(scenes.digits == k, chosen, sources)
        return sources


@final
class SceneSplit(Split):
    """Scenes that are drawn when they are read.

    Args:
        scenes: the scenes.
        sources: (n, 2) int64, which image of `hand` each digit is written as.
        hand: the images of digits.
        captions: the captions of each scene.
        size: pixels along a side.
    """

    def __init__(self, scenes: Scenes, sources: Tensor, hand: Handwriting, captions: Captions, size: int) -> None:
        super().__init__(scenes.digits[:, 0], captions)
        self.scenes = scenes
        self.sources = sources
        self.hand = hand
        self.size = size

    def read(self, indices: Tensor) -> Tensor:
        return pictures(self.scenes[indices], self.hand.glyphs(self.sources[indices]), self.size)


@final
@register("dataset", "captioned_digits")
class CaptionedDigits(AttributedData):
    """Scenes (3, S, S) of one or two coloured digits with captions, the same in every run.

    The label of a scene is its first digit. The digits of the test split are of another hand than those of the training
    split; both splits lack the combinations of `held_out`.

    Args:
        handwriting: the images of digits: digits, those of dataset=digits, 8×8; mnist, those of dataset=mnist, 28×28
            without a margin of two pixels.
        root: folder of MNIST's files, as of dataset=mnist; `~` is allowed. handwriting=digits reads no files.
        download: with handwriting=mnist, fetch the files if one is missing.
        image_size: pixels along a side S, 16 or 32.
        num_train: training scenes, ≥ 1.
        num_test: test scenes, ≥ 1.
        captions_per_image: captions of each scene, ≥ 1; training draws one of them in every step.
        batch_size: scenes per batch of one process, ≥ 1.
        num_workers: loader processes, ≥ 0; they change the speed only.
        dequantize: add uniform noise of one level's width to pixels; false takes the levels' midpoints.

    Raises:
        DataError: `prepare_data` and `setup`, with handwriting=mnist: as of dataset=mnist.

    Source: the handwriting is that of dataset=digits or dataset=mnist.
    """

    name = "captioned_digits"
    num_classes = 10
    attribute_sizes: Mapping[str, int] = MappingProxyType(
        {
            "digit": 10,
            "colour": len(COLOURS),
            "second_digit": 11,  # 0 where there is none, as in the next
            "second_colour": len(COLOURS) + 1,
            "place": len(ONE) + len(TWO),
        }
    )

    def __init__(
        self,
        *,
        handwriting: Literal["digits", "mnist"],
        root: str,
        download: bool,
        image_size: Literal[16, 32],
        num_train: PositiveInt,
        num_test: PositiveInt,
        captions_per_image: PositiveInt,
        batch_size: PositiveInt,
        num_workers: NonNegativeInt,
        dequantize: bool,
    ) -> None:
        super().__init__(Pixels(256, dequantize, flip=False), batch_size, num_workers)
        self.shape = (3, image_size, image_size)
        self.sizes = (num_train, num_test)
        self.captions_per_image = captions_per_image
        self.handwriting: DataModule  # only its raw images are read
        if handwriting == "mnist":
            self.handwriting = MNIST(
                root=root,
                download=download,
                batch_size=1,
                num_workers=0,
                dequantize=False,
                flip=False,
                caption_template=None,
            )
            self.ink, self.margin = 255, MNIST_MARGIN
        else:
            self.handwriting = Digits(
                batch_size=1,
                num_workers=0,
                dequantize=False,
                flip=False,
                caption_template=None,
                classes=None,
                num_per_class=None,
            )
            self.ink, self.margin = 16, 0

    def prepare_data(self) -> None:
        self.handwriting.prepare_data()

    def attributes(self, indices: Tensor) -> Mapping[str, Tensor]:
        assert isinstance(self.train, SceneSplit)
        return self.train.scenes[indices].attributes()

    def ask(self, part: Part, n: int, seed: int) -> Asked:
        """n captions of scenes of a part; the pictures are in the hands of the test split."""
        assert isinstance(self.test, SceneSplit)
        generator = step_generator(seed, len(self.sizes))  # the splits have the counters 0 and 1
        scenes = drawn(n, part, generator)
        texts = captions(scenes, generator)
        sources = self.test.hand.drawn(scenes, generator)
        return Asked(texts, scenes.attributes(), pictures(scenes, self.test.hand.glyphs(sources), self.shape[1]))

    def load(self) -> tuple[Split, Split]:
        self.handwriting.setup()
        splits = []
        for part, (n, written) in enumerate(zip(self.sizes, (self.handwriting.train, self.handwriting.test), strict=True)):
            images, digit, _ = written[:]
            inside = slice(self.margin, images.shape[-1] - self.margin)
            hand = Handwriting(images[:, 0, inside, inside], digit, self.ink)
            generator = step_generator(0, part)
            scenes = drawn(n, "seen", generator)
            texts = [captions(scenes, generator) for _ in range(self.captions_per_image)]
            sources = hand.drawn(scenes, generator)
            splits.append(SceneSplit(scenes, sources, hand, Captions(zip(*texts, strict=True)), self.shape[1]))
        return splits[0], splits[1]
