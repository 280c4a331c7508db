"""Data sets whose samples have attributes, so that a picture can be judged by what its caption asks for."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from flowdiff.data.base import DataModule

Part = Literal["seen", "held_out"]
"""Combinations of attributes that training shows, and those that it never shows."""


@dataclass(frozen=True)
class Asked:
    """n prompts, what they ask for, and real pictures of it.

    Args:
        prompts: the texts.
        attributes: {attribute: its value for each prompt, (n,) int64}.
        x: raw samples (n, …) that show what the prompts ask for.
    """

    prompts: list[str]
    attributes: Mapping[str, Tensor]
    x: Tensor


class AttributedData(DataModule):
    """A data set with captions, whose samples have attributes.

    A subclass defines `attribute_sizes`, `attributes` and `ask`.

    Attributes:
        attribute_sizes: {attribute: number of its values}; the first one is the class.
    """

    has_captions = True
    attribute_sizes: Mapping[str, int]

    @abstractmethod
    def attributes(self, indices: Tensor) -> Mapping[str, Tensor]:
        """{attribute: its value for each of these training samples, (B,) int64}."""

    @abstractmethod
    def ask(self, part: Part, n: int, seed: int) -> Asked:
        """n prompts of a part, drawn by the seed."""
