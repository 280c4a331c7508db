"""Random legal and illegal overrides: each ends as one sentence or as a run that can be built, and leaves nothing.

The overrides are drawn from the options' own names, types and ranges, and from the texts that users type by mistake. A
run that is not refused is built, with all its parts, and not trained.
"""

import json
import random
import types
import typing
from collections.abc import Callable
from typing import Any

import pytest
from cli_process import helper
from hydra.core.override_parser.overrides_parser import OverridesParser

from flowdiff import config, registry
from flowdiff.config.combinations import TOP_LEVEL
from flowdiff.config.trainer_arguments import ARGUMENTS, SET_BY_FLOWDIFF
from flowdiff.yaml_defaults import base_keys

TRIES = 300
LIMIT = 60.0  # seconds for one try, on a busy machine
# Numbers that stay small enough to build a model of, and texts that are no numbers.
NUMBERS = ["1", "2", "3", "4", "8", "0", "-1", "0.5", "1.0", "1e-3", "1.5", "64", "4294967296", "1e400", "nan", "inf"]
TEXTS = ["null", "true", "false", "abc", "''", "[]", "{}", "[1]", "[1,2]", "[a,b]", "{a: 1}", "'3'", "00:00:01:00", "ä"]
BROKEN = ["[1", "{a", "'", "a=b", "${seed}", "${nothing}", "${oc.env:NOTHING}", "1,2", "choice(1,2)", "$", ":", "\\"]
LEGAL = ["option"] * 3 + ["setting"] * 5 + ["trainer", "top"]
EVERYTHING = ["option", "setting", "setting", "trainer", "top", "delete", "key", "experiment"]
# What an option needs beside it.
COMPANIONS = {
    "network=classifier": ["loss=cross_entropy", "conditioner=one_hot"],
    "network=vae": ["loss=elbo", "conditioner=none"],
    "loss=cross_entropy": ["network=classifier", "conditioner=one_hot"],
    "loss=elbo": ["network=vae", "conditioner=none"],
    **{f"scaling={name}": ["network=mlp"] for name in ("edm", "eps", "v")},
}
# Not tried: they read files or another run, start other programs, or ask for tens of gigabytes.
UNTRIED = {("first_stage", "autoencoder_kl")}


def _words(kind: Any) -> list[str]:
    """Values that the type of a setting allows, as the command line writes them."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is typing.Literal:
        return [str(value) for value in arguments]
    if origin is typing.Annotated:
        return _words(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return [word for argument in arguments for word in _words(argument)]
    if kind is type(None):
        return ["null"]
    if kind is bool:
        return ["true", "false"]
    if kind is int:
        return ["1", "2", "3", "5", "16"]
    if kind is float:
        return ["0.1", "0.5", "1.0", "2.5", "1e-3"]
    if origin in (list, tuple):
        return [f"[{word},{word}]" for word in _words(arguments[0])] if arguments else ["[1,2]"]
    return ["abc"]


def _settings(group: str, name: str) -> dict[str, Any]:
    """{setting: its type} of an option."""
    component = registry.resolve(group, config.defaults(group, name)["name"])
    return {key: parameter.annotation for key, parameter in registry.hyperparameters(component).items()}


def draw(random: random.Random) -> list[str]:
    """Some overrides; half of the time all of them are legal, though they need not go together."""
    broken = random.random() < 0.5
    groups = [group for group in registry.GROUP_MODULES if group not in ("dataset", "measurement", "posterior")]
    dataset = random.choice(["digits", "two_moons", "checkerboard"])
    overrides = [f"dataset={dataset}", "conditioner=none"] if dataset == "checkerboard" else [f"dataset={dataset}"]
    for _ in range(random.randint(1, 4)):
        group = random.choice(groups)
        name = random.choice([name for name in config.options(group) if (group, name) not in UNTRIED])
        wrong = random.choice(NUMBERS + TEXTS if random.random() < 0.8 else BROKEN)
        kind = random.choice(LEGAL if not broken else EVERYTHING)
        if kind == "option":
            overrides += [f"{group}={name}", *COMPANIONS.get(f"{group}={name}", [])]
        elif kind == "setting":
            settings = _settings(group, name)
            for key in random.sample(sorted(settings), min(2, len(settings))):
                legal = random.choice(_words(settings[key]))
                overrides += [f"{group}={name}", f"{group}.{key}={wrong if broken else legal}"]
            overrides += COMPANIONS.get(f"{group}={name}", [])
        elif kind == "trainer":
            key = random.choice(sorted(ARGUMENTS if not broken else {**ARGUMENTS, **SET_BY_FLOWDIFF}))
            value = wrong if broken else random.choice(_legal(ARGUMENTS[key][1]))
            overrides.append(f"{'' if key in config.trainer_defaults() else '+'}trainer.{key}={value}")
        elif kind == "top":
            key = random.choice([key for key in base_keys("config") if key in TOP_LEVEL and key != "plugins"])
            overrides.append(f"{key}={wrong if broken else random.choice(_legal(TOP_LEVEL[key][1]))}")
        elif kind == "delete":
            overrides.append(f"~{random.choice([group, 'seed', 'trainer', f'{group}.name', 'trainer.max_steps'])}")
        elif kind == "key":
            overrides.append(f"{random.choice(['', '+', '++'])}{group}{random.choice(['', '.name', '.foo'])}={wrong}")
        else:
            debug = random.choice(["null", wrong if broken else "overfit"])
            overrides.append(f"{random.choice(['experiment', 'debug'])}={debug}")
    return list(dict.fromkeys(overrides))


def _legal(fits: Callable[[Any], bool]) -> list[str]:
    """The words that pass the test of a setting."""
    return [word for word in (*NUMBERS, *TEXTS, "noise", "flow") if word != "ä" and fits(_value(word))]


def _value(word: str) -> Any:
    return OverridesParser.create().parse_override(f"x={word}").value()


@pytest.mark.slow
@pytest.mark.timeout(7200)
def test_random_overrides_end_as_a_sentence_or_as_a_run_that_can_be_built(tmp_path):
    drawn = random.Random(12)
    tries = [draw(drawn) for _ in range(TRIES)]
    file, folder = tmp_path / "tries.json", tmp_path / "here"
    file.write_text(json.dumps(tries), encoding="utf-8")
    folder.mkdir()
    done = helper("rehearsals", file, cwd=folder, WANDB_MODE="disabled")
    assert done.returncode == 0, done.stderr
    outcomes = json.loads(done.stdout.splitlines()[-1])
    for overrides, (status, stderr, seconds) in zip(tries, outcomes, strict=True):
        said = f"{overrides}: {status} {stderr}"
        assert status in (0, 2), said
        assert seconds < LIMIT, said
        assert "Traceback" not in stderr, said
        if status == 2:
            *warnings, sentence = stderr.strip().splitlines()
            assert "cannot be built" not in sentence, said  # an error that no check has foreseen
            assert len(sentence) > 20, said
            assert len(warnings) < 3, said
    refused = sum(status == 2 for status, _, _ in outcomes)
    assert 0.2 * TRIES < refused < 0.9 * TRIES  # both kinds are tried
    looks_finished = ("result.json", "last.ckpt", "config.yaml")
    assert not [path for path in folder.rglob("*") if path.name in looks_finished]
