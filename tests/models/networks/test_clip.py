"""network=clip: what it embeds, its loss, and the folder in which other programs read it."""

import pytest
import torch
from runs import settings
from transformers import AutoTokenizer, CLIPImageProcessor, CLIPModel

from flowdiff import registry
from flowdiff.diffusion.losses.contrastive import contrastive
from flowdiff.errors import ConfigurationError
from flowdiff.models.conditioners.text import WordIds
from flowdiff.testing.inputs import perturb

SHAPE = (3, 16, 16)
CAPTIONS = ["a red three", "blue", "a green two left of a golden nine, large", "a zebra"]


@pytest.fixture(scope="module")
def words():
    conditioner = WordIds(max_length=7, max_words=32)
    conditioner.fit(CAPTIONS[:3])
    return conditioner.eval()


def make(words, **settings_):
    torch.manual_seed(0)
    given = {"patch": 8, "width": 16, "layers": 1, "heads": 2, "dim": 8, **settings_}
    network = registry.create("network", "clip", shape=SHAPE, conditioner=words, **given).eval()
    return perturb(network, 0.3)


@pytest.fixture(scope="module")
def network(words):
    return make(words)


def images(n=4):
    return torch.rand(n, *SHAPE, generator=torch.Generator().manual_seed(1)) * 2 - 1


@torch.no_grad()
def test_embeddings_have_length_one_and_do_not_depend_on_the_samples_beside_them(network, words):
    image, text = network.embed_images(images()), network.embed_texts(words.condition(CAPTIONS))
    torch.testing.assert_close(torch.stack([image.norm(dim=1), text.norm(dim=1)]), torch.ones(2, 4))
    for i in range(4):
        torch.testing.assert_close(network.embed_images(images()[i : i + 1])[0], image[i], rtol=1e-4, atol=1e-5)
        alone = network.embed_texts(words.condition(CAPTIONS[i : i + 1]))[0]  # it is not padded here
        torch.testing.assert_close(alone, text[i], rtol=1e-4, atol=1e-5)
    assert (text[0] - text[1]).abs().max() > 1e-2
    assert torch.equal(network(images(), torch.ones(4)), torch.zeros(4, *SHAPE))  # it does not denoise


def test_the_loss_is_that_of_transformers_and_every_parameter_learns(words):
    network = make(words).train()
    cond = words.condition(CAPTIONS)
    given = {"input_ids": cond.tokens[..., 0].long(), "attention_mask": cond.mask.long(), "pixel_values": images()}
    reference = network.model(**given, return_loss=True).loss
    output = contrastive(network, images(), cond)
    torch.testing.assert_close(output.loss.mean(), reference)
    assert output.loss.shape == output.parts["accuracy"].shape == (4,)
    output.loss.mean().backward()
    # A bias of keys adds the same number to every score of a query, which changes no attention.
    without = {name for name, weight in network.named_parameters() if weight.grad is None or not weight.grad.any()}
    assert {name for name in without if not name.endswith("k_proj.bias")} == set()


@torch.no_grad()
def test_the_candidates_are_the_samples_of_all_processes(network, words, monkeypatch):
    """The losses of two processes are those of one process with both batches."""
    x, cond = images(), words.condition(CAPTIONS)
    whole = contrastive(network, x, cond).loss
    embedded = network.embed_images(x), network.embed_texts(cond)
    for rank in (0, 1):
        own = torch.arange(2 * rank, 2 * rank + 2)
        gathered = iter([part.split(2) for part in embedded])  # images, then captions
        monkeypatch.setattr("torch.distributed.is_initialized", lambda: True)
        monkeypatch.setattr("torch.distributed.get_world_size", lambda: 2)
        monkeypatch.setattr("torch.distributed.get_rank", lambda rank=rank: rank)
        monkeypatch.setattr(
            "torch.distributed.nn.functional.all_gather", lambda part, gathered=gathered: next(gathered)
        )
        found = contrastive(network, x[own], cond[own], together=True).loss
        torch.testing.assert_close(found, whole[own], rtol=1e-4, atol=1e-4)
        assert not torch.allclose(found, contrastive(network, x[own], cond[own]).loss, rtol=1e-2)


@torch.no_grad()
def test_the_temperature_has_a_limit(words):
    network = make(words)
    network.model.logit_scale.data.fill_(10.0)
    assert float(network.scale) == pytest.approx(100.0)


@torch.no_grad()
def test_other_programs_read_what_it_saves(network, words, tmp_path):
    network.save(tmp_path / "clip", words.fitted(), words.max_length)
    model, tokenizer = CLIPModel.from_pretrained(tmp_path / "clip"), AutoTokenizer.from_pretrained(tmp_path / "clip")
    given = tokenizer(CAPTIONS, padding=True, truncation=True, return_tensors="pt")
    pixels = CLIPImageProcessor.from_pretrained(tmp_path / "clip")
    read = pixels(((images() + 1) / 2), do_rescale=False, return_tensors="pt")["pixel_values"]
    found = model(input_ids=given["input_ids"], attention_mask=given["attention_mask"], pixel_values=read)
    cond = words.condition(CAPTIONS)
    torch.testing.assert_close(found.text_embeds, network.embed_texts(cond), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.image_embeds, network.embed_images(images()), rtol=1e-4, atol=1e-5)
    settings_ = {"locate": str, "model": str(tmp_path / "clip"), "cache_dir": str(tmp_path)}
    frozen = registry.create("conditioner", "clip", **settings_).condition(CAPTIONS)
    pooled = model.get_text_features(**{k: given[k] for k in ("input_ids", "attention_mask")}).pooler_output
    torch.testing.assert_close(frozen.vector, pooled, rtol=2**-10, atol=1e-6)  # float16
    assert torch.equal(frozen.mask, cond.mask)


@pytest.mark.parametrize(
    ("shape", "changed", "sentence"),
    [
        ((3, 16, 8), {}, "needs square images whose sides are multiples of 8, and samples have shape 3×16×8"),
        ((2,), {}, "and samples have shape 2"),
        (SHAPE, {"patch": 5}, "network.patch=5 needs square images"),
        (SHAPE, {"heads": 3}, "network.width=16 is not a multiple of network.heads=3"),
    ],
)
def test_what_does_not_fit_is_refused(shape, changed, sentence, words):
    given = {"patch": 8, "width": 16, "layers": 1, "heads": 2, "dim": 8, **changed}
    with pytest.raises(ConfigurationError) as error:
        registry.create("network", "clip", shape=shape, conditioner=words, **given)
    assert sentence in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "sentence"),
    [
        (["network=clip", "dataset=captioned_digits"], "set conditioner=word_ids"),
        (["conditioner=word_ids", "dataset=captioned_digits"], "the numbers of words are no embeddings"),
        (["loss=contrastive"], "set network=clip conditioner=word_ids, or another loss"),
        (["experiment=clip_digits", "loss=denoising"], "set loss=contrastive"),
        (["experiment=clip_digits", "dataset=digits"], "this conditioner reads captions, and the data set has none"),
    ],
)
def test_it_goes_with_its_own_loss_and_conditioner(overrides, sentence):
    with pytest.raises(ConfigurationError, match=sentence):
        settings(*overrides)
