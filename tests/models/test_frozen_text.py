"""Frozen encoders of captions: what they give, their file of embeddings, and what they refuse."""

import copy

import numpy as np
import pytest
import text_models
import torch
from transformers import AutoTokenizer, BertModel, CLIPModel, CLIPTextModel, T5EncoderModel

from flowdiff import registry
from flowdiff.errors import ConfigurationError, DataError, RunError
from flowdiff.models.conditioners import frozen
from flowdiff.models.conditioners.frozen import FrozenText
from flowdiff.testing import conditioners as laws

CAPTIONS = ["a red three", "blue", "a green two left of a golden nine", "a big three on the left"]
HALF = {"rtol": 2**-10, "atol": 1e-6}  # half of the distance of two float16 is 2⁻¹¹ of them


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return {
        "clip": text_models.clip(folder / "clip"),
        "clip_text": text_models.clip_text(folder / "clip_text"),
        "bert": text_models.bert(folder / "bert"),
        "t5": text_models.t5(folder / "t5"),
    }


def make(models, tmp_path, name="clip", model="clip", **settings):
    path = [str(models[one]) for one in model] if isinstance(model, list) else str(models[model])
    given = {"model": path, "locate": str, "cache_dir": str(tmp_path / "captions"), **settings}
    made = registry.create("conditioner", name, **given)
    made.fit(CAPTIONS)
    return made.eval()


def outputs(models, model, kind, text):
    """What transformers itself gives for one text, not padded."""
    tokenizer, encoder = AutoTokenizer.from_pretrained(models[model]), kind.from_pretrained(models[model])
    given = tokenizer(text, return_tensors="pt")
    return encoder, given


@torch.no_grad()
def test_clip_gives_what_transformers_gives(models, tmp_path):
    text = CAPTIONS[2]
    clip, given = outputs(models, "clip", CLIPModel, text)
    hidden = clip.text_model(**given, output_hidden_states=True)
    pooled = clip.get_text_features(**given).pooler_output
    for layer, tokens in (("last", hidden.last_hidden_state), ("penultimate", hidden.hidden_states[-2])):
        cond = make(models, tmp_path, layer=layer).condition([text])
        torch.testing.assert_close(cond.tokens, tokens, **HALF)
        torch.testing.assert_close(cond.vector, pooled, **HALF)
    alone, given = outputs(models, "clip_text", CLIPTextModel, text)
    cond = make(models, tmp_path, model="clip_text").condition([text])
    torch.testing.assert_close(cond.vector, alone(**given).pooler_output, **HALF)  # it has no projection


@torch.no_grad()
def test_two_towers_stand_side_by_side(models, tmp_path):
    both = make(models, tmp_path, model=["clip", "clip_text"], layer="penultimate").condition(CAPTIONS)
    parts = [
        make(models, tmp_path, model=one, layer="penultimate").condition(CAPTIONS) for one in ("clip", "clip_text")
    ]
    assert torch.equal(both.tokens, torch.cat([part.tokens for part in parts], 2))
    assert torch.equal(both.vector, torch.cat([part.vector for part in parts], 1))
    assert torch.equal(both.mask, parts[0].mask)


@torch.no_grad()
@pytest.mark.parametrize(("model", "kind"), [("bert", BertModel), ("t5", T5EncoderModel)])
def test_the_vector_of_any_encoder_is_pooled(model, kind, models, tmp_path):
    encoder, given = outputs(models, model, kind, CAPTIONS[2])
    tokens = encoder(**given).last_hidden_state
    for pooling, vector in (("mean", tokens.mean(1)), ("cls", tokens[:, 0]), ("eos", tokens[:, -1])):
        cond = make(models, tmp_path, "pretrained_text", model, pooling=pooling).condition(CAPTIONS)
        torch.testing.assert_close(cond.vector[2:3], vector, rtol=2**-9, atol=1e-6)
        torch.testing.assert_close(cond.tokens[2:3, : tokens.shape[1]], tokens, **HALF)


WAYS = [
    ("clip", ["clip", "clip_text"], {"null_condition": "learned"}),
    ("clip", "clip_text", {"layer": "penultimate", "null_condition": "zeros"}),
    ("pretrained_text", "t5", {"pooling": "eos"}),
]


@pytest.mark.parametrize("cached", [False, True], ids=["fresh", "cached"])
@pytest.mark.parametrize(("name", "model", "settings"), WAYS)
def test_laws_of_every_kind_of_encoder_and_null_condition(name, model, settings, cached, models, tmp_path):
    conditioner = make(models, tmp_path, name, model, drop=0.25, **settings)
    if cached:
        conditioner.precompute(CAPTIONS)
    for law in laws.LAWS:
        law(conditioner)


