"""Run ids, run names and folder names: a hash of everything that affects a run's numbers, and readable names."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from flowdiff.errors import RunError
from flowdiff.runs.machine_settings import HASHED_AS, NOT_IDENTITY, NOT_IDENTITY_KEYS, as_hashed
from flowdiff.runs.renamed_settings import in_first_names
from flowdiff.runs.run_folder import Label, RunFolder


def run_id(config: Mapping[str, Any]) -> str:
    """Eight hex digits of the SHA-256 of a resolved config (plain containers) without paths, logging and hardware."""
    kept, recorded = _counting(in_first_names(as_hashed(config))), config.get(HASHED_AS) or {}
    for key, value in kept.items():
        if isinstance(value, Mapping) and value.get("run") and f"{key}.run" not in recorded:
            kept[key] = {**value, "run": identity_of_run(value["run"])}
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:8]


def id_of_folder(folder: RunFolder) -> str | None:
    """The id of the run that a folder holds; None if nothing in it tells."""
    if (label := folder.label()) is not None:
        return label.run_id
    try:
        return run_id(folder.config())
    except RunError:  # it cannot be read: our own folders are named after the id
        found = re.search(r"-([0-9a-f]{8})$", folder.path.resolve().name)
        return found[1] if found else None
    except (AttributeError, TypeError, ValueError):  # it is not the config of a run
        return None


def label_of_folder(folder: RunFolder) -> Label:
    """How the run in a folder is called; for a run of an older version as far as its folder tells."""
    if (label := folder.label()) is not None:
        return label
    known = id_of_folder(folder) or ""
    try:
        result = folder.result()
        return Label(known, str(result["name"]), result["sweep"], tuple(map(str, result["overrides"])))
    except (RunError, KeyError, TypeError):
        path = folder.path.resolve()
        sweep = path.parent.name if (path.parent / "multirun.yaml").is_file() else None
        return Label(known, path.name.removesuffix(f"-{known}"), sweep, ())


def differences(one: Mapping[str, Any], other: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """The settings that give two configs different run ids: (dotted key, value of one, value of the other).

    Where a mapping or a value is missing, it is None.
    """

    def walk(prefix: str, a: Any, b: Any) -> Iterator[tuple[str, Any, Any]]:
        if isinstance(a, Mapping) and isinstance(b, Mapping):
            for key in dict.fromkeys([*a, *b]):
                yield from walk(f"{prefix}.{key}" if prefix else str(key), a.get(key), b.get(key))
        elif a != b:
            yield prefix, a, b

    return list(walk("", _counting(as_hashed(one)), _counting(as_hashed(other))))


def _counting(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without the settings that the run id ignores."""
    kept = {}
    for key, value in config.items():
        if key in NOT_IDENTITY:
            continue
        if key in NOT_IDENTITY_KEYS and isinstance(value, Mapping):
            value = {k: v for k, v in value.items() if k not in NOT_IDENTITY_KEYS[key]}
        kept[key] = value
    return kept


def identity_of_run(run: str) -> str:
    """The run id of another run that this one uses, wherever its folder is; its path if there is no such folder."""
    try:
        return run_id(RunFolder.open(run).config())
    except RunError:
        return run


def run_name(overrides: Iterable[str], sweep: str | None = None) -> str:
    """The overrides that affect numbers, e.g. "flow.n_flows=5 activation=elu"; "default" when there are none.

    The experiment is left out when the sweep is named after it.
    """
    kept = [o for o in overrides if o.lstrip("+~").partition("=")[0].split(".")[0] not in NOT_IDENTITY]
    kept = [o for o in kept if o != f"experiment={sweep}"]
    return " ".join(kept) or "default"


def labels(sweep: Sequence[Sequence[str]]) -> list[str]:
    """A short name for each job of a sweep: the overrides that it does not share with all the others."""
    shared = set.intersection(*map(set, sweep)) if len(sweep) > 1 else set()
    return [run_name(o for o in overrides if o not in shared) for overrides in sweep]


def run_folder(name: str, identity: str) -> str:
    """A short folder name, e.g. "flow.n_flows-5__activation-elu-1a2b3c4d": the name, shortened, then the run id."""
    return f"{slug(name)}-{identity}"


def sweep_name(overrides: Iterable[str], experiment: str | None) -> str:
    """The folder name of a sweep: the experiment, or the keys on the command line that affect numbers."""
    if experiment:
        return experiment
    keys = {o.lstrip("+~").partition("=")[0].split("@")[0].replace("/", ".") for o in overrides} - {"seed"}
    return slug(" ".join(sorted(key for key in keys if key.split(".")[0] not in NOT_IDENTITY))) or "sweep"


def unique_slug(overrides: Iterable[str]) -> str:
    """A folder name that no other overrides have: their slug, with a hash behind it where the slug lost something.

    In key=value only "=" becomes "-", which no key holds, and two overrides are joined by "__".
    """
    overrides = list(overrides)
    short = slug(" ".join(overrides))
    plain = all(re.fullmatch(r"[\w.]+=-?[A-Za-z0-9.]+([_-]?[A-Za-z0-9.]+)*", o, re.ASCII) for o in overrides)
    if plain and len(short) == len("__".join(overrides)):
        return short
    return f"{short}-{hashlib.sha256(json.dumps(overrides).encode()).hexdigest()[:8]}"


def slug(name: str) -> str:
    """Reduce a name to letters, digits, dots, dashes and underscores, which need no quotes in a shell or override."""
    words = [re.sub(r"[^A-Za-z0-9._-]+", "-", word).strip("-.") for word in name.split()]
    return "__".join(words)[:80].rstrip("-_.")
