"""An interpreter that has imported everything that train.py and sample.py need, and forks for each command it receives.

`python warm_interpreter.py <socket>` receives {"script", "arguments", "cwd", "environment"} and three files: stdout,
stderr, and one for the answer, which is the pid of the new process and, after its end, its exit status. That process
behaves like `python <script> <arguments>`, with its own folder, environment and signals; it runs the script as
__main__, waits for its threads and runs its exit handlers. It only saves the seconds for imports, and those for
deleting a million objects at the end. The fork server of a sweep is made in the same way, from a child that was forked
before the command began and so is not affected by it.
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
    *("flowdiff.launch.worker", "flowdiff.launch.search.sweeper", "flowdiff.cli.train", "flowdiff.cli.sample"),
    *("hydra_plugins.flowdiff", "sklearn.datasets", "matplotlib.pyplot"),
)
MAX_BYTES = 1 << 17  # of a command
FREE_DESCRIPTOR = 100  # greater than all file descriptors of a command
statuses: list[int] = []  # the exit status of this process, once it is known


def received(channel: socket.socket) -> dict:
    """Fork for each command and return it in the new process; in all other processes this function never returns."""
    interrupt = signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is meant for the tests and their commands
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # the watchers below leave no zombies
    while True:
        message, files, _, _ = socket.recv_fds(channel, MAX_BYTES, 3)
        if not message:
            os._exit(0)  # the tests have ended
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            if process := os.fork():
                _watch(process, files[2])
            signal.signal(signal.SIGINT, interrupt)
            for place, file in enumerate(files[:2], start=1):
                os.dup2(file, place)
            for file in (*files, channel.detach()):
                os.close(file)
            return json.loads(message)
        for file in files:
            os.close(file)


def _watch(process: int, answer: int) -> NoReturn:
    """Report the pid and then the exit status of a child process: only its parent can wait for it."""
    os.write(answer, f"{process}\n".encode())
    status = os.waitpid(process, 0)[1]
    os.write(answer, f"{os.waitstatus_to_exitcode(status)}\n".encode())
    os._exit(0)


def spare_fork_server() -> None:
    """Fork a child that becomes the fork server of this process when it starts one, and otherwise ends with it."""
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
    """Wait for a request, then behave like `python -c <its code>` with its files and environment."""
    message, files, _, _ = socket.recv_fds(channel, MAX_BYTES, 3)
    if message:
        request = json.loads(message)
        for file, place in zip(
            [fcntl.fcntl(f, fcntl.F_DUPFD, FREE_DESCRIPTOR) for f in files], request["files"], strict=True
        ):
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


def end_at_once() -> None:
    """The last exit handler: end at once if the exit status is known; otherwise let Python end as usual."""
    gc.unfreeze()
    if statuses:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(statuses[0])


if __name__ == "__main__":
    atexit.register(end_at_once)  # first, so that it runs last
    for name in IMPORTS:
        importlib.import_module(name)
    assert len(list(Path("/proc/self/task").iterdir())) == 1  # a fork would lose other threads
    gc.freeze()  # collections need not walk, and thereby copy, the shared objects
    command = received(socket.socket(fileno=int(sys.argv[1])))
    os.chdir(command["cwd"])
    os.environ.clear()
    os.environ.update(command["environment"])
    spare_fork_server()
    sys.argv = [command["script"], *command["arguments"]]
    sys.path[0] = str(Path(command["script"]).parent)
    try:
        runpy.run_path(command["script"], run_name="__main__")
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            statuses.append(end.code or 0)
        raise
    statuses.append(0)
