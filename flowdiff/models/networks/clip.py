"""transformers' CLIPModel, small, as a network: it is trained on images and captions and read by other runs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import PositiveInt
from torch import Tensor

from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioners.base import Conditioner
from flowdiff.models.conditioners.pretrained import quiet
from flowdiff.models.conditioners.text import END, WordIds
from flowdiff.models.conditioning import Conditioning
from flowdiff.models.networks.base import SCALING_IS_SCORE, ImageTextNetwork, only
from flowdiff.registry import register
from flowdiff.shapes import times

if TYPE_CHECKING:
    from tokenizers import Tokenizer

LARGEST_SCALE = 100.0  # as in the paper: a larger one makes training unstable


@register(
    "network",
    "clip",
    requires=[
        SCALING_IS_SCORE,
        only("conditioner", "word_ids", "CLIP has a text encoder of its own, which reads words"),
        only("loss", "contrastive", "CLIP is trained by this loss alone"),
        only("guidance", "none", "CLIP does not denoise, so nothing can be guided"),
        only("first_stage", "identity", "CLIP reads images"),
    ],
)
class Clip(ImageTextNetwork):
    """Image and text encoders whose embeddings agree for an image and its caption; trained by loss=contrastive.

    u = P_I·ViT(x)/‖·‖,  v = P_T·Transformer(caption)/‖·‖,  similarity = e^τ·⟨u, v⟩

    It does not denoise and cannot be sampled. The run keeps it in its folder clip/ in the format of transformers, so
    that conditioner=clip, metrics.compare.clip_score and other programs read it.

    Args:
        shape: shape of one image, (C, H, W) with H = W.
        conditioner: conditioner=word_ids, whose vocabulary it reads.
        patch: side of a patch of pixels, ≥ 1, a divisor of H.
        width: width of both transformers, ≥ 1, a multiple of heads.
        layers: layers of each, ≥ 1.
        heads: attention heads of each, ≥ 1.
        dim: width of the embeddings, ≥ 1.

    Raises:
        ConfigurationError: the samples are not square images, patch does not divide their side, heads does not divide
            width, or the package transformers is missing.

    Source: Radford et al., Learning transferable visual models from natural language supervision, 2021.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        conditioner: Conditioner,
        *,
        patch: PositiveInt,
        width: PositiveInt,
        layers: PositiveInt,
        heads: PositiveInt,
        dim: PositiveInt,
    ):
        super().__init__()
        assert isinstance(conditioner, WordIds)  # the requirement
        if len(shape) != 3 or shape[1] != shape[2] or shape[1] % patch:
            raise ConfigurationError(
                f"network=clip with network.patch={patch} needs square images whose sides are multiples of {patch}, "
                f"and samples have shape {times(shape)}: take another patch or another dataset."
            )
        if width % heads:
            raise ConfigurationError(
                f"network.width={width} is not a multiple of network.heads={heads}: each head takes an equal part."
            )
        try:
            from transformers import CLIPConfig, CLIPModel
        except ImportError as error:
            raise ConfigurationError(
                "network=clip needs the package transformers: pip install 'flowdiff[text]'."
            ) from error
        self.image_shape = shape
        both: dict[str, int | str] = {"hidden_size": width, "intermediate_size": 4 * width, "num_hidden_layers": layers}
        both |= {"num_attention_heads": heads, "projection_dim": dim, "hidden_act": "gelu"}
        words: dict[str, int | str] = {
            "vocab_size": conditioner.max_words,
            "max_position_embeddings": conditioner.max_length + 1,
        }
        words |= {"bos_token_id": END, "eos_token_id": END, "pad_token_id": END}
        pixels: dict[str, int | str] = {"num_channels": shape[0], "image_size": shape[1], "patch_size": patch}
        self.model = CLIPModel(
            CLIPConfig(text_config={**both, **words}, vision_config={**both, **pixels}, projection_dim=dim)
        )

    def embed_images(self, x: Tensor) -> Tensor:
        found = self.model.get_image_features(pixel_values=x).pooler_output
        return found / found.norm(dim=1, keepdim=True)

    def embed_texts(self, cond: Conditioning) -> Tensor:
        assert cond.tokens is not None  # conditioner=word_ids gives them
        ids, mask = cond.tokens[..., 0].long(), cond.token_mask().long()
        found = self.model.get_text_features(input_ids=ids, attention_mask=mask).pooler_output
        return found / found.norm(dim=1, keepdim=True)

    @property
    def scale(self) -> Tensor:
        return self.model.logit_scale.clamp(max=math.log(LARGEST_SCALE)).exp()

    def save(self, folder: Path, vocabulary: Tokenizer, max_length: int) -> None:
        from tokenizers import Tokenizer, processors
        from transformers import CLIPImageProcessor, PreTrainedTokenizerFast

        inner = Tokenizer.from_str(vocabulary.to_str())
        inner.post_processor = processors.TemplateProcessing(single="$A [END]", special_tokens=[("[END]", END)])
        names = {"unk_token": "[UNKNOWN]", "eos_token": "[END]", "pad_token": "[END]"}
        channels, side, _ = self.image_shape
        half = [0.5] * channels  # pixels in [0, 1] → [−1, 1]
        words = PreTrainedTokenizerFast(tokenizer_object=inner, model_max_length=max_length + 1, **names)
        pixels = CLIPImageProcessor(
            size={"height": side, "width": side}, do_center_crop=False, image_mean=half, image_std=half
        )
        with quiet():
            for part in (self.model, words, pixels):
                part.save_pretrained(folder)
