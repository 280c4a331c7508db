"""Conditions from captions by the text encoder of a CLIP model."""

from __future__ import annotations

from typing import Any

from pydantic import PositiveInt

from flowdiff.models.conditioners.frozen import FrozenText
from flowdiff.models.conditioners.pretrained import ClipText, Layer, Locate, Precision, named
from flowdiff.models.conditioners.text import NEEDS_CAPTIONS
from flowdiff.registry import register


@register("conditioner", "clip", requires=[NEEDS_CAPTIONS])
class ClipConditioner(FrozenText):
    """The tokens and the pooled vector of a frozen CLIP text encoder, or of two side by side as in SDXL.

    tokens = [CLIP₁(caption), CLIP₂(caption)],  vector = [pooled₁, pooled₂]

    The pooled vector is the projected one if the model has a projection. Padding is masked in training and in sampling.

    Args:
        locate: how the user named a model → its folder or its name on the hub.
        model: folder as `save_pretrained` writes it, run folder of network=clip, or name on the Hugging Face hub, with
            @revision behind it if wanted; a list of them is read side by side; required.
        layer: last, behind the final LayerNorm (as Stable Diffusion 1), or penultimate, the input of the last layer
            (as SDXL).
        max_length: tokens of a caption that are read, ≥ 3, its two ends included; None for as many as the model can
            read.
        precision: of weights and computation of the encoder, float32 | float16 | bfloat16; the embeddings are float16.
        **settings: those of FrozenText.

    Raises:
        ConfigurationError: no model is given, it is not a CLIP model, it reads fewer tokens than max_length, several
            models split texts differently, or the package transformers is missing.
        RunError: a model cannot be read or downloaded.

    Source: Radford et al., Learning transferable visual models from natural language supervision, 2021; Podell et al.,
        SDXL, 2023.
    """

    def __init__(
        self,
        locate: Locate,
        *,
        model: str | list[str] | None,
        layer: Layer,
        max_length: PositiveInt | None,
        precision: Precision,
        **settings: Any,
    ):
        super().__init__(
            [ClipText(name, locate(name), max_length, precision, layer) for name in named(model, "clip")],
            **settings,
        )
