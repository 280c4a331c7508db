"""Conditions from captions by frozen, pretrained encoders, whose embeddings are computed once.

Every embedding is rounded to float16, whether it comes from the file or from the encoder, so that a model is sampled
with the numbers that it was trained with. Sums over batches of other sizes still differ in their last float32 digit,
which moves a few numbers in ten thousand to the next float16. With chunk_size=1 no caption shares a batch, and all bits
are the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from pydantic import Field, PositiveInt
from torch import Tensor, nn

from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioners.base import Conditioner, Given, LabelledText, dropped, example_captions
from flowdiff.models.conditioners.embedding_file import Embedding, EmbeddingFile, embedded
from flowdiff.models.conditioners.pretrained import TextModel
from flowdiff.models.conditioning import Conditioning

NullCondition = Literal["empty", "zeros", "learned"]
KEPT = 1024  # embeddings of prompts that are kept in memory


class FrozenText(Conditioner):
    """Vector and tokens of captions by one frozen text model, or by several side by side.

    tokens = [t¹, t², …],  vector = [v¹, v², …]

    The weights are in no checkpoint, which holds their name and hash instead.

    Args:
        models: the text models; all split texts into the same tokens.
        null_condition: the condition without a caption: empty, the encoded empty caption; zeros, a vector and a token
            of zeros; learned, a vector and a token that are trained.
        drop: probability in [0, 1) of replacing a caption by the null condition in training.
        chunk_size: captions that are encoded together, ≥ 1; it changes speed, memory and rounding.
        cache_dir: folder of the embeddings.

    Raises:
        ConfigurationError: the models split texts into different tokens.
    """

    reads_text = True
    nowhere: Tensor  # empty; it knows device and dtype of the model

    def __init__(
        self,
        models: Sequence[TextModel],
        *,
        null_condition: NullCondition,
        drop: Annotated[float, Field(ge=0, lt=1)],
        chunk_size: PositiveInt,
        cache_dir: str,
    ):
        super().__init__()
        first, *others = models
        for other in others:
            if other.tokenizer.get_vocab() != first.tokenizer.get_vocab() or other.max_length != first.max_length:
                raise ConfigurationError(
                    f"conditioner.model names {first.source} and {other.source}, which split texts into different "
                    "tokens, so they cannot be read side by side: name models with the same tokenizer."
                )
        self.models = tuple(models)
        self.dim = sum(model.vector_width for model in models)
        self.token_dim = sum(model.width for model in models)
        self.drop = drop
        self.chunk_size = chunk_size
        self.cache_dir = Path(cache_dir).expanduser()
        self.null_condition = null_condition
        self.null_vector = nn.Parameter(0.02 * torch.randn(self.dim)) if null_condition == "learned" else None
        self.null_token = nn.Parameter(0.02 * torch.randn(self.token_dim)) if null_condition == "learned" else None
        self.register_buffer("nowhere", torch.empty(0), persistent=False)
        self.prompts: tuple[str, ...] = ()
        self.known = _Known()

    def fit(self, captions: Sequence[str], labels: Sequence[int] | None = None) -> None:
        self.prompts = example_captions(captions)

    def precompute(self, captions: Sequence[str]) -> None:
        self.known.file = embedded(
            [*captions, ""],
            self.cache_dir,
            [model.key() for model in self.models],
            (self.dim, self.token_dim),
            self._count,
            self._encode,
            self.chunk_size,
        )
        for model in self.models:
            model.release()

    def examples(self) -> Sequence[str]:
        return self.prompts

    def condition(self, given: Given) -> Conditioning:
        return self._stacked(self._embeddings(_texts(given)))

    def forward(self, given: Given, generator: torch.Generator | None = None) -> Conditioning | None:
        """The condition of B captions; in training each is the null condition with probability `drop`.

        A null condition that is not trained takes the caption's place before the embeddings are stacked. That saves two
        copies of all tokens, which cost more than everything else here.
        """
        if self.null_condition == "learned" or not self.training or self.drop == 0:
            return super().forward(given, generator)
        found, null = self._embeddings(_texts(given)), self._fixed_null()
        gone = dropped(len(found), self.drop, generator, torch.device("cpu")).tolist()
        return self._stacked([null if is_gone else one for one, is_gone in zip(found, gone, strict=True)])

    def null(self, n: int) -> Conditioning:
        if self.null_vector is None or self.null_token is None:
            fixed = self._stacked([self._fixed_null()])
            return fixed[torch.zeros(n, dtype=torch.int64, device=fixed.device)]
        mask = torch.ones(n, 1, dtype=torch.bool, device=self.null_vector.device)
        return Conditioning(self.null_vector.expand(n, -1), self.null_token.expand(n, 1, -1), mask)

    def cut(self, text: str) -> str:
        return self.models[0].cut(text)

    def get_extra_state(self) -> dict[str, Any]:
        return {"models": [model.identity() for model in self.models], "prompts": list(self.prompts)}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        for (name, weights), model in zip(state["models"], self.models, strict=True):
            if weights != model.weights:
                raise ConfigurationError(
                    f"conditioner.model={model.source} holds other weights than the model {name} that this run was "
                    "trained with: give the folder, or name@revision, of the same weights."
                )
        self.prompts = tuple(state["prompts"])

    def _fixed_null(self) -> Embedding:
        """The null condition that is not trained: the empty caption, or zeros."""
        if self.null_condition == "empty":
            return self._embeddings([""])[0]
        # Attention over one token of zeros equals attention over any number of them.
        return Embedding(np.zeros(self.dim, np.float16), np.zeros((1, self.token_dim), np.float16))

    def _stacked(self, found: Sequence[Embedding]) -> Conditioning:
        """Some embeddings as one condition, with padding behind the shorter ones."""
        lengths = np.array([len(one.tokens) for one in found])
        tokens = np.empty((len(found), lengths.max(), self.token_dim), np.float16)
        for row, one in zip(tokens, found, strict=True):
            row[: len(one.tokens)] = one.tokens
            row[len(one.tokens) :] = 0
        vector = np.stack([one.vector for one in found])
        mask = lengths[:, None] > np.arange(tokens.shape[1])
        return Conditioning(
            torch.from_numpy(vector).to(self.nowhere),
            torch.from_numpy(tokens).to(self.nowhere),
            torch.from_numpy(mask).to(self.nowhere.device),
        )

    def _embeddings(self, texts: Sequence[str]) -> list[Embedding]:
        """The embedding of each text: from the file, from memory, or encoded now."""
        file, kept = self.known.file, self.known.fresh
        missing = [text for text in dict.fromkeys(texts) if text not in kept and (file is None or text not in file)]
        for start in range(0, len(missing), self.chunk_size):
            chunk = missing[start : start + self.chunk_size]
            kept.update(zip(chunk, self._encode(chunk), strict=True))
        found = [file[text] if file is not None and text in file else kept[text] for text in texts]
        for text in list(kept)[: max(0, len(kept) - KEPT)]:
            del kept[text]
        return found

    def _encode(self, texts: Sequence[str]) -> list[Embedding]:
        parts = [model(texts, self.nowhere.device) for model in self.models]
        vector = torch.cat([part.vector for part in parts if part.vector is not None], 1).half().cpu().numpy()
        tokens = torch.cat([part.tokens for part in parts if part.tokens is not None], 2).half().cpu().numpy()
        lengths = parts[0].token_mask().sum(1).tolist()
        return [Embedding(v, t[:n]) for v, t, n in zip(vector, tokens, lengths, strict=True)]

    def _count(self, texts: Sequence[str]) -> list[int]:
        model = self.models[0]
        ids = model.tokenizer(list(texts), truncation=True, max_length=model.max_length)["input_ids"]
        return [len(row) for row in ids]


def _texts(given: Given) -> Sequence[str]:
    assert not isinstance(given, Tensor | LabelledText)  # `Conditioner.given` reads captions
    return given


class _Known:
    """Embeddings that are known. A deep copy is the object itself: the weight average shares what never changes."""

    def __init__(self) -> None:
        self.file: EmbeddingFile | None = None
        self.fresh: dict[str, Embedding] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> _Known:
        return self
