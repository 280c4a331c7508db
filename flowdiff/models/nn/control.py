"""Controls: residuals of a net that depend on a hint, a picture that says what a sample should look like.

    y = net(x; e) + Σ_k s_k·r_k(x; e, h_k),   r_k = 0 at the start

r_k is a trainable copy of the net that also reads the hint h_k, and whose last layer is 0 at the start; s_k ≥ 0 is its
strength. The net gives the parameters of a map of x, before their bounds and before the gate: a flow stays a flow for
every hint, because ∂z/∂x is taken at a fixed hint, and at the start it is the flow without hints, bit for bit.

The hints of a batch are the channels of cond.hint; each control reads its own. Without cond.hint there is no residual.

Source: Zhang, Rao, Agrawala, Adding conditional control to text-to-image diffusion models, 2023.
"""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TypeVar

import torch.nn.functional as F
from torch import Tensor, nn

from flowdiff.errors import RunError
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.nn.embeddings import unit_linear
from flowdiff.models.nn.inject import zero_init

Net = TypeVar("Net", bound=nn.Module)


@dataclass(frozen=True)
class HintPart:
    """The channels of cond.hint that a control reads.

    Args:
        first: the first of them.
        shape: (C, H, W) of what it reads.
    """

    first: int
    shape: tuple[int, int, int]

    @property
    def size(self) -> int:
        """Numbers in the hint."""
        return math.prod(self.shape)


class Control(nn.Module):
    """A residual that depends on a hint.

    Args:
        part: the channels of cond.hint that it reads.
    """

    def __init__(self, part: HintPart):
        super().__init__()
        self.part = part
        self.strength = 1.0  # s

    def hint(self, cond: Conditioning) -> Tensor:
        """Its own hint, (B, C, H, W)."""
        assert cond.hint is not None  # `active` asks for it first
        first, (channels, *_) = self.part.first, self.part.shape
        return cond.hint[:, first : first + channels]


class Controllable(ABC):
    """A module whose output may get residuals; the base class of nets that give the parameters of a map.

    controls: what adds them, empty at first.
    """

    controls: nn.ModuleList

    @abstractmethod
    def make_control(self, part: HintPart) -> Control | None:
        """A control of this module, 0 at the start; None if it has nothing to control."""

    def active(self, cond: Conditioning) -> list[Control]:
        """The controls that add something for this condition."""
        if cond.hint is None:
            return []
        return [control for control in self.controls if isinstance(control, Control) and control.strength]


class SeesPartOfHint(ABC):
    """A module whose inner modules read another part of the hint than it does itself."""

    @abstractmethod
    def part_inside(self, part: HintPart) -> HintPart:
        """The part that inner modules read."""


class SteerControl(Control):
    """The residual of a linear map of e: a net of one hidden layer that reads e and the hint; 0 at the start.

    r = Z·silu(A e + H h + b),  Z = 0 at the start

    Args:
        steer: the linear map.
        part: the hint.
    """

    def __init__(self, steer: nn.Linear, part: HintPart):
        super().__init__(part)
        width = steer.in_features
        self.of_hint = unit_linear(part.size, width, bias=False)
        self.of_vector = unit_linear(width, width)
        self.outer = zero_init(nn.Linear(width, steer.out_features))
        self.to(steer.weight)

    def forward(self, cond: Conditioning) -> Tensor:
        hidden = self.of_vector(cond.vector) + self.of_hint(self.hint(cond).flatten(1))
        return self.outer(F.silu(hidden))


def with_residuals(y: Tensor, controls: list[Control], *inputs: object) -> Tensor:
    """y + Σ s·r(*inputs)."""
    for control in controls:
        y = y + control.strength * control(*inputs)
    return y


def trainable_copy(net: Net) -> Net:
    """A copy of a net without controls, all of whose parameters are trained."""
    found = copy.deepcopy(net)
    for module in found.modules():
        if isinstance(module, Controllable):
            module.controls = nn.ModuleList()
    return found.requires_grad_(True)


def squeezed(hint: Tensor, grid: tuple[int, int]) -> Tensor:
    """A hint (B, C, H, W) in the pixels of a grid (h, w) that divides its sides: (B, C·(H/h)·(W/w), h, w)."""
    blocks = hint.unflatten(3, (grid[1], -1)).unflatten(2, (grid[0], -1))  # (B, C, h, H/h, w, W/w)
    return blocks.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


def controllable(model: nn.Module, part: HintPart, path: str = "") -> Iterator[tuple[str, Controllable, HintPart]]:
    """The modules of a model that take controls, with their names and what they read of a hint."""
    if isinstance(model, Control):
        return
    if isinstance(model, Controllable):
        yield path, model, part
    if isinstance(model, SeesPartOfHint):
        part = model.part_inside(part)
    for name, child in model.named_children():
        yield from controllable(child, part, f"{path}.{name}".lstrip("."))


def attach(model: nn.Module, part: HintPart, strength: float = 1.0) -> int:
    """Give every module of a model that takes controls a new one, in place; returns their number."""
    added = 0
    for _, module, seen in list(controllable(model, part)):
        control = module.make_control(seen)
        if control is not None:
            control.strength = strength
            module.controls.append(control)
            added += 1
    return added


def controls(model: nn.Module) -> Iterator[Control]:
    """All controls of a model."""
    return (module for module in model.modules() if isinstance(module, Control))


def add(model: nn.Module, other: nn.Module, first: int, strength: float) -> None:
    """Add the controls of another model of the same architecture to those of a model, in place.

    Args:
        model: the model.
        other: the model whose controls are taken over.
        first: number of channels of cond.hint that the model reads already.
        strength: that of the added controls.

    Raises:
        RunError: the other model has a control where this one has no such module.
    """
    own = {path: module for path, module, _ in controllable(model, HintPart(0, (0, 0, 0)))}
    for path, module, _ in list(controllable(other, HintPart(0, (0, 0, 0)))):
        for control in module.controls:
            assert isinstance(control, Control)
            if path not in own:
                raise RunError(
                    f"an adapter controls {path or 'the network'}, which the model does not have: give an adapter that "
                    "was trained on this run."
                )
            control.part = replace(control.part, first=control.part.first + first)
            control.strength = strength
            own[path].controls.append(control)
