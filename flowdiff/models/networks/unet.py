"""The UNet baseline, F(x, c_noise, c): diffusers' UNet2DModel, the condition's vector added to its time embedding.

Of a condition with tokens it is UNet2DConditionModel. Each of its attentions reads the image, then the tokens,

    h ← h + A(h, h),    h ← h + A(h, m),    h ← h + GEGLU(h),        A(h, m) = W·softmax(Q(h)·K(m)ᵀ/√d)·V(m)

with m = (0, token_1, …, token_L): K and V have no offset, so the zero adds nothing, and a pixel may leave all tokens
alone. Where no token counts it does.

The sinusoids of both expect a timestep t of 0 … 1000 with frequencies 1e-4 … 1. They are given

    t = 100·asinh(c_noise)

which for σ in 0.002 … 80 is −120 … 90 if c_noise = ¼·ln σ and 0.2 … 500 if c_noise = σ (sines and cosines do
not mind the sign). A tenth of a decade of σ then turns the fastest sinusoid by 2 to 20 radians, less only
where c_noise = σ < 0.1.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.networks.base import Network
from flowdiff.models.nn.embeddings import condition_tokens, condition_vector
from flowdiff.models.nn.inject import zero_init
from flowdiff.registry import register

TIMESTEPS_PER_UNIT = 100.0  # of asinh(c_noise)


@register("network", "unet")
class UNet(Network):
    """UNet with residual blocks, group norm and self-attention, for images from 8×8 up; F = 0 at the start.

    x (B, C, H, W), c_noise (B,) of any scaling, cond.vector (B, cond_dim) or none if cond_dim = 0, cond.tokens
    (B, L, token_dim) or none → F like x.
    channels: widths of the levels, from full resolution down, each level after the first halving H and W;
    layers_per_block: residual blocks of a level on the way down (one more on the way up); attention: whether
    each level attends, to the image and to the tokens (the middle block does as the deepest level); norm_groups:
    groups of every group norm, a divisor of all channels; dropout: rate inside the residual blocks.
    Raises ConfigurationError for vectors, sizes that the levels do not divide, and settings that do not fit;
    ValueError for a condition that does not.
    Source: Ronneberger et al., "U-Net", 2015; Ho et al., "Denoising Diffusion Probabilistic Models", 2020; of the
    tokens: Rombach et al., "High-Resolution Image Synthesis with Latent Diffusion Models", 2022.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        cond_dim: int,
        token_dim: int = 0,
        *,
        channels: Annotated[list[PositiveInt], Field(min_length=1)],
        layers_per_block: PositiveInt,
        attention: list[bool],
        norm_groups: PositiveInt,
        dropout: Annotated[float, Field(ge=0, lt=1)],
    ):
        super().__init__()
        check_image_size(shape, len(channels))
        if len(attention) != len(channels):
            raise ConfigurationError(
                f"network.attention has {len(attention)} entries and network.channels {len(channels)}: give "
                "one true or false for each level."
            )
        if any(width % norm_groups for width in channels):
            raise ConfigurationError(
                f"network.channels={list(channels)} cannot be split into network.norm_groups={norm_groups} "
                "groups: give multiples of norm_groups."
            )
        if token_dim > 0 and not any(attention):
            raise ConfigurationError(
                f"network.attention={list(attention)} leaves no level to read the condition's tokens: make one of its "
                "entries true, or take a conditioner without tokens."
            )
        from diffusers import UNet2DConditionModel, UNet2DModel

        self.cond_dim = cond_dim
        self.token_dim = token_dim
        self.condition = nn.Linear(cond_dim, 4 * channels[0]) if cond_dim > 0 else None
        attends = "CrossAttn" if token_dim > 0 else "Attn"
        settings: dict[str, Any] = {
            "in_channels": shape[0],
            "out_channels": shape[0],
            "block_out_channels": tuple(channels),
            "layers_per_block": layers_per_block,
            "down_block_types": tuple(f"{attends if a else ''}DownBlock2D" for a in attention),
            "up_block_types": tuple(f"{attends if a else ''}UpBlock2D" for a in reversed(attention)),
            "norm_num_groups": norm_groups,
            "dropout": dropout,
            # "identity" adds class_labels (B, 4·channels[0]) to the time embedding as they are.
            "class_embed_type": "identity" if cond_dim > 0 else None,
        }
        if token_dim > 0:
            self.unet = UNet2DConditionModel(
                **settings,
                mid_block_type="UNetMidBlock2DCrossAttn" if attention[-1] else "UNetMidBlock2D",
                attention_head_dim=1,  # what it calls so is the number of heads: one as wide as its level
                cross_attention_dim=token_dim,
            )
        else:
            self.unet = UNet2DModel(
                **settings,
                add_attention=attention[-1],
                attention_head_dim=None,  # one head as wide as its level
            )
        zero_init(self.unet.conv_out)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Conditioning | None = None) -> Tensor:
        vector, tokens = condition_vector(cond, self.cond_dim), condition_tokens(cond, self.token_dim)
        given = {"class_labels": None if vector is None else self.condition(vector)}
        if self.token_dim > 0:
            given["encoder_hidden_states"] = memory = x.new_zeros(len(x), 1, self.token_dim)
        if tokens is not None:
            counts = cond.counts()
            # The mask takes 10⁴ off a logit, which is no bound to what a masked token may hold.
            tokens = tokens.masked_fill(~counts[..., None], 0)
            given["encoder_hidden_states"] = torch.cat([memory, tokens], dim=1)
            given["encoder_attention_mask"] = F.pad(counts, (1, 0), value=True)
        t = TIMESTEPS_PER_UNIT * torch.asinh(c_noise)
        return self.unet(x, t, **given, return_dict=False)[0]


def check_image_size(shape: tuple[int, ...], levels: int) -> None:
    """Refuse samples that cannot be halved levels − 1 times, naming the sizes that work."""
    if len(shape) != 3:
        raise ConfigurationError(
            f"network=unet was given samples of shape {tuple(shape)}, which are not images (C, H, W): take "
            "network=mlp or network=score_flow for vectors."
        )
    multiple = 2 ** (levels - 1)
    height, width = shape[1:]
    if height % multiple or width % multiple:
        most = levels
        while height % 2 ** (most - 1) or width % 2 ** (most - 1):
            most -= 1
        raise ConfigurationError(
            f"network=unet with {levels} levels takes images whose sides are multiples of {multiple} "
            f"({multiple}, {2 * multiple}, {3 * multiple}, …), not {height}×{width}: give network.channels "
            f"and network.attention at most {most} {'entry' if most == 1 else 'entries'} or resize images."
        )
