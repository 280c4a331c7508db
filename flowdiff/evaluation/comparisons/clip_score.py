"""How well samples fit their prompts, as a CLIP model sees it."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

import torch
from pydantic import PositiveInt
from torch import Tensor
from torch.nn import functional

from flowdiff.data.base import DataModule, Dataset
from flowdiff.digests import weight_hash
from flowdiff.errors import ConfigurationError
from flowdiff.evaluation.comparisons.base import Comparison
from flowdiff.evaluation.features.samples import Real, Samples
from flowdiff.evaluation.retrieval import CANDIDATES, ranks_of
from flowdiff.models.conditioners.pretrained import read, sentences
from flowdiff.registry import register
from flowdiff.runs.run_folder import clip_of

if TYPE_CHECKING:
    from transformers import CLIPImageProcessor, CLIPModel, PreTrainedTokenizerBase

SETTING = "metrics.compare.clip_score.model"


@register("comparison", "clip_score")
class ClipScore(Comparison):
    """The CLIP score of samples and their prompts, and how often a sample finds its own prompt among 100.

    clip_score = mean 100·⟨u, v⟩,  u, v: embeddings of sample and prompt, of length 1

    Of real pictures, the floor, the prompt is the first caption. Rows of a table compare by the same CLIP model only.

    Args:
        model: folder as `save_pretrained` writes it, run folder of network=clip, or name on the Hugging Face hub.
        num_samples: at most so many samples are used, ≥ 100.

    Raises:
        ConfigurationError: `check`: the data are no images with captions.
        RunError: `check`: the model cannot be read.

    Source: Hessel et al., CLIPScore, 2021; it scales by 2.5 and cuts off at 0.
    """

    reads_prompts = True

    def __init__(self, *, model: str, num_samples: PositiveInt) -> None:
        self.model = model
        self.num_samples: int = num_samples

    def check(self, data: Dataset) -> None:
        if len(data.shape) != 3 or not (isinstance(data, DataModule) and data.has_captions):
            raise ConfigurationError(
                f"metrics.compare.clip_score needs images with captions, and dataset={data.name} has none: remove it."
            )
        self.about()  # reads the model

    def about(self) -> list[str]:
        return [self._weights]

    def __call__(self, samples: Samples, train: Real, test: Real) -> dict[str, float]:
        prompts = samples.prompts(self.num_samples)
        images = torch.cat([self._embed_images(x) for x in samples.x(self.num_samples)])
        texts = torch.cat([self._embed_texts(prompts[i : i + 256]) for i in range(0, len(prompts), 256)])
        numbers = {"clip_score": 100 * (images * texts).sum(1).double().mean().item()}
        size = min(CANDIDATES, len(prompts))
        starts = range(0, len(prompts) - size + 1, size)
        ranks = torch.cat([ranks_of(images[i : i + size] @ texts[i : i + size].T)[0] for i in starts])
        return {**numbers, "clip_recall_1": (ranks == 0).double().mean().item()}

    @cached_property
    def _parts(self) -> tuple[CLIPModel, PreTrainedTokenizerBase, CLIPImageProcessor]:
        place = clip_of(self.model)
        with sentences(self.model, SETTING):
            model = read("CLIPModel", place).eval().requires_grad_(False)
            return model, read("AutoTokenizer", place), read("CLIPImageProcessor", place)

    @cached_property
    def _weights(self) -> str:
        return weight_hash(self._parts[0].state_dict())

    @torch.no_grad()
    def _embed_images(self, x: Tensor) -> Tensor:
        """Unit vectors of images x (B, C, H, W) in [−1, 1]."""
        from transformers import CLIPVisionConfig

        model, _, pixels = self._parts
        vision = model.config.vision_config
        assert isinstance(vision, CLIPVisionConfig)
        assert isinstance(vision.image_size, int)
        x = (x.cpu().clamp(-1, 1) + 1) / 2
        if x.shape[1] == 1 and vision.num_channels == 3:
            x = x.expand(-1, 3, -1, -1)
        if x.shape[-2:] != (vision.image_size, vision.image_size):
            x = functional.interpolate(x, (vision.image_size,) * 2, mode="bicubic", antialias=True).clamp(0, 1)
        mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (pixels.image_mean, pixels.image_std))
        found = model.get_image_features(pixel_values=(x - mean) / std).pooler_output
        return found / found.norm(dim=1, keepdim=True)

    @torch.no_grad()
    def _embed_texts(self, texts: list[str]) -> Tensor:
        model, words, _ = self._parts
        longest = model.config.to_dict()["text_config"]["max_position_embeddings"]
        given = words(texts, truncation=True, max_length=longest, padding=True, return_tensors="pt")
        found = model.get_text_features(
            input_ids=given["input_ids"], attention_mask=given["attention_mask"]
        ).pooler_output
        return found / found.norm(dim=1, keepdim=True)
