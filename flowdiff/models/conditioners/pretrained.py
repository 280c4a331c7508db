"""Pretrained models of texts, from the library transformers: read from a folder or from the Hugging Face hub, frozen.

Outputs are read by name only, because their places and the inner modules differ between versions of transformers.
"""

from __future__ import annotations

import importlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, final

import torch
from torch import Tensor, nn

from flowdiff.digests import digest, weight_hash
from flowdiff.errors import ConfigurationError, RunError
from flowdiff.models.conditioning import Conditioning

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Precision = Literal["float32", "float16", "bfloat16"]
Layer = Literal["last", "penultimate"]
Pooling = Literal["mean", "cls", "eos"]
Locate = Callable[[str], str]
"""How the user named a model → its folder, or its name on the hub; a run is replaced by the model that it trained."""
WITHOUT_LIMIT = 10**9  # transformers writes larger numbers where a tokenizer has no longest text


class TextModel(ABC):
    """A frozen model of texts with its tokenizer; its weights can be freed and are read again when they are needed.

    A subclass sets `width` and `vector_width` and implements `text_config`, `load`, `run` and `reads`.

    Args:
        source: how the user named the model.
        place: folder as `save_pretrained` writes it, or name on the Hugging Face hub, behind which @ and a
            revision may stand.
        max_length: tokens of a text that are read, ≥ 1, those that mark its ends included; None for as many as the
            model can read.
        precision: of weights and computation; the results are float32.

    Raises:
        ConfigurationError: the library is missing, or max_length is larger than the model allows.
        RunError: the model cannot be read or downloaded.
    """

    width: int  # of a token
    vector_width: int  # of the vector of a text

    def __init__(self, source: str, place: str, max_length: int | None, precision: Precision):
        self.source = source
        self.place = place
        self.precision = precision
        with sentences(source):
            self.config: PreTrainedConfig = self.text_config(read("AutoConfig", place))
            self.tokenizer: PreTrainedTokenizerBase = read("AutoTokenizer", place)
        self.tokenizer.padding_side = "right"  # padding must not move the words
        if self.tokenizer.pad_token is None:
            self.tokenizer.pad_token = self.tokenizer.eos_token
        self.max_length = _max_length(max_length, self.tokenizer, self.config, source)
        self._loaded: PreTrainedModel | None = None
        self.weights = weight_hash(self.model.state_dict())

    def __deepcopy__(self, memo: dict[int, object]) -> TextModel:
        return self  # the weight average shares weights that never change

    @abstractmethod
    def text_config(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """The part of a model's configuration that describes its text encoder."""

    @abstractmethod
    def load(self) -> PreTrainedModel:
        """The text encoder, read from `place`."""

    @abstractmethod
    def run(self, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (B, L, width) and vectors (B, vector_width) of word ids (B, L); only those in `mask` count."""

    @property
    @abstractmethod
    def reads(self) -> str:
        """What of the model's outputs is read, for the name of a cache."""

    @property
    def model(self) -> PreTrainedModel:
        """The text encoder in eval mode, read again if it was released."""
        if self._loaded is None:
            with sentences(self.source):
                self._loaded = self.load().to(getattr(torch, self.precision)).eval().requires_grad_(False)
        return self._loaded

    @property
    def in_memory(self) -> bool:
        """Whether the weights are in memory."""
        return self._loaded is not None

    def release(self) -> None:
        """Free the memory of the weights."""
        self._loaded = None

    def save(self, folder: Path) -> None:
        """Write the text encoder and its tokenizer into a folder, which `place` can then name."""
        with quiet():
            self.model.save_pretrained(folder)
            self.tokenizer.save_pretrained(folder)

    def key(self) -> list[Any]:
        """What the embedding of a text depends on besides the text."""
        names = [type(self).__name__, self.source, self.weights, self._tokenizer_hash()]
        return [*names, self.reads, self.max_length, self.precision]

    def identity(self) -> list[str]:
        """Name and hash of the weights, which a checkpoint keeps in place of the weights."""
        return [self.source, self.weights]

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], device: torch.device) -> Conditioning:
        """Vectors, tokens and mask of texts, float32, computed on a device."""
        given = self.tokenizer(
            list(texts), truncation=True, max_length=self.max_length, padding=True, return_tensors="pt"
        ).to(device)
        mask = given["attention_mask"]
        nn.Module.to(self.model, device)  # transformers wraps `to` without its types
        with torch.autocast(device.type, enabled=False):
            tokens, vector = self.run(given["input_ids"], mask)
        return Conditioning(vector.float(), tokens.float(), mask.bool())

    def cut(self, text: str) -> str:
        """The end of a text that is not read because the text is too long; usually empty."""
        kept = self.max_length - self.tokenizer.num_special_tokens_to_add()
        words = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        starts = [start for start, _ in words["offset_mapping"]]
        return text[starts[kept] :] if len(starts) > kept else ""

    def _tokenizer_hash(self) -> str:
        words = self.tokenizer.get_vocab()
        return digest(sorted(words.items()), self.tokenizer("A probe of 3 words, é!")["input_ids"])


