"""The UNet baseline, F(x, c_noise, c): diffusers' UNet2DModel, with the condition's vector added to the time embedding.

If the condition has tokens it is UNet2DConditionModel, in which every attention block reads the image, then the tokens,

    h ← h + A(h, h),    h ← h + A(h, m),    h ← h + GEGLU(h),        A(h, m) = W·softmax(Q(h)·K(m)ᵀ/√d)·V(m)

with m = (0, token_1, …, token_L). K and V have no bias, so the entry 0 has the value 0: a pixel that attends to it
reads no token. If no token counts, every pixel does.

The time embedding of both models expects a timestep t in 0 … 1000 and has frequencies 1e-4 … 1. It gets

    t = 100·asinh(c_noise)

which for σ in 0.002 … 80 is −120 … 90 if c_noise = ¼·ln σ, and 0.2 … 500 if c_noise = σ (negative t is fine for sines
and cosines). Then a tenth of a decade of σ changes the phase of the fastest sinusoid by 2 to 20 radians, and by less
only if c_noise = σ < 0.1.

A control is a ControlNet: a trainable copy of the way down and of the middle, which also reads the hint and whose
outputs are added to those of the UNet by 1×1 convolutions that are 0 at the start.
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple, final

import torch
import torch.nn.functional as F
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.networks.base import Network
from flowdiff.models.nn.control import Control, Controllable, HintPart, trainable_copy
from flowdiff.models.nn.embeddings import condition_tokens, condition_vector
from flowdiff.models.nn.inject import zero_init
from flowdiff.registry import register

TIMESTEPS_PER_UNIT = 100.0  # t per unit of asinh(c_noise)


@register("network", "unet")
class UNet(Network, Controllable):
    """UNet with residual blocks, group norm and self-attention, for images from 8×8 up; F = 0 at the start.

    Args:
        shape: shape of one image, (C, H, W).
        cond_dim: width of cond.vector (B, cond_dim), 0 without a vector.
        token_dim: width of cond.tokens (B, L, token_dim), 0 without tokens.
        channels: width of each level, full resolution first; every level after the first halves H and W.
        layers_per_block: residual blocks of a level on the way down, ≥ 1; there is one more on the way up.
        attention: for each level, whether it attends to the image and the tokens; the middle block does what the last
            level does.
        norm_groups: groups of every group norm, ≥ 1, a divisor of all channels.
        dropout: dropout rate in [0, 1) inside the residual blocks.

    Raises:
        ConfigurationError: the samples are not images, or their sides cannot be halved for every level.
        ConfigurationError: attention, channels and norm_groups do not fit each other, or no level reads the tokens.
        ValueError: `forward` gets a condition whose vector or tokens have another width.

    Source: Ronneberger, Fischer, Brox, U-Net, 2015; Ho, Jain, Abbeel, Denoising diffusion probabilistic models, 2020;
    for the tokens: Rombach et al., High-resolution image synthesis with latent diffusion models, 2022.
    """

    takes_hint = True

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
                f"network.attention={list(attention)} has no level that reads the condition's tokens: set one of its "
                "entries to true, or take a conditioner without tokens."
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
            # With "identity", class_labels (B, 4·channels[0]) are added to the time embedding unchanged.
            "class_embed_type": "identity" if cond_dim > 0 else None,
        }
        unet: Any  # diffusers' lazy imports hide its types
        if token_dim > 0:
            unet = UNet2DConditionModel(
                **settings,
                mid_block_type="UNetMidBlock2DCrossAttn" if attention[-1] else "UNetMidBlock2D",
                attention_head_dim=1,  # diffusers gives this name to the number of heads: one, as wide as its level
                cross_attention_dim=token_dim,
            )
        else:
            unet = UNet2DModel(
                **settings,
                add_attention=attention[-1],
                attention_head_dim=None,  # one head as wide as its level
            )
        zero_init(unet.conv_out)
        self.unet: nn.Module = unet
        last = len(channels) - 1
        levels = [[width] * (layers_per_block + (i < last)) for i, width in enumerate(channels)]
        self.skip_widths = [channels[0], *(width for level in levels for width in level)]
        self.controls = nn.ModuleList()

    def make_control(self, part: HintPart) -> Control:
        return UNetControl(self, part)

    def forward(self, x: Tensor, c_noise: Tensor, cond: Conditioning | None = None) -> Tensor:
        cond = cond or Conditioning()
        vector, tokens = condition_vector(cond, self.cond_dim), condition_tokens(cond, self.token_dim)
        inputs: dict[str, Any] = {"class_labels": None if self.condition is None else self.condition(vector)}
        if self.token_dim > 0:
            inputs["encoder_hidden_states"] = x.new_zeros(len(x), 1, self.token_dim)
        if tokens is not None:
            mask = cond.token_mask()
            # diffusers subtracts 10⁴ from the logits of masked tokens, too little if a masked token is very large.
            tokens = tokens.masked_fill(~mask[..., None], 0)
            inputs["encoder_hidden_states"] = torch.cat([inputs["encoder_hidden_states"], tokens], dim=1)
            inputs["encoder_attention_mask"] = F.pad(mask, (1, 0), value=True)
        t = TIMESTEPS_PER_UNIT * torch.asinh(c_noise)
        controls = self.active(cond)
        if not controls:
            return self.unet(x, t, **inputs, return_dict=False)[0]
        unet: Any = self.unet
        read = ("class_labels", "encoder_hidden_states", "encoder_attention_mask")
        given = Given(t, *(inputs.get(key) for key in read))
        on_way = down(unet, unet.conv_in(x), given)
        for control in controls:
            added = control(x, cond, given)
            skips = [skip + control.strength * more for skip, more in zip(on_way.skips, added.skips, strict=True)]
            on_way = OnWay(skips, on_way.middle + control.strength * added.middle)
        return up(self.unet, on_way, given)


class Given(NamedTuple):
    """What the blocks of diffusers' UNet read besides the image.

    Attributes:
        t: timesteps (B,).
        class_labels: (B, 4·channels[0]), added to the time embedding; None without.
        tokens: (B, L, token_dim); None without.
        mask: (B, L) bool; None if all tokens count.
    """

    t: Tensor
    class_labels: Tensor | None
    tokens: Tensor | None
    mask: Tensor | None

    def time_embedding(self, unet: Any) -> Tensor:
        """The embedding of t and of the class labels by a UNet."""
        e = unet.time_embedding(unet.time_proj(self.t).to(unet.dtype))
        return e if self.class_labels is None else e + unet.class_embedding(self.class_labels).to(unet.dtype)

    def attended(self, block: nn.Module) -> dict[str, Tensor]:
        """The arguments of a block of diffusers that attends to the tokens; none for another one."""
        if self.tokens is None or not getattr(block, "has_cross_attention", False):  # as diffusers asks its blocks
            return {}
        if self.mask is None:
            return {"encoder_hidden_states": self.tokens}
        bias = (1 - self.mask.to(self.tokens.dtype)) * -10000.0  # as in UNet2DConditionModel.forward
        return {"encoder_hidden_states": self.tokens, "encoder_attention_mask": bias[:, None]}


class OnWay(NamedTuple):
    """What goes up in a UNet: the skip connections, from the first on, and the output of the middle."""

    skips: list[Tensor]
    middle: Tensor


def down(unet: Any, h: Tensor, given: Given) -> OnWay:
    """The way down and the middle of diffusers' UNet, from the output of its first convolution."""
    e = given.time_embedding(unet)
    skips = [h]
    for block in unet.down_blocks:
        h, more = block(hidden_states=h, temb=e, **given.attended(block))
        skips += more
    return OnWay(skips, unet.mid_block(h, e, **given.attended(unet.mid_block)))


