"""Conditions from captions by the text encoder of a CLIP model."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt

from flowdiff.models.conditioners.frozen import FrozenText, NullCondition
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
        null_condition: the condition without a caption: empty, the encoded empty caption; zeros; learned.
        drop: probability in [0, 1) of replacing a caption by the null condition in training.
        precision: of weights and computation of the encoder, float32 | float16 | bfloat16; the embeddings are float16.
        chunk_size: captions that are encoded together, ≥ 1; it changes speed and memory.
        cache_dir: folder of the embeddings.

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
        null_condition: NullCondition,
        drop: Annotated[float, Field(ge=0, lt=1)],
        precision: Precision,
        chunk_size: PositiveInt,
        cache_dir: str,
    ):
        super().__init__(
            [ClipText(name, locate(name), max_length, precision, layer) for name in named(model, "clip")],
            null_condition=null_condition,
            drop=drop,
            chunk_size=chunk_size,
            cache_dir=cache_dir,
        )
