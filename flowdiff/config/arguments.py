"""The arguments `key=value` of a command line, as Hydra reads them.

Hydra's grammar gives a meaning to = , ( [ { # and to digits, which names of folders may contain. `quoted` puts such
names, prompts, and a ${…} within a ${…}, into quotes before Hydra sees them, so that they need none on the command
line.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString, Sweep
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from flowdiff.config.explain import explain
from flowdiff.errors import ConfigurationError
from flowdiff.runs.machine_settings import CACHES, INPUTS
from flowdiff.yaml_defaults import plain_node

# Settings whose values are always text: names of files and folders.
NAMES_OF_FILES = (
    "run",
    "resume",
    "out",
    "prompts",
    "hydra.run.dir",
    "hydra.sweep.dir",
    "hydra.sweep.subdir",
    *INPUTS,
    *CACHES,
)

LISTS_OF_FILES = ("conditioner.model",)  # one name, or a list of them
PROMPTS = ("prompt", "negative_prompt")  # text, in which a comma does not separate the values of a sweep

_EXPANDED = ("run", "resume", "out")  # ~ of the others is expanded where they are read


def parsed(argument: str) -> Override | None:
    """An argument as Hydra reads it; None for an option (--cfg), and for what is outside Hydra's grammar."""
    if "=" not in argument or argument.startswith("-"):
        return None
    try:
        return OverridesParser.create().parse_override(argument)
    except (HydraException, OmegaConfBaseException, ValueError):  # ValueError: an integer of too many digits
        return None


def quoted(arguments: Sequence[str]) -> list[str]:
    """The arguments, with quotes around those names of files that Hydra would read as something else than text."""
    return [_quoted(argument) for argument in arguments]


def setting(arguments: Iterable[str], key: str) -> str | None:
    """The text that the last `key=…` gives; None if there is none, or null.

    Raises:
        ConfigurationError: it holds a ${…} that cannot be resolved without the rest of the config.
    """
    found = [override for override in map(parsed, arguments) if override is not None and override.key_or_group == key]
    value = None if not found else _value(found[-1])
    return None if value is None else str(value)


def without(arguments: Iterable[str], keys: Iterable[str]) -> tuple[list[str], dict[str, Any]]:
    """The arguments that set none of these keys, and {key: value} of those that do.

    Raises:
        ConfigurationError: one of these keys has several values.
    """
    others, values, taken = [], {}, set(keys)
    for argument in arguments:
        override = parsed(argument)
        if override is None or override.key_or_group not in taken or override.is_delete():
            others.append(argument)
        else:
            values[override.key_or_group] = _value(override)
    return others, values


def several(override: Override) -> list[str]:
    """The arguments of the single values of a sweep; the argument itself if it is none."""
    if not override.is_discrete_sweep():
        return [str(override.input_line)]
    return quoted([f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()])


def _value(override: Override) -> Any:
    if override.is_sweep_override():
        raise ConfigurationError(
            f"{override.input_line} gives several values, and {override.key_or_group} takes one: name one of them."
        )
    try:
        return plain_node(OmegaConf.create({"value": override.value()}))["value"]
    except OmegaConfBaseException as error:
        raise ConfigurationError(f"{override.input_line} cannot be read: {explain(error)}") from error


def _quoted(argument: str) -> str:
    key, equals, raw = argument.partition("=")
    name = key.lstrip("+")
    if name == "plugins" or (name in LISTS_OF_FILES and raw.startswith("[")):
        return f"{key}={_list_of_names(argument, raw)}"
    if equals and name in PROMPTS and not raw.startswith(("[", "'", '"', "choice(", "${")) and raw not in ("null", ""):
        return f"{key}={_in_quotes(raw)}"
    override = parsed(argument)
    if equals and name not in NAMES_OF_FILES and override is None and re.fullmatch(r"\$\{.*\$\{.*\}", raw):
        return f"{key}={_resolved(raw)}"
    if not equals or name not in NAMES_OF_FILES or not raw:
        return argument
    value = None if override is None else override.value()
    there = raw != "null" and os.path.lexists(_at_home(raw))
    if there:  # a name that exists means itself, whatever else Hydra could read in it
        text = raw.replace("${", "\\${")
    elif override is not None and (value is None or isinstance(value, Sweep)):
        return argument
    else:
        parts = [part for part in raw.split(",") if part]
        if name == "run" and override is None and all(os.path.lexists(_at_home(part)) for part in parts):
            return f"{key}={','.join(_in_quotes(_at_home(part)) for part in parts)}"
        text = value if isinstance(value, str) else raw
    if name in _EXPANDED:
        text = _at_home(text)
    return argument if value == text else f"{key}={_in_quotes(text)}"


def _resolved(nested: str) -> str:
    """An interpolation within another, which Hydra reads only in quotes; its value, where it needs no other setting.

    The value, not the quoted text, then stands in the record of the run, and can be typed again.
    """
    with suppress(OmegaConfBaseException):
        value = OmegaConf.create({"value": nested})["value"]
        if isinstance(value, bool | int | float):
            return str(value).lower()
    return _in_quotes(nested)


def _list_of_names(argument: str, raw: str) -> str:
    override = parsed(argument)
    value = None if override is None else override.value()
    if isinstance(value, list) and not all(isinstance(name, str) for name in value):
        value = None
    if value is not None or not (raw.startswith("[") and raw.endswith("]")):
        return raw
    names = [name.strip() for name in raw[1:-1].split(",")]
    return f"[{','.join(_in_quotes(name) for name in names if name)}]"


def _at_home(path: str) -> str:
    return os.path.expanduser(path)


def _in_quotes(text: str) -> str:
    return QuotedString(text, Quote.single).with_quotes()