@final
class ClipText(TextModel):
    """The text encoder of a CLIP model, with its projection into the space of images if the model has one.

    Args:
        source: as for TextModel.
        place: as for TextModel; a CLIPModel, a CLIPTextModel or a CLIPTextModelWithProjection.
        max_length: as for TextModel.
        precision: as for TextModel.
        layer: last, behind the final LayerNorm, or penultimate, the input of the last layer.
    """

    def __init__(self, source: str, place: str, max_length: int | None, precision: Precision, layer: Layer):
        self.layer = layer
        super().__init__(source, place, max_length, precision)
        self.width = self.config.hidden_size
        self.vector_width = self.config.projection_dim if self.projects else self.width

    @property
    def projects(self) -> bool:
        """Whether the model has a projection: a CLIPTextModel is saved without it."""
        return "CLIPTextModel" not in self.architectures

    @property
    def reads(self) -> str:
        return self.layer

    def text_config(self, config: PreTrainedConfig) -> PreTrainedConfig:
        from transformers import CLIPConfig, CLIPTextConfig

        self.architectures = list(config.architectures or ())
        if isinstance(config, CLIPConfig):
            text = config.text_config
            assert isinstance(text, CLIPTextConfig)
            text.projection_dim = config.projection_dim
            return text
        if not isinstance(config, CLIPTextConfig):
            raise ConfigurationError(
                f"conditioner.model={self.source} is not a CLIP model but {config.model_type}: give a CLIP model, or "
                "set conditioner=pretrained_text."
            )
        return config

    def load(self) -> PreTrainedModel:
        name = "CLIPTextModelWithProjection" if self.projects else "CLIPTextModel"
        return read(name, self.place, config=self.config)

    def run(self, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        found = self.model(input_ids=words, attention_mask=mask, output_hidden_states=True)
        tokens = found.last_hidden_state if self.layer == "last" else found.hidden_states[-2]
        return tokens, found.text_embeds if self.projects else found.pooler_output


@final
class EncoderText(TextModel):
    """Any encoder of texts: that of T5 and its relatives, or what AutoModel reads, such as BERT.

    Args:
        source: as for TextModel.
        place: as for TextModel.
        max_length: as for TextModel.
        precision: as for TextModel.
        pooling: the vector of a text: mean of its tokens, its first (cls) or its last one (eos).
    """

    def __init__(self, source: str, place: str, max_length: int | None, precision: Precision, pooling: Pooling):
        self.pooling = pooling
        super().__init__(source, place, max_length, precision)
        self.width = self.vector_width = self.config.hidden_size

    @property
    def reads(self) -> str:
        return self.pooling

    def text_config(self, config: PreTrainedConfig) -> PreTrainedConfig:
        return config

    def load(self) -> PreTrainedModel:
        try:
            return read("AutoModelForTextEncoding", self.place)  # of a T5 it is the encoder alone
        except ValueError:  # it knows only some kinds of models
            return read("AutoModel", self.place)

    def run(self, words: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        tokens = self.model(input_ids=words, attention_mask=mask).last_hidden_state
        if self.pooling == "mean":
            weight = mask[..., None].to(tokens.dtype)
            return tokens, (tokens * weight).sum(1) / weight.sum(1)
        place = mask.sum(1) - 1 if self.pooling == "eos" else torch.zeros_like(mask[:, 0])
        return tokens, tokens[torch.arange(len(tokens), device=tokens.device), place]


def read(name: str, place: str, **options: Any) -> Any:
    """A class of transformers, read from a folder, from the hub's cache, or else from the hub."""
    found: Any = getattr(importlib.import_module("transformers"), name)
    folder = Path(place).expanduser()
    if folder.is_dir():
        return found.from_pretrained(str(folder), local_files_only=True, **options)
    hub_name, _, revision = place.partition("@")
    if place.startswith(("/", "~", ".")) or hub_name.count("/") > 1:
        raise FileNotFoundError("there is no such folder")
    options |= {"revision": revision or "main"}
    try:
        return found.from_pretrained(hub_name, local_files_only=True, **options)
    except OSError:  # it is not in the cache
        return found.from_pretrained(hub_name, **options)


@contextmanager
def sentences(source: str, setting: str = "conditioner.model") -> Iterator[None]:
    """Turn the errors of reading a model into sentences, and keep the reports of transformers out of the log."""
    try:
        import transformers.utils  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(
            f"{setting}={source} needs the package transformers: pip install 'flowdiff[text]'."
        ) from error
    try:
        with quiet():
            yield
    except ConfigurationError:
        raise
    except Exception as error:  # the hub, the network and the file system raise many kinds
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise RunError(
            f"{setting}={source} cannot be read ({lines[0].rstrip('.: ')}): give a folder with config.json, "
            "weights and tokenizer, as `save_pretrained` writes it, or a name on the Hugging Face hub that can be "
            "reached."
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Keep reports and progress bars of transformers out of the terminal."""
    from transformers.utils import logging as reports

    level, hub = reports.get_verbosity(), logging.getLogger("huggingface_hub")
    hub_level, bars = hub.level, reports.is_progress_bar_enabled()
    reports.set_verbosity_error()
    reports.disable_progress_bar()
    hub.setLevel(logging.ERROR)
    try:
        yield
    finally:
        reports.set_verbosity(level)
        hub.setLevel(hub_level)
        if bars:
            reports.enable_progress_bar()


def _max_length(asked: int | None, tokenizer: PreTrainedTokenizerBase, config: PreTrainedConfig, source: str) -> int:
    """How many tokens of a text are read; ConfigurationError if the model cannot read as many as asked for."""
    known = (tokenizer.model_max_length, config.to_dict().get("max_position_embeddings", WITHOUT_LIMIT))
    most = min(known)
    if asked is None:
        if most >= WITHOUT_LIMIT:
            raise ConfigurationError(
                f"conditioner.model={source} does not say how long a text may be: set conditioner.max_length, e.g. to "
                "77."
            )
        return most
    ends = tokenizer.num_special_tokens_to_add()
    if not ends < asked <= most:
        raise ConfigurationError(
            f"conditioner.max_length={asked} is not allowed: conditioner.model={source} reads {ends + 1} … {most} "
            "tokens."
        )
    return asked


def named(model: str | list[str] | None, conditioner: str) -> list[str]:
    """The models that conditioner.model names; ConfigurationError if there is none."""
    names = [model] if isinstance(model, str) else model or []
    if not names:
        raise ConfigurationError(
            f"conditioner={conditioner} needs conditioner.model: a folder with config.json, weights and tokenizer, as "
            "`save_pretrained` writes it, or a name on the Hugging Face hub."
        )
    return names
