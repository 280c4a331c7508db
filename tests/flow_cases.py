"""Every registered flow in every variant its settings name, near the identity and far from it."""

from __future__ import annotations

import typing

import torch
from torch import nn

from flowdiff import registry

SMOOTH = ["softplus", "swish", "tanh"]  # activations that are C^∞, as the second-derivative laws need


def variants() -> list:
    """(flow name, overrides): one case per choice of each Literal setting of a flow, or one if it has none."""
    cases = []
    for name in registry.names("flow"):
        component = registry.resolve("flow", name)
        hints = typing.get_type_hints(component.__init__)
        keys = registry.hyperparameters(component)
        settings = [key for key in keys if typing.get_origin(hints[key]) is typing.Literal]
        choices = [(name, {key: choice}) for key in settings for choice in typing.get_args(hints[key])]
        cases += choices or [(name, {})]
    return cases


def label(case) -> str:
    name, overrides = case
    return "-".join([name, *map(str, overrides.values())])


def make_flow(case, shape, embed_dim: int, activation: str = "softplus", far: bool = False) -> nn.Module:
    """The flow in float64 with small nets; `far` moves every parameter by a usual initial weight."""
    name, overrides = case
    torch.manual_seed(0)
    act = registry.build("activation", activation)
    # `hidden` is taken by the flows that have nets; narrow ones keep the tests fast.
    runtime = {"shape": shape, "embed_dim": embed_dim, "activation": act, "hidden": 24, **overrides}
    flow = registry.build("flow", name, **runtime).double()
    return perturb(flow) if far else flow


def perturb(module: nn.Module, gain: float = 0.5, seed: int = 1) -> nn.Module:
    """Add gain·N(0, 1/fan_in) to every parameter: zero-initialised layers get outputs of order one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            fan_in = p.shape[-1] if p.ndim > 1 else 1
            p += gain * torch.randn(p.shape, generator=generator).to(p) / fan_in**0.5
    return module
