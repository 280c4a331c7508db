"""`python several_commands.py <train|sample> <list of lists of arguments>`: one after the other, in one process.

Prints, as JSON, the exit status of each and what it has written to stderr.
"""

import contextlib
import io
import json
import sys
from importlib import import_module


def outcome(name: str, arguments: list[str]) -> tuple[int, str]:
    sys.argv = [f"{name}.py", *arguments]
    status, stderr = 0, io.StringIO()
    try:
        with contextlib.redirect_stderr(stderr), contextlib.redirect_stdout(io.StringIO()):
            import_module(f"flowdiff.cli.{name}").main()
    except SystemExit as end:
        status = end.code
    return status, stderr.getvalue()


if __name__ == "__main__":
    name, commands = sys.argv[1], json.loads(sys.argv[2])
    print(json.dumps([outcome(name, arguments) for arguments in commands]))
