"""LoRA: updates of low rank for the weights of a frozen model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import nn

from flowdiff.errors import ConfigurationError
from flowdiff.models.adapters import deltas
from flowdiff.models.adapters.base import Adapter
from flowdiff.models.adapters.targets import chosen
from flowdiff.registry import register


@register("adapter", "lora")
class LoRA(Adapter):
    """An update of low rank for each linear map of a frozen model.

    W = W₀ + (α/r)·B·A,  A (r, n) random and B (m, r) zero at the start, W₀ (m, n) frozen

    The linear maps are those of linear layers and convolutions, in the nets of a flow as in a raw network, and of the
    flow itself. There W is the matrix that the map is built from, and the map stays what it is for any W: a rotation
    (its skew matrix, or the vectors of its reflections), or triangular with its diagonal (the factors of PLU). The mask
    of a masked layer is multiplied to W, and so to the update.

    A layer with min(m, n) < r takes r = min(m, n). Everything else of the base is frozen, but for modules_to_save.

    Args:
        run: folder of the run whose model is the base.
        rank: r ≥ 1, at most the largest min(m, n) of the layers.
        alpha: α > 0; None: r, so that the factor is 1.
        rslora: the factor is α/√r.
        dropout: probability in [0, 1) of leaving an input of all updates of a layer out of a training step.
        target: which layers: attention, ff, embedding or map, a list of them, all, or a regular expression for whole
            names of layers.
        modules_to_save: names of parts of the model, or ends of them, whose parameters have changes of full rank.
        anchor: λ ≥ 0 of λ·‖D − D_base‖², or for a density λ·(log p − log p_base)²/D, which is added to the loss.
        anchor_steps: optimiser steps over which λ falls linearly to 0, ≥ 1; None: it stays.

    Raises:
        ConfigurationError: the base has no such layers or parts, or none is as large as the rank.

    Source: Hu et al., LoRA: Low-rank adaptation of large language models, 2022; rslora: Kalajdzievski, A rank
        stabilization scaling factor for fine-tuning with LoRA, 2023.
    """

    def __init__(
        self,
        *,
        run: str | None,
        rank: PositiveInt,
        alpha: PositiveFloat | None,
        rslora: bool,
        dropout: Annotated[float, Field(ge=0, lt=1)],
        target: str | list[str],
        modules_to_save: list[str],
        anchor: NonNegativeFloat,
        anchor_steps: PositiveInt | None,
    ):
        self.run = run
        self.rank = rank
        self.alpha = alpha
        self.rslora = rslora
        self.dropout = dropout
        self.target = target
        self.modules_to_save = tuple(modules_to_save)
        self.anchor = anchor
        self.anchor_steps = anchor_steps

    def scale(self, rank: int) -> float:
        """What B·A of this rank is multiplied by."""
        alpha = rank if self.alpha is None else self.alpha
        return alpha / rank**0.5 if self.rslora else alpha / rank

    def attach(self, model: nn.Module) -> None:
        in_full = parameters_of(model, self.modules_to_save)
        matrices = [one for one in chosen(model, self.target) if one.name not in in_full]
        largest = max((min(one.weight.flatten(1).shape) for one in matrices), default=self.rank)
        if self.rank > largest:
            raise ConfigurationError(
                f"adapter.rank={self.rank} is larger than every layer that adapter.target={self.target} names, whose "
                f"updates have ranks up to {largest}: set adapter.rank to {largest} or less."
            )
        model.requires_grad_(False)
        for _, module, key, _ in matrices:
            weight = getattr(module, key)
            rank = min(self.rank, *weight.flatten(1).shape)
            deltas.attach(module, key, deltas.LowRank(weight, rank, self.scale(rank), self.dropout))
        train_in_full(in_full)


Owner = tuple[nn.Module, str]


def parameters_of(model: nn.Module, names: tuple[str, ...]) -> dict[str, Owner]:
    """{name: (module, key)} of the trained parameters in the parts of a model with these names, or ends of names.

    Raises:
        ConfigurationError: the model has no such part.
    """
    parts: dict[str, nn.Module] = {}
    for name in names:
        found = {path: part for path, part in model.named_modules() if f".{path}".endswith(f".{name}")}
        if not found:
            top = sorted(path for path, _ in model.named_modules() if path and path.count(".") < 2)
            raise ConfigurationError(
                f"adapter.modules_to_save={list(names)} names {name}, and the base has no such part: give names of "
                f"parts, or their ends, e.g. {', '.join(top[:5])}."
            )
        parts |= found
    return {name: owner for path, part in parts.items() for name, owner in trained(part, path).items()}


def trained(part: nn.Module, path: str = "") -> dict[str, Owner]:
    """{name: (module, key)} of the trained parameters of a part of a model; path: the name of the part."""
    return {
        ".".join(filter(None, (path, inner, key))): (module, key)
        for inner, module in part.named_modules()
        for key, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad
    }


def train_in_full(parameters: Mapping[str, Owner]) -> None:
    """Give each of these parameters a change of full rank."""
    for module, key in parameters.values():
        deltas.attach(module, key, deltas.Full(getattr(module, key)))