def test_the_null_condition_is_the_empty_caption_zeros_or_learned(models, tmp_path):
    empty = make(models, tmp_path)
    torch.testing.assert_close(empty.null(2).flat(), empty.condition(["", ""]).flat())
    assert not make(models, tmp_path, null_condition="zeros").null(2).flat().any()
    learned = make(models, tmp_path, null_condition="learned", drop=0.5).train()
    learned(CAPTIONS, torch.Generator().manual_seed(0)).flat().sum().backward()
    assert {name for name, weight in learned.named_parameters() if weight.grad.any()} == {"null_vector", "null_token"}


def test_no_weight_of_an_encoder_trains_or_is_saved_and_copies_share_it(models, tmp_path):
    conditioner = make(models, tmp_path)
    assert list(conditioner.parameters()) == []
    state = conditioner.state_dict()
    assert list(state) == ["_extra_state"]
    assert state["_extra_state"]["models"] == [[str(models["clip"]), conditioner.models[0].weights]]
    assert copy.deepcopy(conditioner).models[0] is conditioner.models[0]
    torch.save(state, tmp_path / "state.ckpt")
    other = make(models, tmp_path)
    other.load_state_dict(torch.load(tmp_path / "state.ckpt", weights_only=True))
    assert other.examples() == tuple(CAPTIONS)
    changed = text_models.clip(tmp_path / "other", seed=7)
    other = make({"clip": changed}, tmp_path)
    with pytest.raises(ConfigurationError, match="holds other weights than the model "):
        other.load_state_dict(state)


def counted(monkeypatch, stop_after=None):
    """The texts that are encoded from now on; raises KeyboardInterrupt after `stop_after` chunks."""
    seen, encode = [], FrozenText._encode

    def counting(self, texts):
        if stop_after is not None and len(seen) == stop_after:
            raise KeyboardInterrupt
        seen.append(list(texts))
        return encode(self, texts)

    monkeypatch.setattr(FrozenText, "_encode", counting)
    return seen


def test_cached_embeddings_are_those_of_the_encoder_and_free_its_memory(models, tmp_path, monkeypatch):
    conditioner, fresh = make(models, tmp_path, chunk_size=2), make(models, tmp_path)
    conditioner.precompute([*CAPTIONS, *CAPTIONS])
    (path,) = (tmp_path / "captions").glob("*.f16")
    tokens = sum(len(text.split()) + 2 for text in CAPTIONS) + 2  # with both ends, and the empty caption
    assert path.stat().st_size == 2 * (5 + 5 * 8 + tokens * 16)
    assert not conditioner.models[0].in_memory
    seen = counted(monkeypatch)
    cached = conditioner.condition(CAPTIONS)
    assert seen == []
    assert not conditioner.models[0].in_memory
    # Sums over another batch differ in the last float32 digit, which moves few numbers to the next float16.
    expected = fresh.condition(CAPTIONS)
    seen.clear()
    torch.testing.assert_close(cached.flat(), expected.flat(), rtol=2**-10, atol=1e-6)
    assert (cached.flat() != expected.flat()).float().mean() < 0.01
    prompt = conditioner.condition(["a golden nine", "blue"])  # encoded now; the encoder is read again
    assert seen == [["a golden nine"]]
    assert conditioner.models[0].in_memory
    assert torch.equal(prompt.tokens[1, :3], cached.tokens[1, :3])


def test_captions_that_are_encoded_one_by_one_have_the_same_bits_cached_and_fresh(models, tmp_path):
    cached, fresh = (make(models, tmp_path, chunk_size=1) for _ in range(2))
    cached.precompute(CAPTIONS)
    assert torch.equal(cached.condition(CAPTIONS).flat(), fresh.condition(CAPTIONS[::-1]).flat().flip(0))
    assert (cached.known.fresh, fresh.known.file) == ({}, None)


def test_interrupted_encoding_continues_where_it_stopped(models, tmp_path, monkeypatch):
    whole = make(models, tmp_path / "whole", chunk_size=2)
    whole.precompute(CAPTIONS)
    with monkeypatch.context() as patch:
        counted(patch, stop_after=1)
        with pytest.raises(KeyboardInterrupt):
            make(models, tmp_path, chunk_size=2).precompute(CAPTIONS)
    (partial,) = (tmp_path / "captions").glob("*.partial")
    with partial.open("ab") as file:
        file.write(b"half a caption")
    seen = counted(monkeypatch)
    again = make(models, tmp_path, chunk_size=2)
    again.precompute(CAPTIONS)
    assert seen == [["a red three", "a big three on the left"], ["a green two left of a golden nine"]]  # by length
    assert torch.equal(again.condition(CAPTIONS).flat(), whole.condition(CAPTIONS).flat())
    seen.clear()
    make(models, tmp_path).precompute(CAPTIONS)
    assert seen == []


