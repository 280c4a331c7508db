"""The cost of captions in training: a frozen encoder's kept embeddings against classes with as many tokens.

    python benchmarks/captions.py [overrides] [--rounds N]

Both models are the tarflow of experiment=captioned_digits with batches of 128. One reads the embeddings of a CLIP text
encoder of random weights, 768 wide, from their file. The other reads tokens of the class of equal number and width from
a fixed table with a row for the null condition, which is the least that a class conditioner can cost. A step is: batch,
condition, loss, backward, clipping, optimiser. The two take turns, so that a machine that speeds up or slows down does
so for both; times are medians of CPU seconds.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from measuring import median_seconds
from rich.console import Console
from rich.table import Table
from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
from torch import Generator, Tensor
from transformers import CLIPTextConfig, CLIPTextModel, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from flowdiff import config
from flowdiff.data.captioned_digits import CaptionedDigits
from flowdiff.models.conditioners.base import Conditioner, Given, dropped
from flowdiff.models.conditioning import Conditioning
from flowdiff.registry import create
from flowdiff.training.engine import Engine

WIDTH, WARMUP = 768, 5
SETTINGS = ["experiment=captioned_digits", "dataset.batch_size=128", "logger=csv", "accelerator=cpu"]


class ClassTokens(Conditioner):
    """A vector and L tokens of each class from a fixed table; the last row is the null condition.

    Args:
        num_classes: number of classes.
        length: tokens of a class, L.
        width: width of the vector and of a token.
        drop: probability of replacing a label by the null condition in training.
    """

    def __init__(self, num_classes: int, length: int, width: int, drop: float) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.dim = self.token_dim = width
        self.drop = drop
        self.register_buffer("vectors", torch.randn(num_classes + 1, width))
        self.register_buffer("tokens", torch.randn(num_classes + 1, length, width))

    def condition(self, given: Given) -> Conditioning:
        return Conditioning(self.vectors[given], self.tokens[given])

    def null(self, n: int) -> Conditioning:
        assert self.num_classes is not None
        return self.condition(torch.full((n,), self.num_classes))

    def forward(self, given: Given, generator: Generator | None = None) -> Conditioning:
        assert isinstance(given, Tensor)
        gone = dropped(len(given), self.drop if self.training else 0.0, generator, given.device)
        return self.condition(torch.where(gone, self.num_classes, given))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("overrides", nargs="*")
    parser.add_argument("--rounds", type=int, default=60)
    given = parser.parse_args()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as path:
        encoder = save_encoder(Path(path) / "encoder")
        clip = [f"conditioner.model={encoder}", f"conditioner.cache_dir={path}"]
        captions = engine(["conditioner=clip", *clip, *given.overrides])
        lengths = [tokens_of(captions, step).shape[1] for step in range(50)]
        length = round(sum(lengths) / len(lengths))
        classes = engine(["conditioner=clip", *clip, *given.overrides])
        classes.denoiser.conditioner = ClassTokens(10, length, WIDTH, captions.conditioner.drop)
        steps = {name: training(one) for name, one in (("captions", captions), ("classes", classes))}
        conditions = {
            "batch and condition, captions": lambda: tokens_of(captions, 0),
            "batch and condition, classes": lambda: tokens_of(classes, 0),
        }
        seconds = median_seconds({**steps, **conditions}, rounds=given.rounds, warmup=WARMUP, clock=time.process_time)

    table = Table(title=f"batches of 128 with {length} tokens of {WIDTH} numbers", title_justify="left")
    table.add_column("CPU milliseconds")
    table.add_column("median", justify="right")
    for name, value in seconds.items():
        table.add_row(name if name in conditions else f"training step, {name}", f"{1e3 * value:.2f}")
    table.add_row("training steps, captions / classes", f"{seconds['captions'] / seconds['classes']:.3f}")
    Console().print(table)


def engine(overrides: list[str]) -> Engine:
    """The engine of a model, with its statistics and embeddings."""
    composed = config.compose([*SETTINGS, *overrides])
    config.check(composed)
    torch.manual_seed(0)
    made = Engine.of(config.resolved(composed))
    made.measure()
    return made.train()


def tokens_of(engine: Engine, step: int) -> Tensor:
    """The tokens of a training batch, (B, L, width)."""
    size = engine.data.batch_size
    rows = torch.arange(size * step, size * (step + 1)) % len(engine.latents.train)
    cond = engine.loss_inputs(engine.latents.train[rows], step).cond
    assert cond is not None
    assert cond.tokens is not None
    return cond.tokens


def training(engine: Engine) -> Callable[[], None]:
    """A function that takes one training step."""
    optimizer = engine.optimizer.make([p for p in engine.parameters() if p.requires_grad])
    batches = enumerate(engine.latents.train_dataloader())

    def step() -> None:
        i, batch = next(batches)
        loss = engine.loss(engine.denoiser.denoiser, *engine.loss_inputs(batch, i)).loss.mean()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(engine.parameters(), 1.0)
        optimizer.step()

    return step


def save_encoder(folder: Path) -> Path:
    """A CLIP text encoder of one layer with random weights, and its tokenizer of the words of captioned_digits."""
    data = create("dataset", "captioned_digits")
    assert isinstance(data, CaptionedDigits)
    data.setup()
    assert data.train.captions is not None
    words = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = ["[UNK]", "[PAD]", "[BOS]", "[EOS]"]
    words.train_from_iterator(data.train.captions.texts, trainers.WordLevelTrainer(special_tokens=marks))
    words.post_processor = processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)]
    )
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "bos_token": "[BOS]", "eos_token": "[EOS]"}
    PreTrainedTokenizerFast(tokenizer_object=words, model_max_length=77, **names).save_pretrained(folder)
    sizes = {"hidden_size": WIDTH, "intermediate_size": WIDTH, "num_hidden_layers": 1, "num_attention_heads": 12}
    ids = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 1, "vocab_size": words.get_vocab_size()}
    disable_progress_bar()
    CLIPTextModel(CLIPTextConfig(**sizes, **ids)).save_pretrained(folder)
    return folder


if __name__ == "__main__":
    main()
