"""An interpreter that has imported what train.py and sample.py need, and forks for each command it is sent.

`python warm_interpreter.py <socket>` takes {"script", "arguments", "cwd", "environment"} with three files: stdout,
stderr, and one for the answer: the new process's id and, when it has ended, its exit status. That process is what
`python <script> <arguments>` would be, with its own folder, environment and signals, and runs the script as __main__
until the interpreter shuts down by itself. All that is missing are the seconds it would have spent on imports.
"""

import atexit
import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
from pathlib import Path
from typing import NoReturn

IMPORTS = ("flowdiff.cli.worker", "flowdiff.cli.train", "flowdiff.cli.sample", "hydra_plugins.flowdiff")
LONGEST = 1 << 17  # bytes of a command


def received(channel: socket.socket) -> dict:
    """A command, in the process that is to run it: nobody else returns from here."""
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests and their commands
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers leave no zombies
    while True:
        message, files, _, _ = socket.recv_fds(channel, LONGEST, 3)
        if not message:
            sys.exit()  # the tests are over
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if process := os.fork():
                _keep(process, files[2])
            signal.signal(signal.SIGINT, interrupt)
            for place, file in enumerate(files[:2], start=1):
                os.dup2(file, place)
            for file in (*files, channel.detach()):
                os.close(file)
            return json.loads(message)
        for file in files:
            os.close(file)


def _keep(process: int, answer: int) -> NoReturn:
    """Wait for a process as its parent, which only a parent can, and tell what became of it."""
    os.write(answer, f"{process}\n".encode())
    status = os.waitpid(process, 0)[1]
    os.write(answer, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    for name in IMPORTS:
        importlib.import_module(name)
    assert len(list(Path("/proc/self/task").iterdir())) == 1  # a fork would lose the other threads
    gc.freeze()  # what is shared is no garbage: collections need not walk, and thereby copy, it
    atexit.register(gc.unfreeze)  # until the end
    command = received(socket.socket(fileno=int(sys.argv[1])))
    os.chdir(command["cwd"])
    os.environ.clear()
    os.environ.update(command["environment"])
    sys.argv = [command["script"], *command["arguments"]]
    sys.path[0] = str(Path(command["script"]).parent)
    runpy.run_path(command["script"], run_name="__main__")