@pytest.mark.parametrize(
    ("settings", "captions", "encodes"),
    [
        ({"layer": "penultimate"}, CAPTIONS, True),
        ({"max_length": 6}, CAPTIONS, True),
        ({"precision": "bfloat16"}, CAPTIONS, True),
        ({"model": "clip_text"}, CAPTIONS, True),
        ({}, CAPTIONS[1:], True),
        ({"chunk_size": 3, "drop": 0.5, "null_condition": "zeros"}, CAPTIONS[::-1], False),
    ],
    ids=str,
)
def test_only_a_change_of_the_embeddings_makes_another_file(settings, captions, encodes, models, tmp_path, monkeypatch):
    make(models, tmp_path).precompute(CAPTIONS)
    seen = counted(monkeypatch)
    make(models, tmp_path, **settings).precompute(captions)
    assert bool(seen) == encodes


def test_a_file_that_was_cut_and_numbers_that_float16_cannot_hold_are_refused(models, tmp_path, monkeypatch):
    make(models, tmp_path).precompute(CAPTIONS)
    (path,) = (tmp_path / "captions").glob("*.f16")
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(DataError, match=r"bytes where [\d,]+ are expected: delete it"):
        make(models, tmp_path).precompute(CAPTIONS)
    one = frozen.Embedding(np.zeros(8, np.float16), np.full((5, 16), np.inf, np.float16))
    monkeypatch.setattr(FrozenText, "_encode", lambda self, texts: [one] * len(texts))
    with pytest.raises(DataError, match="the embedding of the caption '' is not finite in float16"):
        make(models, tmp_path / "other").precompute(CAPTIONS)


def test_prompts_leave_memory_again(models, tmp_path, monkeypatch):
    monkeypatch.setattr(frozen, "KEPT", 2)
    conditioner = make(models, tmp_path)
    assert len(conditioner.condition(CAPTIONS).vector) == 4
    assert len(conditioner.known.fresh) == 2


def test_a_long_prompt_is_cut_and_its_end_is_named(models, tmp_path):
    conditioner = make(models, tmp_path, max_length=6)
    assert conditioner.cut("A Big  red three on the Left") == "on the Left"  # four words between the two ends
    assert conditioner.cut("a big red three") == ""
    long, short = conditioner.condition(["a big red three on the left", "a big red three"]).flat()
    torch.testing.assert_close(long, short, rtol=2**-10, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "error", "sentence"),
    [
        ({"model": None}, ConfigurationError, "conditioner=clip needs conditioner.model: a folder with config.json"),
        ({"model": "{tmp}/none"}, RunError, "/none cannot be read (there is no such folder): give a folder"),
        ({"model": "nobody/nothing"}, RunError, "conditioner.model=nobody/nothing cannot be read ("),
        ({"model": "{bert}"}, ConfigurationError, "is not a CLIP model but bert: give a CLIP model, or set"),
        ({"model": ["{clip}", "{words}"]}, ConfigurationError, "which split texts into different tokens"),
        ({"max_length": 13}, ConfigurationError, "max_length=13 is not allowed: conditioner.model="),
        ({"max_length": 2}, ConfigurationError, "reads 3 … 12 tokens"),
    ],
    ids=str,
)
def test_what_does_not_work_is_one_sentence(settings, error, sentence, models, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    text_models.clip(tmp_path / "words")
    text_models.tokenizer(words="other words").save_pretrained(tmp_path / "words")
    places = {"tmp": tmp_path, "words": tmp_path / "words", **models}

    def placed(value):
        return [placed(one) for one in value] if isinstance(value, list) else value and value.format(**places)

    given = {"model": "{clip}", **settings}
    with pytest.raises(error) as raised:
        registry.create("conditioner", "clip", locate=str, **{**given, "model": placed(given["model"])})
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_without_the_library_one_sentence_says_what_to_install(models, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers.utils", None)
    with pytest.raises(ConfigurationError, match=r"needs the package transformers: pip install 'flowdiff\[text\]'"):
        make(models, tmp_path)
