"""Every registered flow in every variant of its Literal settings, at the start and far from the identity."""

import functools
import typing
from collections.abc import Callable

import pytest
import torch

from flowdiff import registry
from flowdiff.config import defaults
from flowdiff.errors import ConfigurationError
from flowdiff.models.flows.base import Flow
from flowdiff.testing.flows import TOKEN_DIM
from flowdiff.testing.inputs import perturb

SMOOTH = ["softplus", "swish", "tanh"]  # C^∞ activations, required by the laws of second derivatives
# Settings for every flow that has them: narrow nets and few blocks keep the tests fast.
SMALL = {"hidden": 16, "n_flows": 3, "deep_layers": 1}
SMALL_OF = {  # further settings of single flows
    "ffjord": {"n_flows": 1, "steps": 5},
    "naf": {"n_flows": 2, "signal": 4, "monotone_hidden": 8},
    "tarflow": {"n_flows": 2},
}
Case = tuple[str, dict]


@functools.cache
def variants() -> list[Case]:
    """(flow name, overrides): each flow with its YAML's settings, and with every other choice of a Literal setting."""
    cases = []
    for name in registry.names("flow"):
        component, node = registry.resolve("flow", name), defaults("flow", name)
        hints = typing.get_type_hints(component.__init__)
        cases.append((name, {}))
        for key in registry.hyperparameters(component):
            if typing.get_origin(hints[key]) is typing.Literal:
                cases += [(name, {key: choice}) for choice in typing.get_args(hints[key]) if choice != node[key]]
    return cases


def every_flow(
    *shapes: tuple[int, ...], max_shapes: int = 1, having: Callable[[Flow], bool] | None = None
) -> pytest.MarkDecorator:
    """Parametrise a test by (case, shape), as `pairs` has them."""
    return pytest.mark.parametrize(("case", "shape"), pairs(*shapes, max_shapes=max_shapes, having=having), ids=label)


def every_flow_and_activation(
    activations: list[str], *shapes: tuple[int, ...], having: Callable[[Flow], bool] | None = None
) -> pytest.MarkDecorator:
    """Parametrise by (case, shape, activation): a flow as its YAML has it with all, other variants with the first."""
    triples = [
        (case, shape, activation)
        for case, shape in pairs(*shapes, having=having)
        for activation in (activations[:1] if case[1] else activations)
    ]
    return pytest.mark.parametrize(("case", "shape", "activation"), triples, ids=label)


def pairs(
    *shapes: tuple[int, ...], max_shapes: int = 1, having: Callable[[Flow], bool] | None = None
) -> list[tuple[Case, tuple[int, ...]]]:
    """(case, shape): every variant on the first `max_shapes` of the shapes that it accepts.

    having: keep only the flows for which it is true, such as `lambda flow: flow.identity_at_start`.
    """
    found = []
    for case in variants():
        accepted = [shape for shape in shapes if takes(case, shape)][:max_shapes]
        found += [(case, shape) for shape in accepted if having is None or having(make_flow(case, shape, 2))]
    return found


@functools.cache
def _takes(name: str, overrides: tuple, shape: tuple[int, ...]) -> bool:
    try:
        make_flow((name, dict(overrides)), shape, 2)
    except ConfigurationError:
        return False
    return True


def takes(case: Case, shape: tuple[int, ...]) -> bool:
    """Whether the variant accepts samples of this shape."""
    return _takes(case[0], tuple(case[1].items()), shape)


def label(value) -> str:
    """The id of a case, a shape or an activation in the name of a test."""
    if isinstance(value, str):
        return value
    if isinstance(value[0], str):
        return "-".join([value[0], *map(str, value[1].values())])
    return "x".join(map(str, value))


def make_flow(
    case: Case,
    shape: tuple[int, ...],
    embed_dim: int,
    activation: str = "softplus",
    far: bool = False,
    seed: int = 0,
    token_dim: int = TOKEN_DIM,
) -> Flow:
    """The flow in float64 with small nets, in evaluation mode; `far` perturbs every parameter by an initial weight.

    Image flows get as many levels as the sides can be halved.
    """
    name, overrides = case
    torch.manual_seed(seed)
    act = registry.create("activation", activation)
    runtime = {"shape": shape, "embed_dim": embed_dim, "activation": act, "token_dim": token_dim}
    settings = {**SMALL, "levels": halvings(shape), **SMALL_OF.get(name, {}), **overrides}
    flow = registry.create("flow", name, **runtime, **settings).double().eval()
    # Two levels are twice as deep: a smaller perturbation keeps rounding errors below the tests' tolerances.
    return perturb(flow, 0.5 / halvings(shape) ** 0.5) if far else flow


def halvings(shape: tuple[int, ...]) -> int:
    """Number of times that the sides of an image can be halved, at least 1."""
    n = 1
    while all(side % 2 ** (n + 1) == 0 for side in shape[1:]) and len(shape) == 3:
        n += 1
    return n
