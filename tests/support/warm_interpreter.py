"""An interpreter that has imported what train.py and sample.py need, and forks for each command it is sent.

`python warm_interpreter.py <socket>` takes {"script", "arguments", "cwd", "environment"} with three files: stdout,
stderr, and one for the answer: the new process's id and, when it has ended, its exit status. That process is what
`python <script> <arguments>` would be, with its own folder, environment and signals, and runs the script as __main__
until its threads have ended and its exit handlers are through. All that is missing are the seconds it would have spent
on imports, and those on taking a million objects apart before it goes. The fork server of a sweep comes about in the
same way: from a child that was forked before the command began, so that it knows nothing of it.
"""

import atexit
import fcntl
import gc
import importlib
import json
import os
import resource
import runpy
import signal
import socket
import sys
from multiprocessing import util
from pathlib import Path
from typing import NoReturn

IMPORTS = (
    *("flowdiff.launch.worker", "flowdiff.cli.train", "flowdiff.cli.sample", "hydra_plugins.flowdiff"),
    *("sklearn.datasets", "matplotlib.pyplot"),
)
LONGEST = 1 << 17  # bytes of a command
FREE = 100  # above the numbers of the files of a command
statuses: list[int] = []  # the exit status of this process, once it is known


def received(channel: socket.socket) -> dict:
    """A command, in the process that is to run it: nobody else returns from here."""
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the tests and their commands
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # keepers leave no zombies
    while True:
        message, files, _, _ = socket.recv_fds(channel, LONGEST, 3)
        if not message:
            os._exit(0)  # the tests are over
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


def spare() -> None:
    """Fork a child that becomes the fork server of this process, when it asks for one, and goes with it otherwise."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    if (child := os.fork()) == 0:
        ours.close()
        _serve(theirs)
    theirs.close()
    start = util.spawnv_passfds

    def started(path: str, arguments: list[str], files: list[int]) -> int:
        if ours.fileno() < 0 or "forkserver" not in arguments[-1]:
            return start(path, arguments, files)
        request = {
            "code": arguments[-1],
            "files": files,
            "environment": dict(os.environ),
            "blocked": [int(number) for number in signal.pthread_sigmask(signal.SIG_BLOCK, ())],
            "largest": resource.getrlimit(resource.RLIMIT_FSIZE),
        }
        socket.send_fds(ours, [json.dumps(request).encode()], files)
        ours.close()
        return child

    util.spawnv_passfds = started


def _serve(channel: socket.socket) -> NoReturn:
    """Wait for a request, and be what `python -c <its code>` with its files and environment would be."""
    message, files, _, _ = socket.recv_fds(channel, LONGEST, 3)
    if message:
        request = json.loads(message)
        for file, place in zip([fcntl.fcntl(f, fcntl.F_DUPFD, FREE) for f in files], request["files"], strict=True):
            os.dup2(file, place)
            os.close(file)
        os.environ.clear()
        os.environ.update(request["environment"])
        signal.pthread_sigmask(signal.SIG_SETMASK, request["blocked"])
        resource.setrlimit(resource.RLIMIT_FSIZE, request["largest"])
        try:
            exec(request["code"], {"__name__": "__main__"})
        except SystemExit:
            pass
        except BaseException:
            sys.excepthook(*sys.exc_info())
    os._exit(0)


def leave() -> None:
    """The last exit handler: end this process where it has a status, and let Python take itself apart otherwise."""
    gc.unfreeze()
    if statuses:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(statuses[0])


if __name__ == "__main__":
    atexit.register(leave)  # before anything else is
    for name in IMPORTS:
        importlib.import_module(name)
    assert len(list(Path("/proc/self/task").iterdir())) == 1  # a fork would lose the other threads
    gc.freeze()  # what is shared is no garbage: collections need not walk, and thereby copy, it
    command = received(socket.socket(fileno=int(sys.argv[1])))
    os.chdir(command["cwd"])
    os.environ.clear()
    os.environ.update(command["environment"])
    spare()
    sys.argv = [command["script"], *command["arguments"]]
    sys.path[0] = str(Path(command["script"]).parent)
    try:
        runpy.run_path(command["script"], run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            statuses.append(end.code or 0)
        raise
    statuses.append(0)
