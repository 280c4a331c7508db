"""Small flows and score flows, and normal numbers, for the tests of single families."""

import torch

from flowdiff import registry
from flowdiff.models.flows.base import Flow
from flowdiff.models.networks.base import AutoencoderNetwork
from flowdiff.models.networks.score_flow import ScoreFlow


def normal(*sizes: tuple[int, ...], seed: int = 1, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:
    """Standard normal tensors of these sizes, drawn in turn from one generator."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator, dtype=dtype) for size in sizes]


def flow_of(name: str, shape: tuple[int, ...], embed_dim: int = 4, seed: int = 0, act: str = "swish", **given) -> Flow:
    """The flow of a seed; `given` holds its settings, and token_dim where it reads tokens."""
    torch.manual_seed(seed)
    runtime = {"shape": shape, "embed_dim": embed_dim, "activation": registry.create("activation", act)}
    return registry.create("flow", name, **runtime, **given)


def score_flow_of(flow: Flow, shape: tuple[int, ...], whitening="isotropic", embed_dim: int = 8, **given) -> ScoreFlow:
    """The score flow of a flow and of a whitening, which is given or named."""
    if isinstance(whitening, str):
        whitening = registry.create("whitening", whitening, shape=shape)
    runtime = {"flow": flow, "whitening": whitening, "shape": shape, "embed_dim": embed_dim}
    return registry.create("network", "score_flow", **runtime, **{"cond_dim": 0, **given})


def small_vae(shape: tuple[int, ...] = (1, 8, 8), seed: int = 0, **given) -> AutoencoderNetwork:
    """network=vae with two narrow levels, whose latent is a vector of 5 numbers if `given` names no other."""
    torch.manual_seed(seed)
    settings = {"channels": [4, 8], "norm_groups": 2, "latent_dim": 5, **given}
    return registry.create("network", "vae", shape=shape, activation=registry.create("activation", "swish"), **settings)
