"""Commands whose errors end as one sentence on stderr; HYDRA_FULL_ERROR=1 shows the traceback instead."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

from flowdiff.errors import FlowdiffError

USER_ERROR = 2  # exit status
INTERRUPTED = 130  # exit status, as a shell reports a program that Ctrl-C ended


@contextmanager
def errors_in_sentences() -> Iterator[None]:
    """Inside the `with`, an error that a user can fix ends the process with one sentence and its exit status."""
    from flowdiff.runs.files import disk_error

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


def run_in_sentences(command: Callable[[], None], config_name: str) -> None:
    """Run a Hydra command; errors that a user can fix end as one sentence and an exit status."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from flowdiff import config

    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        command()
        return
    logging.raiseExceptions = False  # if the log file's disk is full, do not print a traceback for every line
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises its errors instead of printing them
    try:
        with errors_in_sentences():
            command()
    except (HydraException, OmegaConfBaseException) as error:
        arguments = [a for a in sys.argv[1:] if not a.startswith("-")]
        _exit(config.explain(error, arguments, config_name), USER_ERROR)
    finally:
        os.environ.pop("HYDRA_FULL_ERROR", None)


def hydra_command(job: Callable[[Any], Any], config_name: str) -> None:
    """Run `job(config)` under Hydra, once or for every job of a sweep; the first error is raised at the end."""
    import hydra

    from flowdiff.yaml_defaults import CONF

    errors: list[FlowdiffError] = []

    def collecting(config: Any) -> Any:
        try:
            return job(config)
        except FlowdiffError as error:  # Hydra would print its own line above the sentence
            errors.append(error)
            return None

    hydra.main(config_path=str(CONF), config_name=config_name, version_base="1.3")(collecting)()
    if errors:
        raise errors[0]


def _exit(sentence: object, status: int) -> NoReturn:
    print(sentence, file=sys.stderr)
    sys.exit(status)
