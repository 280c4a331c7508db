"""Being asked to stop: by whom it is heeded, and from whom it is withheld."""

import subprocess
import sys

import pytest

from flowdiff.runs.signals import ASKING, STOPPED

HEED = """
import os, signal, sys, time
from flowdiff.runs.signals import heed
heed()
child = os.fork()
if child == 0:
    os.kill(os.getpid(), {number})  # not for a process forked from it
    time.sleep(0.1)
    os._exit(7)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
os.kill(os.getpid(), {number})
time.sleep(60)
"""

WITHHELD = """
import os, signal, subprocess, sys, time
from flowdiff.runs.signals import heed, withheld
code = "import time; print(flush=True); time.sleep(0.5); print('lived')"
with withheld():
    helper = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    os.kill(os.getpid(), {number})
    helper.stdout.readline()
    helper.send_signal({number})
    print(helper.stdout.read().strip(), flush=True)
    heed()
"""


@pytest.mark.parametrize("number", ASKING)
@pytest.mark.parametrize(("code", "said"), [(HEED, "7"), (WITHHELD, "lived")])
def test_who_is_asked(number, code, said):
    done = subprocess.run(
        [sys.executable, "-c", code.format(number=int(number))], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout.strip(), done.returncode) == (said, STOPPED), done.stderr
