"""Small random models of texts in the format of transformers, with tokenizers of a few words."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPTextModel,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)
from transformers.utils import logging

WORDS = "a big red three small blue two on the left of green golden nine at top right"
UNKNOWN, PAD, BEGIN, END = range(4)
logging.disable_progress_bar()


def tokenizer(begin: bool = True, words: str = WORDS, longest: int = 12) -> PreTrainedTokenizerFast:
    """Words in lower case, with marks at the end and, if asked for, the beginning."""
    inner = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    inner.normalizer = normalizers.Lowercase()
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    special = ["[UNK]", "[PAD]", "[BOS]", "[EOS]"]
    inner.train_from_iterator([words], trainers.WordLevelTrainer(special_tokens=special, show_progress=False))
    marks = [("[BOS]", BEGIN), ("[EOS]", END)]
    inner.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]" if begin else "$A [EOS]", special_tokens=marks if begin else marks[1:]
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "bos_token": "[BOS]", "eos_token": "[EOS]"}
    return PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=longest, **names)


TEXT = {
    **{"vocab_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
    **{"max_position_embeddings": 12, "bos_token_id": BEGIN, "eos_token_id": END, "pad_token_id": PAD},
}


def clip(folder: Path, width: int = 16, projection: int = 8, seed: int = 0, **settings) -> Path:
    """A CLIPModel of images (3, 16, 16) with its tokenizer and its image processor."""
    torch.manual_seed(seed)
    text = {**TEXT, "hidden_size": width, **settings}
    vision = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=projection)
    CLIPImageProcessor(size={"height": 16, "width": 16}, do_center_crop=False).save_pretrained(folder)
    return _saved(CLIPModel(config), tokenizer(), folder)


def clip_text(folder: Path, width: int = 16, seed: int = 1) -> Path:
    """A CLIPTextModel, without a projection."""
    torch.manual_seed(seed)
    return _saved(CLIPTextModel(CLIPTextConfig(**TEXT, hidden_size=width)), tokenizer(), folder)


def bert(folder: Path, seed: int = 0) -> Path:
    """A BertModel."""
    torch.manual_seed(seed)
    return _saved(BertModel(BertConfig(**{**TEXT, "hidden_size": 16})), tokenizer(), folder)


def t5(folder: Path, seed: int = 0) -> Path:
    """The encoder of a T5, whose tokenizer marks no beginning."""
    torch.manual_seed(seed)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0}
    config = T5Config(vocab_size=32, pad_token_id=PAD, eos_token_id=END, decoder_start_token_id=PAD, **sizes)
    return _saved(T5EncoderModel(config), tokenizer(begin=False), folder)


def _saved(model, words: PreTrainedTokenizerFast, folder: Path) -> Path:
    model.eval().save_pretrained(folder)
    words.save_pretrained(folder)
    return folder


def conditioner_settings(name: str, folder: Path, **changed) -> dict:
    """The arguments of registry.create for a small conditioner; models that it needs are random, in a folder."""
    models, text = {"clip": clip, "pretrained_text": bert}, {"dim": 16, "layers": 1, "heads": 2}
    both = {"label": {"name": "class", "drop": 0.0}, "text": {"name": "text", "drop": 0.0, **text}, "locate": str}
    small = {"text": text, "class_and_text": both}
    if name not in models:
        return {"node": name, **small.get(name, {}), **changed}
    path = folder / name
    if not path.is_dir():
        models[name](path)
    return {"node": name, "locate": str, "model": str(path), "cache_dir": str(folder / "captions"), **changed}
