"""Conditions from captions by any pretrained encoder of texts: T5, BERT and what AutoModel reads."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt

from flowdiff.models.conditioners.frozen import FrozenText, NullCondition
from flowdiff.models.conditioners.pretrained import EncoderText, Locate, Pooling, Precision, named
from flowdiff.models.conditioners.text import NEEDS_CAPTIONS
from flowdiff.registry import register


@register("conditioner", "pretrained_text", requires=[NEEDS_CAPTIONS])
class PretrainedTextConditioner(FrozenText):
    """The tokens of a frozen encoder of texts, such as T5, BERT or MiniLM, and a vector pooled from them.

    tokens = encoder(caption),  vector = pool(tokens)

    Padding is masked, in training and in sampling.

    Args:
        locate: how the user named a model → its folder or its name on the hub.
        model: folder as `save_pretrained` writes it, or name on the Hugging Face hub, with @revision behind it if
            wanted; required.
        pooling: the vector: mean of the tokens, the first token (cls) or the last one (eos).
        max_length: tokens of a caption that are read, ≥ 1, those that mark its ends included; None for as many as the
            model can read.
        null_condition: the condition without a caption: empty, the encoded empty caption; zeros; learned.
        drop: probability in [0, 1) of replacing a caption by the null condition in training.
        precision: of weights and computation of the encoder, float32 | float16 | bfloat16; the embeddings are float16.
        chunk_size: captions that are encoded together, ≥ 1; it changes speed and memory.
        cache_dir: folder of the embeddings.

    Raises:
        ConfigurationError: no model is given, it reads fewer tokens than max_length, or the package transformers is
            missing.
        RunError: the model cannot be read or downloaded.

    Source: Raffel et al., Exploring the limits of transfer learning with a unified text-to-text transformer, 2020;
        Reimers, Gurevych, Sentence-BERT, 2019 (the mean).
    """

    def __init__(
        self,
        locate: Locate,
        *,
        model: str | None,
        pooling: Pooling,
        max_length: PositiveInt | None,
        null_condition: NullCondition,
        drop: Annotated[float, Field(ge=0, lt=1)],
        precision: Precision,
        chunk_size: PositiveInt,
        cache_dir: str,
    ):
        (name,) = named(model, "pretrained_text")
        super().__init__(
            [EncoderText(name, locate(name), max_length, precision, pooling)],
            null_condition=null_condition,
            drop=drop,
            chunk_size=chunk_size,
            cache_dir=cache_dir,
        )
