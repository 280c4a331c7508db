"""The command line: `flowdiff train|sample|report|status|cancel|sync …`, and the same as train.py and sample.py.

A user's mistake ends as one sentence on stderr and exit status 2; HYDRA_FULL_ERROR=1 shows the traceback.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

from flowdiff.errors import FlowdiffError

PLAIN = ("report", "status", "cancel", "sync")  # the commands without Hydra


def main() -> None:
    """`flowdiff <command> …`."""
    from flowdiff.errors import nearest

    commands = {"train": _train, "sample": _sample, **{name: partial(_plain, name) for name in PLAIN}}
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(f"usage: flowdiff {{{','.join(commands)}}} …\n\neach command has its own --help")
        return
    name = sys.argv.pop(1)
    if name not in commands:
        sys.exit(f"flowdiff {name} is unknown: {nearest(name, commands)}.")
    sys.argv[0] = f"flowdiff {name}"
    commands[name]()


def hydra_command(job: Callable[[Any], Any], config_name: str) -> None:
    """Run `job(config)` under Hydra, once or for every job of a sweep; the first error is raised at the end."""
    import hydra

    from flowdiff.config import CONF

    errors: list[FlowdiffError] = []

    def quiet(config: Any) -> Any:
        try:
            return job(config)
        except FlowdiffError as error:  # Hydra would print its own line above the sentence
            errors.append(error)
            return None

    hydra.main(config_path=str(CONF), config_name=config_name, version_base="1.3")(quiet)()
    if errors:
        raise errors[0]


def in_sentences(command: Callable[[], None], config_name: str) -> None:
    """Run a Hydra command; errors that a user can mend end as one sentence and exit status 2."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    from flowdiff import config

    if os.environ.get("HYDRA_FULL_ERROR") == "1":
        command()
        return
    logging.raiseExceptions = False  # a log file on a full disk is no reason for a traceback at every line
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands its errors to us instead of printing them
    try:
        command()
    except FlowdiffError as error:
        _exit(error)
    except (HydraException, OmegaConfBaseException) as error:
        _exit(config.explain(error, [a for a in sys.argv[1:] if not a.startswith("-")], config_name))
    except OSError as error:
        _exit(_about_disk(error))
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        os.environ.pop("HYDRA_FULL_ERROR", None)


def _exit(message: object) -> None:
    print(message, file=sys.stderr)
    sys.exit(getattr(message, "exit_status", 2))


def _about_disk(error: OSError) -> FlowdiffError:
    from flowdiff.runs.files import disk_error

    sentence = disk_error(error, "the output folder")
    if sentence is None:
        raise error
    return sentence


def _train() -> None:
    from flowdiff.cli.train import main

    main()


def _sample() -> None:
    from flowdiff.cli.sample import main

    main()


def _plain(name: str) -> None:
    """A command without Hydra."""
    try:
        sys.exit(import_module(f"flowdiff.cli.{name}").main(sys.argv[1:]))
    except FlowdiffError as error:
        _exit(error)
    except OSError as error:
        _exit(_about_disk(error))
    except KeyboardInterrupt:
        sys.exit(130)
