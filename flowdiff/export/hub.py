"""Exported folders on the Hugging Face hub, by the package huggingface_hub (extra `hub`)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Protocol

from flowdiff.errors import ConfigurationError, RunError
from flowdiff.runs.run_folder import RunFolder

SCHEME = "hub:"


class Hub(Protocol):
    """The methods of huggingface_hub.HfApi that are called here."""

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> Any:
        """Make a repository, if it does not exist."""

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str, ignore_patterns: list[str]) -> Any:
        """Upload a folder as one commit."""

    def snapshot_download(self, repo_id: str, *, revision: str | None) -> str:
        """The folder of a repository's files, downloaded if they are not in the cache."""


def located(run: str | Path, hub: Hub | None = None) -> Path:
    """The folder that "hub:user/name" or "hub:user/name@revision" names; any other path as it is.

    Args:
        run: a folder or a name on the hub.
        hub: what downloads; None: the hub itself.

    Raises:
        ConfigurationError: the name has another form, or huggingface_hub is missing.
        RunError: it cannot be downloaded, or is not an exported folder.
    """
    if not str(run).startswith(SCHEME):
        return Path(run)
    name, _, revision = str(run).removeprefix(SCHEME).partition("@")
    _check_name(name, str(run))
    try:
        folder = Path((hub or _hub()).snapshot_download(name, revision=revision or None))
    except ConfigurationError:
        raise
    except Exception as error:  # the hub, the network and the file system raise many kinds
        raise RunError(
            f"{run} cannot be downloaded ({_first_line(error)}): check the name and the connection, and that "
            "HF_HUB_OFFLINE is not set."
        ) from error
    if RunFolder(folder).exported() is None:
        raise RunError(f"{run} is not a model of flowdiff, it has no export.json: give one that `flowdiff push` made.")
    return folder


def push(folder: str | Path, name: str, private: bool = False, hub: Hub | None = None) -> None:
    """Upload an exported folder to the hub; the repository is made if it does not exist.

    Args:
        folder: a folder that `flowdiff export` wrote.
        name: user/name.
        private: whether a new repository is private.
        hub: what uploads; None: the hub itself, by the token that `hf auth login` has stored.

    Raises:
        ConfigurationError: the name has another form, or huggingface_hub is missing.
        RunError: the folder was not exported, or the hub refuses it.
    """
    _check_name(name, name)
    if RunFolder(folder).exported() is None:
        raise RunError(f"{folder} was not exported: write it with `flowdiff export <run> {folder}` first.")
    used_hub = hub or _hub()
    try:
        used_hub.create_repo(name, private=private, exist_ok=True)
        used_hub.upload_folder(
            repo_id=name,
            folder_path=str(folder),
            commit_message="flowdiff push",
            ignore_patterns=["samples/**", "*.log", ".*"],  # what sample.py has written here later
        )
    except Exception as error:  # as above
        raise RunError(
            f"{folder} cannot be uploaded to {name} ({_first_line(error)}): log in with `hf auth login`, and check the "
            "name, the connection, and that HF_HUB_OFFLINE is not set."
        ) from error


def _check_name(name: str, given: str) -> None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise ConfigurationError(f"{given} does not name a model on the hub: give user/name.")


def _hub() -> Hub:
    try:
        from huggingface_hub import HfApi
    except ImportError as error:
        raise ConfigurationError(
            "the Hugging Face hub needs the package huggingface_hub: pip install 'flowdiff[hub]'."
        ) from error
    return HfApi()


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".: ")
