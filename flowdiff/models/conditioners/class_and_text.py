"""Conditions from the class and the caption of a sample, by a conditioner for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Generator, Tensor

from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioners.base import Conditioner, Described, Given, LabelledText
from flowdiff.models.conditioners.classes import require_classes
from flowdiff.models.conditioners.pretrained import Locate
from flowdiff.models.conditioners.text import NEEDS_CAPTIONS
from flowdiff.models.conditioning import Conditioning
from flowdiff.registry import completed, create, register


@register("conditioner", "class_and_text", requires=[NEEDS_CAPTIONS])
class ClassAndText(Conditioner):
    """The vector of the class beside the vector of the caption, and the tokens of the caption.

    vector = [label(class), text(caption)],  tokens = text(caption)

    The null condition is the null condition of both. Each part may also be dropped alone, by its own `drop`; if both
    are, the model can be sampled by a class alone and by a prompt alone.

    Args:
        num_classes: number of classes of the dataset, None if it has none.
        locate: how the user named a model → its folder or its name on the hub.
        label: the conditioner of the class, {name: class or one_hot, …}, whose other settings are those of its YAML
            file; None for class.
        text: the conditioner of the caption, {name: text, clip or pretrained_text, …}; None for text.
        drop: probability in [0, 1) of replacing class and caption together by the null condition in training.

    Raises:
        ConfigurationError: the dataset has no classes, or label does not read classes, or text does not read captions.
    """

    reads_text = True

    def __init__(
        self,
        num_classes: int | None,
        locate: Locate,
        *,
        label: dict[str, Any] | None,
        text: dict[str, Any] | None,
        drop: Annotated[float, Field(ge=0, lt=1)],
    ):
        super().__init__()
        self.num_classes = require_classes(num_classes, "class_and_text")
        self.label: Conditioner = _part("label", label or {"name": "class"}, num_classes=num_classes, locate=locate)
        self.text: Conditioner = _part("text", text or {"name": "text"}, num_classes=num_classes, locate=locate)
        if self.label.reads_text or self.label.num_classes is None:
            raise ConfigurationError(
                f"conditioner.label={label} does not read classes: give it the name class or one_hot."
            )
        if not self.text.reads_text or self.text.num_classes is not None:
            raise ConfigurationError(
                f"conditioner.text={text} does not read captions: give it the name text, clip or pretrained_text."
            )
        self.dim = self.label.dim + self.text.dim
        self.token_dim = self.text.token_dim
        self.drop = drop
        self.alone = self.label.drop > 0 and self.text.drop > 0
        self.classes: tuple[int, ...] = ()  # of the examples

    def fit(self, captions: Sequence[str], labels: Sequence[int] | None = None) -> None:
        self.text.fit(captions)
        known = dict(zip(captions, labels or [0] * len(captions), strict=True))
        self.classes = tuple(known[text] for text in self.text.examples())

    def precompute(self, captions: Sequence[str]) -> None:
        self.text.precompute(captions)

    def examples(self) -> Sequence[str]:
        return self.text.examples()

    def example_classes(self) -> Sequence[int]:
        return self.classes

    def cut(self, text: str) -> str:
        return self.text.cut(text)

    def given(self, batch: Described, generator: Generator | None = None) -> Given:
        text = self.text.given(batch, generator)
        assert not isinstance(text, Tensor | LabelledText)  # it reads captions
        return LabelledText(batch.label, text)

    def condition(self, given: Given) -> Conditioning:
        assert isinstance(given, LabelledText)  # `given` reads both
        label = _known(self.label.condition(given.label.clamp(min=0)), self.label.null(1), given.label >= 0)
        there = torch.tensor([text is not None for text in given.text], device=given.label.device)
        text = _known(self.text.condition([text or "" for text in given.text]), self.text.null(1), there)
        return _joined(label, text)

    def null(self, n: int) -> Conditioning:
        return _joined(self.label.null(n), self.text.null(n))

    def negative(self, prompt: str, n: int) -> Conditioning:
        return _joined(self.label.null(n), self.text.condition([prompt] * n))

    def forward(self, given: Given, generator: Generator | None = None) -> Conditioning | None:
        """The condition of B classes with captions; in training each part is dropped alone, and both are together."""
        assert isinstance(given, LabelledText)
        if not self.training or not (self.label.drop or self.text.drop):
            return super().forward(given, generator)
        label = self.label(given.label, generator)
        text = self.text([text or "" for text in given.text], generator)
        return self.with_drops(_joined(label, text), len(given), generator)

    def get_extra_state(self) -> dict[str, Any]:
        return {"classes": list(self.classes)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.classes = tuple(state["classes"])


def _part(which: str, node: Mapping[str, Any], **runtime: Any) -> Conditioner:
    if "name" not in node:
        raise ConfigurationError(
            f"conditioner.{which}={dict(node)} does not name a conditioner: give it a name, e.g. {{name: "
            f"{'class' if which == 'label' else 'text'}}}."
        )
    made: Conditioner = create("conditioner", completed("conditioner", node), **runtime)
    return made


def _known(cond: Conditioning | None, null: Conditioning | None, known: Tensor) -> Conditioning:
    """The condition of those samples that are known, and the null condition of the others."""
    assert cond is not None  # a conditioner of classes or captions gives conditions
    assert null is not None
    if bool(known.all()):
        return cond
    rows = torch.arange(len(known), device=cond.device)
    return Conditioning.cat([cond, null])[torch.where(known.to(cond.device), rows, len(known))]


def _joined(label: Conditioning | None, text: Conditioning | None) -> Conditioning:
    assert label is not None
    assert text is not None
    vectors = [part.vector for part in (label, text) if part.vector is not None]
    return Conditioning(torch.cat(vectors, 1), text.tokens, text.mask, label=label.label)
