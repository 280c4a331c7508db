"""How the threads of a process wait for each other.

OpenMP's threads spin while they wait for work. On an idle machine this is fast. On a busy one a spinning thread takes
the core from the thread that it waits for: training beside other work is then ten times slower than it should be. So
the threads go to sleep after a short spin, which is as fast on an idle machine.
"""

from __future__ import annotations

import os
from collections.abc import MutableMapping

SPINS = "1000"  # about as long as the pause between two operations of a small model
SETTINGS = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")


def sleep_while_waiting(environment: MutableMapping[str, str] = os.environ) -> None:
    """Let OpenMP's threads sleep after a short spin, unless the environment says how they wait.

    It must run before torch is imported, because OpenMP reads its settings once.
    """
    if not any(name in environment for name in SETTINGS):
        environment["GOMP_SPINCOUNT"] = SPINS
