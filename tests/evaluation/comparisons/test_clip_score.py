"""clip_score: the cosine of samples and prompts, the retrieval of prompts, and what it refuses."""

import pytest
import text_models
import torch
from runs import TINY_CAPTIONED, settings
from transformers import AutoTokenizer, CLIPModel

from flowdiff import registry
from flowdiff.errors import ConfigurationError, RunError
from flowdiff.evaluation.features.identity import IdentityFeatures
from flowdiff.evaluation.features.samples import Generated, Real
from flowdiff.training.assembly import assemble_run


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return text_models.clip(tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture(scope="module")
def data():
    made = registry.create("dataset", {**settings(*TINY_CAPTIONED, "conditioner=none")["dataset"], "num_test": 120})
    made.setup()
    return made


def make(model, **changed):
    return registry.create("comparison", {"name": "clip_score", "model": str(model), "num_samples": 120, **changed})


def real(data, folder):
    return [Real(data, which, IdentityFeatures(768), 50, folder) for which in ("train", "test")]


@torch.no_grad()
def test_it_is_the_cosine_of_samples_and_their_prompts(model, data, tmp_path):
    train, test = real(data, tmp_path)
    x, prompts = data.centre(data.train[:20].x), ["a red three", "blue nine"] * 10
    found = make(model)(Generated(x, IdentityFeatures(768), data, 8, prompts), train, test)
    clip, tokenizer = CLIPModel.from_pretrained(model), AutoTokenizer.from_pretrained(model)
    given = tokenizer(prompts, padding=True, return_tensors="pt")
    mean, std = (
        torch.tensor(v)[:, None, None]
        for v in ([0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711])
    )
    pixels = ((x + 1) / 2 - mean) / std  # those of CLIP
    outputs = clip(input_ids=given["input_ids"], attention_mask=given["attention_mask"], pixel_values=pixels)
    expected = 100 * (outputs.image_embeds * outputs.text_embeds).sum(1).mean()
    assert found["clip_score"] == pytest.approx(float(expected), rel=1e-4)
    similarity = outputs.image_embeds @ outputs.text_embeds.T
    nearest = (similarity.amax(1) - similarity.diagonal() < 1e-6).float().mean()  # each prompt is there ten times
    assert found["clip_recall_1"] == pytest.approx(float(nearest))


def test_real_pictures_are_compared_with_their_captions_and_pictures_of_other_sizes_are_resized(model, data, tmp_path):
    train, test = real(data, tmp_path)
    found = make(model)(test, train, test)
    assert -100 <= found["clip_score"] <= 100
    score = make(model)
    embedded = score._embed_images(torch.rand(2, 1, 32, 32))
    torch.testing.assert_close(embedded.norm(dim=1), torch.ones(2))


def test_what_it_needs_is_said_before_training(model, tmp_path):
    given = [
        *TINY_CAPTIONED,
        "metrics.frechet=true",
        f"metrics.cache_dir={tmp_path}",
        "flow.n_flows=1",
        "flow.hidden=8",
    ]
    line = "+metrics.compare.clip_score={num_samples:100,model:" + str(model) + "}"
    assemble_run(settings(*given, "conditioner=text", line))
    with pytest.raises(
        ConfigurationError, match=r"clip_score compares samples with their prompts, and this model reads"
    ):
        assemble_run(settings(*given, "conditioner=class", line))
    with pytest.raises(ConfigurationError, match=r"clip_score needs images with captions, and dataset=digits has none"):
        assemble_run(settings("accelerator=cpu", line))
    with pytest.raises(
        RunError, match=r"metrics.compare.clip_score.model=.*cannot be read \(there is no such folder\)"
    ):
        assemble_run(settings(*given, "conditioner=text", line.replace(str(model), f"{model}/none")))
