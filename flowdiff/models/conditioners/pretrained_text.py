"""Conditions from captions by any pretrained encoder of texts: T5, BERT and what AutoModel reads."""

from __future__ import annotations

from typing import Any

from pydantic import PositiveInt

from flowdiff.models.conditioners.frozen import FrozenText
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
        precision: of weights and computation of the encoder, float32 | float16 | bfloat16; the embeddings are float16.
        **settings: those of FrozenText.

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
        precision: Precision,
        **settings: Any,
    ):
        (name,) = named(model, "pretrained_text")
        super().__init__(
            [EncoderText(name, locate(name), max_length, precision, pooling)],
            **settings,
        )
