"""The command line: `flowdiff train|sample|report|status|cancel|sync|adapter|export|push|ema|data …`.

`flowdiff train` and `flowdiff sample` are the same as train.py and sample.py. A user's mistake ends as one sentence on
stderr and exit status 2; HYDRA_FULL_ERROR=1 shows the traceback.
"""

from __future__ import annotations

import sys
from importlib import import_module

from flowdiff.cli.sentences import any_text_can_be_printed, errors_in_sentences
from flowdiff.errors import nearest

HYDRA_COMMANDS = ("train", "sample")
PLAIN_COMMANDS = ("report", "status", "cancel", "sync", "adapter", "export", "push", "ema", "data")


def main() -> None:
    """Entry point of `flowdiff <command> …`."""
    any_text_can_be_printed()
    commands = (*HYDRA_COMMANDS, *PLAIN_COMMANDS)
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(f"usage: flowdiff {{{','.join(commands)}}} …\n\neach command has its own --help")
        return
    name = sys.argv.pop(1)
    if name not in commands:
        sys.exit(f"flowdiff {name} is unknown: {nearest(name, commands)}.")
    sys.argv[0] = f"flowdiff {name}"
    command = import_module(f"flowdiff.cli.{name}")
    if name in HYDRA_COMMANDS:
        command.main()
        return
    with errors_in_sentences():
        sys.exit(command.main(sys.argv[1:]))
