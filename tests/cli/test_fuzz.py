"""Random legal and illegal overrides: each ends as one sentence or as a run that can be built, and leaves nothing.

The overrides are drawn from the options' own names, types and ranges, and from the texts that users type by mistake. A
run is built (its parts, its Trainer), not trained.
"""

from __future__ import annotations

import random
import time
import types
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from flowdiff import config, registry
from flowdiff.config.combinations import TOP_LEVEL
from flowdiff.config.trainer_arguments import ARGUMENTS, SET_BY_FLOWDIFF
from flowdiff.errors import FlowdiffError
from flowdiff.launch.sweep import rehearse
from flowdiff.runs.run_folder import RunFolder

TRIES = 300
LIMIT = 60.0  # seconds for one try, on a busy machine
# Numbers that stay small enough to build a model of, and texts that are no numbers.
NUMBERS = ["1", "2", "3", "4", "8", "0", "-1", "0.5", "1.0", "1e-3", "1.5", "64", "4294967296", "1e400", "nan", "inf"]
TEXTS = ["null", "true", "false", "abc", "''", "[]", "{}", "[1]", "[1,2]", "[a,b]", "{a: 1}", "'3'", "00:00:01:00", "ä"]
BROKEN = ["[1", "{a", "'", "a=b", "${seed}", "${nothing}", "${oc.env:NOTHING}", "1,2", "choice(1,2)", "$", ":", "\\"]
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
    hints = typing.get_type_hints(component.__init__, include_extras=True)
    return {key: hints.get(key, Any) for key in registry.hyperparameters(component)}


def draw(random: random.Random) -> list[str]:
    """One to four overrides."""
    groups = [group for group in registry.GROUP_MODULES if group != "dataset"]
    chosen = {"dataset": random.choice(["digits", "two_moons", "checkerboard"])}
    overrides = [f"dataset={chosen['dataset']}"] if random.random() < 0.5 else []
    for _ in range(random.randint(1, 4)):
        group = random.choice(groups)
        names = [name for name in config.options(group) if (group, name) not in UNTRIED]
        name = chosen.setdefault(group, random.choice(names))
        value = random.choice(NUMBERS + TEXTS) if random.random() < 0.8 else random.choice(BROKEN)
        kind = random.randrange(10)
        if kind < 2:
            overrides.append(f"{group}={name}")
        elif kind < 5:
            settings = _settings(group, name)
            if settings:
                key = random.choice(sorted(settings))
                legal = random.choice(_words(settings[key]))
                overrides += [f"{group}={name}", f"{group}.{key}={legal if random.random() < 0.6 else value}"]
        elif kind == 5:
            key = random.choice(sorted({**ARGUMENTS, **SET_BY_FLOWDIFF}))
            overrides.append(f"{'' if key in config.trainer_defaults() else '+'}trainer.{key}={value}")
        elif kind == 6:
            overrides.append(f"{random.choice(sorted(TOP_LEVEL))}={value}")
        elif kind == 7:
            overrides.append(f"~{random.choice([group, 'seed', 'trainer', f'{group}.name', 'trainer.max_steps'])}")
        elif kind == 8:
            overrides.append(f"{random.choice(['', '+', '++'])}{group}{random.choice(['', '.name', '.foo'])}={value}")
        else:
            overrides.append(f"{random.choice(['experiment', 'debug'])}={random.choice(['null', value, 'overfit'])}")
    return list(dict.fromkeys(overrides))


@contextmanager
def _nothing_written(folder: Path) -> Iterator[None]:
    yield
    left = [path for path in folder.rglob("*") if path.name in ("config.yaml", "result.json", "last.ckpt")]
    assert not left


def _outcome(overrides: list[str], folder: Path) -> str | None:
    """The sentence by which these overrides are refused; None if the run can be built."""
    try:
        composed = config.compose(overrides)
        config.check(composed)
        settings = config.resolved(composed)
        rehearse(settings, RunFolder(folder / "run"))
    except FlowdiffError as error:
        return str(error)
    return None


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.filterwarnings("ignore")
def test_random_overrides_end_as_a_sentence_or_as_a_run_that_can_be_built(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_MODE", "disabled")
    drawn, refused = random.Random(12), 0
    for _ in range(TRIES):
        overrides = draw(drawn)
        began = time.monotonic()
        sentence = _outcome(overrides, tmp_path)
        assert time.monotonic() - began < LIMIT, overrides
        if sentence is not None:
            refused += 1
            assert "cannot be built" not in sentence, (overrides, sentence)  # an error that no check has foreseen
            assert "\n" not in sentence.strip(), (overrides, sentence)
            assert len(sentence) > 20, (overrides, sentence)
    assert 0.2 * TRIES < refused < 0.95 * TRIES  # both kinds are tried
    assert not list(tmp_path.rglob("*"))
