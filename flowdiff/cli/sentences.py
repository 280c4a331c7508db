"""Commands whose errors end as one sentence on stderr; HYDRA_FULL_ERROR=1 shows the traceback instead."""

from __future__ import annotations

import gc
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from flowdiff.errors import ConfigurationError, FlowdiffError
from flowdiff.runs.processes import forget_leftovers

INTERRUPTED = 130  # exit status, as a shell reports a program that Ctrl-C ended
# Hydra's options that take a value, and those that print something in place of running a job.
WITH_VALUE = ("--cfg", "-c", "--package", "-p", "--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd")
PRINTING = ("--cfg", "-c", "--info", "-i")
SWEEPING = ("-m", "--multirun")
# Allocations between two garbage collections while a command composes, which makes little garbage and much that stays:
# Python's own 700 cost 4 % of `--cfg job`.
COLLECT_EVERY = 100_000
PYTHON_THRESHOLDS = gc.get_threshold()


@contextmanager
def errors_in_sentences() -> Iterator[None]:
    """Inside the `with`, an error that a user can fix ends the process with one sentence and its exit status."""
    from flowdiff.runs.files import disk_error

    any_text_can_be_printed()
    try:
        yield
    except FlowdiffError as error:
        _exit(error, error.exit_status)
    except OSError as error:
        sentence = disk_error(error, "the output folder")
        if sentence is None:
            raise
        _exit(sentence, sentence.exit_status)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)


def any_text_can_be_printed() -> None:
    """Print a ? for a character that the terminal's encoding lacks: printing must not end a run."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def run_in_sentences(command: Callable[[], None], config_name: str) -> None:
    """Run a Hydra command; errors that a user can fix end as one sentence and an exit status."""
    from flowdiff import config

    gc.set_threshold(COLLECT_EVERY)
    any_text_can_be_printed()
    forget_leftovers()
    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        command()
        return
    logging.raiseExceptions = False  # if the log file's disk is full, do not print a traceback for every line
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them
    arguments = [argument for argument in sys.argv[1:] if not argument.startswith("-")]
    try:
        with errors_in_sentences(), config.hydra_errors(arguments, config_name):
            command()
    finally:
        os.environ.pop("HYDRA_FULL_ERROR", None)


def hydra_command(job: Callable[[Any], Any], config_name: str, arguments: Sequence[str]) -> None:
    """Run `job(config)` under Hydra, once or for every job of a sweep; the first error is raised at the end.

    job: finds the command line in sys.argv as the user gave it: Lightning starts the other ranks with it.
    arguments: what Hydra reads in its place.
    """
    import hydra

    from flowdiff import config
    from flowdiff.yaml_defaults import CONF

    errors: list[FlowdiffError] = []
    given = sys.argv

    def collecting(composed: Any) -> Any:
        sys.argv = given
        gc.set_threshold(*PYTHON_THRESHOLDS)
        try:
            return job(composed)
        except FlowdiffError as error:  # Hydra would print its own line above the sentence
            errors.append(error)
            return None

    options, overrides = _separated(arguments)
    printing = [option for option in options if option.partition("=")[0] in PRINTING]
    if printing and any(option in SWEEPING for option in options):
        raise ConfigurationError(
            f"{printing[0]} prints the config of one run, and -m starts several: remove -m, and give every setting one "
            "value."
        )
    sys.argv = [given[0], *options, *config.without_null_choices(overrides)]
    try:
        hydra.main(config_path=str(CONF), config_name=config_name, version_base="1.3")(collecting)()
    finally:
        sys.argv = given
    if errors:
        raise errors[0]


def _separated(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Hydra's options and the overrides: argparse refuses overrides on both sides of an option."""
    options: list[str] = []
    overrides: list[str] = []
    for before, argument in zip(["", *arguments], arguments, strict=False):
        is_option = argument.startswith("-") or before in WITH_VALUE
        if argument in ("--info", "-i"):
            argument = "--info=all"  # not the override that follows
        (options if is_option else overrides).append(argument)
    return options, overrides


def _exit(sentence: object, status: int) -> NoReturn:
    print(sentence, file=sys.stderr)
    sys.exit(status)
