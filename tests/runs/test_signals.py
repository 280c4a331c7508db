"""Stop signals end a process but not its forked children, and do not reach processes started while they are blocked."""

import pytest
from cli_process import code

from flowdiff.runs.signals import EXIT_STOPPED, STOP_SIGNALS

EXIT = """
import os, sys, time
from flowdiff.runs.signals import exit_on_stop_signal
exit_on_stop_signal()
child = os.fork()
if child == 0:
    os.kill(os.getpid(), {number})  # does not end a forked process
    time.sleep(0.1)
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
os.kill(os.getpid(), {number})
time.sleep(60)
"""
BLOCKED = """
import os, subprocess, sys
from flowdiff.runs.signals import exit_on_stop_signal, stop_signals_blocked
code = "import time; print(flush=True); time.sleep(0.5); print('lived')"
with stop_signals_blocked():
    helper = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    os.kill(os.getpid(), {number})
    helper.stdout.readline()
    helper.send_signal({number})
    print(helper.stdout.read().strip(), flush=True)
    exit_on_stop_signal()
"""


@pytest.mark.parametrize("number", STOP_SIGNALS)
@pytest.mark.parametrize(("program", "output"), [(EXIT, "7"), (BLOCKED, "lived")])
def test_whom_a_stop_signal_ends(number, program, output):
    process = code(program.format(number=int(number)))
    assert (process.communicate(timeout=60)[0].strip(), process.returncode) == (output, EXIT_STOPPED)
