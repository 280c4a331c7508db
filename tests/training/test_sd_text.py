"""The composition of Stable Diffusion's size, end to end with small encoders of random weights."""

import pytest
import text_models
import torch
from diffusers import AutoencoderKL
from PIL import Image
from runs import settings

from flowdiff import config
from flowdiff.training.engine import Engine

CAPTIONS = ["a big red three", "a small blue two on the left", "golden nine", "green at the top", "two", "a red nine"]


@pytest.fixture
def small(tmp_path):
    """experiment=sd_text with six pictures, small encoders, and a small flow of the same latents."""
    torch.manual_seed(0)
    sizes = {"block_out_channels": [4] * 4, "norm_num_groups": 2, "layers_per_block": 1}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    AutoencoderKL(**blocks, **sizes, latent_channels=4, sample_size=512).save_pretrained(tmp_path / "kl")
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for i, caption in enumerate(CAPTIONS):
        Image.new("RGB", (40, 30 + i), (40 * i, 100, 255 - 40 * i)).save(pictures / f"{i}.png")
        (pictures / f"{i}.txt").write_text(caption)
    clip = text_models.clip_text(tmp_path / "clip")
    return [
        *("experiment=sd_text", f"dataset.path={pictures}", "dataset.test_fraction=0.34", "dataset.num_workers=0"),
        *(f"first_stage.model={tmp_path / 'kl'}", f"first_stage.cache_dir={tmp_path}", "first_stage.chunk_size=1"),
        *(f"conditioner.model={clip}", f"conditioner.cache_dir={tmp_path}", "dataset.batch_size=2"),
        *("flow.n_flows=2", "flow.hidden=8", "flow.heads=2", "flow.patch=16", "flow.n_layers=1", "flow.deep_layers=1"),
        *("network.embed_dim=8", "sampler.num_steps=1", "accelerator=cpu", "logger=csv"),
    ]


def test_it_composes_at_full_size():
    composed = config.compose(["experiment=sd_text", "logger=csv"])
    config.check(composed)
    assert composed.dataset.image_size == 512
    assert composed.conditioner.model == "openai/clip-vit-large-patch14"


def test_it_reads_encodes_trains_and_draws_prompts_end_to_end(small):
    engine = Engine.of(settings(*small))
    model = engine.denoiser
    assert model.first_stage.latent_shape == (4, 64, 64)
    engine.measure()
    assert not any(encoder.in_memory for encoder in engine.conditioner.models)  # the captions are in their file
    trained = [p for p in engine.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in trained]
    inputs = engine.loss_inputs(engine.latents.train[:2], 0)
    engine.loss(model.denoiser, *inputs).loss.mean().backward()
    engine.optimizer.make(trained).step()
    assert any(not torch.equal(p, old) for p, old in zip(trained, before, strict=True))
    images = model.sample(2, prompt=["a red three", "a green nine at the left"], seed=0)
    assert images.shape == (2, 3, 512, 512)
    assert bool(images.isfinite().all())
