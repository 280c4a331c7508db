"""Conditions from the words of captions: a small transformer that is trained with the model, or their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioners.base import Conditioner, Given, LabelledText, example_captions
from flowdiff.models.conditioning import Conditioning
from flowdiff.registry import Requirement, register

if TYPE_CHECKING:
    from tokenizers import Tokenizer

UNKNOWN, END = 0, 1  # ids of the word that training has not seen, and of the end of a caption


NEEDS_CAPTIONS = Requirement(
    "dataset",
    fits=lambda dataset, node: (
        bool(dataset.has_captions) or node.get("caption_template") is not None  # type: ignore[attr-defined]  # a DataModule
    ),
    reason="this conditioner reads captions, and the data set has none",
    remedy="set conditioner=class or none, or dataset.caption_template='a photo of {}', or a data set with captions, "
    "e.g. dataset=captioned_digits",
)


class Words(Conditioner):
    """A conditioner that reads the words of a caption, by a vocabulary that is fitted to the training captions.

    The vocabulary is in lower case; a word that the training captions lack is read as "unknown". Every caption ends
    with a word of its own, so that the empty one has a word, too.

    Args:
        max_length: words of a caption that are read, ≥ 1; the rest is cut off.
        max_words: largest size of the vocabulary, ≥ 3; the most frequent words are kept.
    """

    reads_text = True

    def __init__(self, max_length: int, max_words: int):
        super().__init__()
        self.max_length = max_length
        self.max_words = max_words
        self.tokenizer: Tokenizer | None = None
        self.prompts: tuple[str, ...] = ()
        self._rows: dict[str, list[int]] = {}  # the word ids of captions that were read before

    def fit(self, captions: Sequence[str], labels: Sequence[int] | None = None) -> None:
        self.tokenizer = _fitted(captions, self.max_words)
        self.prompts = example_captions(captions)
        self._rows.clear()

    def examples(self) -> Sequence[str]:
        return self.prompts

    def words(self, given: Given, device: torch.device) -> tuple[Tensor, Tensor]:
        """The ids of the words of B captions, (B, L) int64, and which of them count, (B, L) bool."""
        assert not isinstance(given, Tensor | LabelledText)  # `given` reads captions
        rows = [self._words(text) for text in given]
        longest = max(map(len, rows))
        words = torch.tensor([row + [END] * (longest - len(row)) for row in rows], device=device)
        mask = torch.tensor([len(row) for row in rows], device=device)[:, None] > torch.arange(longest, device=device)
        return words, mask

    def null(self, n: int) -> Conditioning:
        empty = self.condition([""])
        assert empty is not None  # a conditioner of captions gives conditions
        return empty[torch.zeros(n, dtype=torch.int64, device=empty.device)]

    def cut(self, text: str) -> str:
        """The words of a prompt that are not read, because it is longer than max_length; usually empty."""
        encoded = self.fitted().encode(text)
        return text[encoded.offsets[self.max_length][0] :] if len(encoded.ids) > self.max_length else ""

    def get_extra_state(self) -> dict[str, Any]:
        return {"tokenizer": self.tokenizer and self.tokenizer.to_str(), "prompts": list(self.prompts)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        from tokenizers import Tokenizer

        self.tokenizer = state["tokenizer"] and Tokenizer.from_str(state["tokenizer"])
        self.prompts = tuple(state["prompts"])
        self._rows.clear()

    def fitted(self) -> Tokenizer:
        """The vocabulary; ConfigurationError if there is none yet."""
        if self.tokenizer is None:
            raise ConfigurationError(
                "this conditioner has no vocabulary yet: call fit(captions), or load a trained run."
            )
        return self.tokenizer

    def _words(self, text: str) -> list[int]:
        if text not in self._rows:
            self._rows[text] = [*self.fitted().encode(text).ids[: self.max_length], END]
        return self._rows[text]


@register("conditioner", "text", requires=[NEEDS_CAPTIONS])
class TextConditioner(Words):
    """A transformer over the words of a caption, trained with the model; the null condition is the empty caption.

    h_i = embedding(word_i) + position_i;  tokens = Transformer(h), every word attends to all;  vector = their mean

    The vocabulary is that of the training captions, in lower case; a word that they lack is read as "unknown". Every
    caption ends with a word of its own, so that the empty one has a token, too.

    Args:
        dim: width of tokens and vector, ≥ 1, a multiple of heads.
        layers: number of layers, ≥ 1.
        heads: number of attention heads, ≥ 1.
        max_length: words of a caption that are read, ≥ 1; the rest is cut off.
        max_words: largest size of the vocabulary, ≥ 3; the most frequent words are kept.
        drop: probability in [0, 1) of replacing a caption by the empty one in training.

    Raises:
        ConfigurationError: dim is not a multiple of heads, or the package tokenizers is missing.

    Source: Vaswani et al., Attention is all you need, 2017; the tokenizer is WordLevel of the package tokenizers.
    """

    def __init__(
        self,
        *,
        dim: PositiveInt,
        layers: PositiveInt,
        heads: PositiveInt,
        max_length: PositiveInt,
        max_words: Annotated[int, Field(ge=3)],
        drop: Annotated[float, Field(ge=0, lt=1)],
    ):
        super().__init__(max_length, max_words)
        if dim % heads:
            raise ConfigurationError(
                f"conditioner.dim={dim} is not a multiple of conditioner.heads={heads}: each head takes an equal part."
            )
        self.dim = self.token_dim = dim
        self.drop = drop
        self.embedding = nn.Embedding(max_words, dim)
        # As large as an embedding: the order of the words tells which of two digits is the left one.
        self.position = nn.Parameter(torch.randn(max_length + 1, dim))
        layer = nn.TransformerEncoderLayer(
            dim, heads, 4 * dim, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, nn.LayerNorm(dim), enable_nested_tensor=False)

    def condition(self, given: Given) -> Conditioning:
        words, mask = self.words(given, self.position.device)
        tokens = self.encoder(self.embedding(words) + self.position[: words.shape[1]], src_key_padding_mask=~mask)
        weight = mask[..., None].to(tokens.dtype)
        tokens = tokens * weight
        return Conditioning(tokens.sum(1) / weight.sum(1), tokens, mask)


@register(
    "conditioner",
    "word_ids",
    requires=[
        NEEDS_CAPTIONS,
        Requirement(
            "network",
            fits=lambda network, node: node["name"] == "clip",
            reason="the numbers of words are no embeddings, and this network reads embeddings",
            remedy="set conditioner=text, or network=clip loss=contrastive",
        ),
    ],
)
class WordIds(Words):
    """The words of a caption as numbers, for network=clip, which has a text encoder of its own.

    token_i = the number of word i, (B, L, 1)

    Args:
        max_length: words of a caption that are read, ≥ 1; the rest is cut off.
        max_words: largest size of the vocabulary, ≥ 3; the most frequent words of the training captions are kept.

    Raises:
        ConfigurationError: the package tokenizers is missing.
    """

    token_dim = 1
    nowhere: Tensor  # empty; it knows the device of the model

    def __init__(self, *, max_length: PositiveInt, max_words: Annotated[int, Field(ge=3)]):
        super().__init__(max_length, max_words)
        self.register_buffer("nowhere", torch.empty(0), persistent=False)

    def condition(self, given: Given) -> Conditioning:
        words, mask = self.words(given, self.nowhere.device)
        return Conditioning(tokens=words[..., None].float(), mask=mask)


def _fitted(captions: Sequence[str], max_words: int) -> Tokenizer:
    """A tokenizer with the most frequent words of the captions, in lower case; signs are words."""
    try:
        from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    except ImportError as error:
        raise ConfigurationError(
            "this conditioner needs the package tokenizers: pip install 'flowdiff[text]'."
        ) from error
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNKNOWN]"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(
        vocab_size=max_words, special_tokens=["[UNKNOWN]", "[END]"], show_progress=False
    )
    tokenizer.train_from_iterator(captions, trainer)
    return tokenizer