def up(unet: Any, on_way: OnWay, given: Given) -> Tensor:
    """The way up of diffusers' UNet, and its output."""
    e = given.time_embedding(unet)
    skips, h = list(on_way.skips), on_way.middle
    for block in unet.up_blocks:
        count = len(block.resnets)
        skips, mine = skips[:-count], tuple(skips[-count:])
        h = block(hidden_states=h, temb=e, res_hidden_states_tuple=mine, **given.attended(block))
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(h)))


@final
class UNetControl(Control):
    """ControlNet: a trainable copy of the way down and of the middle of a UNet; 0 at the start.

    residual_i = Z_i·copy_i(conv_in(x) + E(h)),  E the hint encoder; its last layer and all Z_i are 0 at the start

    Args:
        net: the UNet.
        part: the hint.
    """

    def __init__(self, net: UNet, part: HintPart):
        super().__init__(part)
        copy: Any = trainable_copy(net.unet)
        for unused in ("up_blocks", "conv_norm_out", "conv_act", "conv_out"):
            delattr(copy, unused)
        self.copy: nn.Module = copy
        width = net.skip_widths[0]
        self.encoder = nn.Sequential(
            nn.Conv2d(part.shape[0], 16, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(16, width, 3, padding=1),
            nn.SiLU(),
            zero_init(nn.Conv2d(width, width, 3, padding=1)),
        )
        self.outer = nn.ModuleList(zero_init(nn.Conv2d(w, w, 1)) for w in net.skip_widths)
        self.outer_middle = zero_init(nn.Conv2d(net.skip_widths[-1], net.skip_widths[-1], 1))
        self.to(next(net.unet.parameters()))

    def forward(self, x: Tensor, cond: Conditioning, given: Given) -> OnWay:
        copy: Any = self.copy
        on_way = down(copy, copy.conv_in(x) + self.encoder(self.hint(cond)), given)
        skips = [outer(skip) for outer, skip in zip(self.outer, on_way.skips, strict=True)]
        return OnWay(skips, self.outer_middle(on_way.middle))


def check_image_size(shape: tuple[int, ...], levels: int) -> None:
    """Raise ConfigurationError unless shape is (C, H, W) and H and W can be halved levels − 1 times."""
    if len(shape) != 3:
        raise ConfigurationError(
            f"network=unet was given samples of shape {tuple(shape)}, which are not images (C, H, W): set "
            "network=mlp or network=score_flow for vectors."
        )
    multiple = 2 ** (levels - 1)
    height, width = shape[1:]
    if height % multiple or width % multiple:
        most = levels
        while height % 2 ** (most - 1) or width % 2 ** (most - 1):
            most -= 1
        raise ConfigurationError(
            f"network=unet with {levels} levels needs images whose sides are multiples of {multiple} "
            f"({multiple}, {2 * multiple}, {3 * multiple}, …), not {height}×{width}: give network.channels "
            f"and network.attention at most {most} {'entry' if most == 1 else 'entries'}, or resize the images."
        )
