"""Changes of frozen weights, as parametrisations of torch: W = W₀ + s·ΔW, s the strength."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from flowdiff.errors import RunError
from flowdiff.models.nn.control import Control


class Delta(nn.Module, ABC):
    """A trained change ΔW of a frozen weight W₀; 0 at the start.

    W = W₀ + ΔW
    """

    def __init__(self) -> None:
        super().__init__()
        self.enabled = True  # False: W = W₀, the base itself

    @abstractmethod
    def change(self) -> Tensor:
        """ΔW, like W₀."""

    def draw(self, generator: torch.Generator) -> None:
        """Draw what is random in a training step."""

    def forward(self, weight: Tensor) -> Tensor:
        if not self.enabled:
            return weight
        with torch.autocast(weight.device.type, enabled=False):  # a map may be read in full precision
            return weight + self.change()


class LowRank(Delta):
    """ΔW = s·B·A, A random and B = 0 at the start.

    In a training step with dropout p, each column of A is 0 with probability p, else divided by 1 − p: these inputs of
    the update are left out. They are the same for all samples and for all readers of the weight in the step, so that
    the model is one density in it.

    Args:
        weight: W₀ (n, …).
        rank: r ≥ 1; A is (r, …) and B (n, r).
        scale: s > 0.
        dropout: p in [0, 1).
    """

    kept: Tensor

    def __init__(self, weight: Tensor, rank: int, scale: float, dropout: float = 0.0):
        super().__init__()
        self.scale = scale
        self.dropout = dropout
        self.A = nn.Parameter(weight.new_empty(rank, *weight.shape[1:]))
        self.B = nn.Parameter(weight.new_zeros(len(weight), rank))
        nn.init.kaiming_uniform_(self.A, a=math.sqrt(5))  # as in peft
        self.register_buffer("kept", weight.new_ones(weight.shape[1]), persistent=False)

    def draw(self, generator: torch.Generator) -> None:
        if self.dropout:
            u = torch.rand(len(self.kept), generator=generator, device=generator.device)
            self.kept.copy_((u >= self.dropout) / (1 - self.dropout))

    def change(self) -> Tensor:
        A: Tensor = self.A
        if self.training and self.dropout:
            A = A * self.kept.view(-1, *[1] * (A.ndim - 2))
        return self.scale * (self.B @ A.flatten(1)).view(len(self.B), *A.shape[1:])


class Full(Delta):
    """ΔW of full rank, like W₀.

    Args:
        weight: W₀.
    """

    def __init__(self, weight: Tensor):
        super().__init__()
        self.delta = nn.Parameter(torch.zeros_like(weight))

    def change(self) -> Tensor:
        return self.delta


class Changed(NamedTuple):
    """A weight with a change.

    Attributes:
        name: the dotted name of the weight in the base.
        module: the module that has it.
        key: its name there.
        delta: the change.
    """

    name: str
    module: nn.Module
    key: str
    delta: Delta


def attach(module: nn.Module, key: str, delta: Delta) -> None:
    """Give the weight `key` of a module a change."""
    parametrize.register_parametrization(module, key, delta)


def changed(model: nn.Module) -> Iterator[Changed]:
    """The weights of a model that have a change."""
    for path, module in list(model.named_modules()):
        if parametrize.is_parametrized(module):
            assert isinstance(module.parametrizations, nn.ModuleDict)
            for key, chain in module.parametrizations.items():
                assert isinstance(chain, nn.ModuleList)
                for delta in chain:
                    if isinstance(delta, Delta):
                        yield Changed(f"{path}.{key}".lstrip("."), module, key, delta)


def draw(model: nn.Module, generator: torch.Generator) -> None:
    """Draw what is random in the changes of a model for one training step."""
    for *_, delta in changed(model):
        delta.draw(generator)


@torch.no_grad()
def merge(model: nn.Module) -> None:
    """Make every W₀ + ΔW of a model a plain weight, in place."""
    whole = {(module, key): getattr(module, key).detach().clone() for _, module, key, _ in changed(model)}
    for module in {module for module, _ in whole}:
        # torch's remove_parametrizations would take the weight from the class, which copies of the module share.
        del module.parametrizations
        module.__class__ = type(module).__bases__[0]
    for (module, key), weight in whole.items():
        module.register_parameter(key, nn.Parameter(weight))


def keep_only_changes(model: nn.Module) -> None:
    """Let the state dict of an adapted model hold what was added to its base only: changes of weights, and controls.

    What it does not hold stays when it is loaded.
    """
    model.register_state_dict_post_hook(_without_base)
    model.register_load_state_dict_pre_hook(_with_own_base)


def _without_base(model: nn.Module, state: dict[str, object], prefix: str, _: object) -> None:
    parts = tuple(f"{prefix}{path}." for path, module in model.named_modules() if isinstance(module, Delta | Control))
    if parts:  # none in a merged model
        for key in [key for key in state if key.startswith(prefix) and not key.startswith(parts)]:
            if not key.endswith("_extra_state"):  # words of a conditioner, and no tensor
                del state[key]


def _with_own_base(model: nn.Module, state: dict[str, object], prefix: str, *_: object) -> None:
    inner = tuple(f"{path}." for path, module in model.named_modules() if isinstance(module, Delta | Control))
    if inner:
        for path, module in model.named_modules():
            own = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
            for key, value in own.items():
                name = f"{path}.{key}".lstrip(".")
                if not name.startswith(inner) and key not in module._non_persistent_buffers_set:
                    state.setdefault(f"{prefix}{name}", value)


@contextmanager
def disabled(model: nn.Module) -> Iterator[None]:
    """Inside the `with` the model is its base."""
    deltas = [delta for *_, delta in changed(model)]
    try:
        for delta in deltas:
            delta.enabled = False
        yield
    finally:
        for delta in deltas:
            delta.enabled = True


@torch.no_grad()
def changes(model: nn.Module) -> dict[str, Tensor]:
    """{name of a weight in the base: ΔW} of an adapted model."""
    return {name: delta.change().detach().clone() for name, *_, delta in changed(model)}


@torch.no_grad()
def add(model: nn.Module, changes: Mapping[str, Tensor], weight: float = 1.0) -> None:
    """Add weight·ΔW to the weights of a base, in place.

    Args:
        model: the base, without an adapter.
        changes: {name of a weight: ΔW}.
        weight: what ΔW is multiplied by.

    Raises:
        RunError: the base has no such weight, or one of another shape.
    """
    parameters = dict(model.named_parameters())
    for name, change in changes.items():
        if name not in parameters or parameters[name].shape != change.shape:
            there = f"of shape {tuple(parameters[name].shape)}" if name in parameters else "none"
            raise RunError(
                f"the adapter changes the weight {name} of shape {tuple(change.shape)}, and the base has {there}: give "
                "an adapter that was trained on this base."
            )
        parameters[name].add_(weight * change.to(parameters[name]))
