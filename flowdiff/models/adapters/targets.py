"""Which weights of a model an adapter changes: by the kind of the layer, or by a pattern of its name."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from flowdiff.errors import ConfigurationError, nearest
from flowdiff.models.conditioners.base import Conditioner
from flowdiff.models.flows.base import Flow

KINDS = ("attention", "ff", "embedding", "map")
# Parts whose layers are of a kind; the UNet's are those of diffusers. All other layers are ff, those of nets.
PARTS = {
    **dict.fromkeys(("SelfAttention", "CrossAttention", "Attention"), "attention"),
    **dict.fromkeys(("ConditionEmbedding", "TimestepEmbedding"), "embedding"),
}


class Matrix(NamedTuple):
    """A trained weight (n, …) that is a linear map.

    Args:
        name: its dotted name in the model.
        module: the module that has it.
        key: its name there.
        kind: attention | ff | embedding, layers in attentions, in nets, and in embeddings of σ and of the condition; or
            map, a linear map of x itself.
    """

    name: str
    module: nn.Module
    key: str
    kind: str

    @property
    def weight(self) -> Tensor:
        """The weight."""
        return getattr(self.module, self.key)

    @property
    def layer(self) -> str:
        """What patterns are matched with: the name of the layer, which for a map is that of its weight."""
        return self.name if self.kind == "map" else self.name.removesuffix(".weight")


def matrices(model: nn.Module) -> Iterator[Matrix]:
    """All trained weights of a model that are linear maps: of linear layers, of convolutions, and of flows."""
    kinds: dict[str, str] = {}
    for path, module in model.named_modules():
        outer = kinds.get(path.rpartition(".")[0], "ff")
        kinds[path] = "embedding" if isinstance(module, Conditioner) else PARTS.get(type(module).__name__, outer)
        if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.groups == 1):
            found = [("weight", kinds[path])]
        else:
            found = [(key, "map") for key in module.matrices] if isinstance(module, Flow) else []
        for key, kind in found:
            if getattr(module, key).requires_grad:
                yield Matrix(f"{path}.{key}".lstrip("."), module, key, kind)


def chosen(model: nn.Module, target: str | Sequence[str]) -> list[Matrix]:
    """The matrices of a model that a target names.

    Args:
        model: the model.
        target: a kind, `all`, a list of kinds, or a regular expression for the whole name of a layer.

    Raises:
        ConfigurationError: the target names no layer of the model.
    """
    found = list(matrices(model))
    if isinstance(target, str) and target not in (*KINDS, "all"):
        try:
            kept = [one for one in found if re.fullmatch(target, one.layer)]
        except re.error as error:
            raise ConfigurationError(
                f"adapter.target={target} is neither a kind of layer nor a regular expression ({error}): "
                f"{nearest(target, [*KINDS, 'all'])}."
            ) from error
    else:
        kinds = KINDS if target == "all" else [target] if isinstance(target, str) else target
        if wrong := [kind for kind in kinds if kind not in KINDS]:
            raise ConfigurationError(f"adapter.target={list(target)} is not allowed: {nearest(wrong[0], KINDS)}.")
        kept = [one for one in found if one.kind in kinds]
    if not kept:
        kinds = sorted({one.kind for one in found})
        example = f", and its first layer is {found[0].layer}" if found else ""
        raise ConfigurationError(
            f"adapter.target={target} names no layer of the base, which has layers of the kinds "
            f"{', '.join(kinds) or 'none'}{example}: take a kind, a list of kinds, all, or a pattern of names."
        )
    return kept
