"""A real SLURM of one node for the tests in this folder: munge, slurmctld and slurmd.

It uses the installed programs (Debian: munge, slurm-client, slurmctld, slurmd) and needs root. It has its own folder
and ports, listens on loopback only, and is removed with everything that ran on it. Partition `urgent` preempts `debug`.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import pytest
from cli_process import REAL
from sweep_workers import wait_until

from flowdiff.launch.local import LocalPool

CPUS = 6  # advertised, whatever the machine has
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")

CONFIG = """
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld_port}
SlurmdPort={slurmd_port}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
# cred_expire: a start may take this long on a busy machine; a requeued job starts again only after it.
AuthInfo=socket={folder}/munge/socket,cred_expire=12
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
ReturnToService=2
KillWait=20
MinJobAge=600
PlugStackConfig={folder}/plugstack.conf
MailProg=/bin/true
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=debug Nodes={host} Default=YES DefaultTime=10 PriorityTier=1 PreemptMode=REQUEUE GraceTime=60
PartitionName=urgent Nodes={host} DefaultTime=10 PriorityTier=100 PreemptMode=OFF
"""


@pytest.fixture(scope="package")
def cluster():
    """Start SLURM and set SLURM_CONF; skip the tests, with the reason, where that is impossible."""
    LocalPool(REAL).prepare()  # now, because what is started with SLURM_CONF ends with the cluster
    folder = Path(tempfile.mkdtemp(prefix="flowdiff-slurm-"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin:/sbin")  # where Debian puts the daemons
        if reason := _missing():
            pytest.skip(reason)
        for key in [key for key in os.environ if key.startswith(("SLURM", "SBATCH", "SRUN", "SQUEUE"))]:
            patch.delenv(key)  # of a cluster on which these tests may run themselves
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        try:
            try:
                _start(folder)
            except (OSError, subprocess.SubprocessError, AssertionError) as error:
                logs = "".join(path.read_text()[-500:] for path in folder.glob("*.log"))
                pytest.skip(f"SLURM does not start here: {error} {logs}")
            yield folder
        finally:
            _stop(folder)
            shutil.rmtree(folder, ignore_errors=True)


def _missing() -> str | None:
    if os.geteuid() != 0:
        return "a SLURM of one node needs root"
    if missing := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"{', '.join(missing)} not installed (Debian: munge slurm-client slurmctld slurmd)"
    try:
        address = socket.gethostbyname(_host())
    except OSError:
        address = "nothing"
    return None if address.startswith("127.") else f"{_host()} resolves to {address}, not to loopback: see /etc/hosts"


def _start(folder: Path) -> None:
    folder.chmod(0o755)
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir()
    key = folder / "munge" / "key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(1024))
    (folder / "plugstack.conf").touch()
    with socket.socket() as one, socket.socket() as other:
        for s in (one, other):
            s.bind(("127.0.0.1", 0))
        ports = {"ctld_port": one.getsockname()[1], "slurmd_port": other.getsockname()[1]}
    (folder / "slurm.conf").write_text(CONFIG.format(host=_host(), folder=folder, cpus=CPUS, **ports).lstrip())
    munge = [f"--{name}={folder}/munge/{name}" for name in ("socket", "pid-file", "log-file", "seed-file")]
    # --force: munged otherwise refuses a folder that other users cannot enter.
    _run("munged", "--force", "--num-threads=2", f"--key-file={key}", *munge)
    _run("slurmctld")
    _run("slurmd")
    state = "sinfo", "--noheader", "--partition=debug", "--format=%T"
    wait_until(lambda: _run(*state, check=False) == "idle", 60, 0.2)


def _stop(folder: Path) -> None:
    with suppress(OSError, subprocess.SubprocessError, AssertionError):
        for job in _run("squeue", "--noheader", "--format=%A").split():
            _run("scontrol", "update", f"jobid={job}", "requeue=0", check=False)
            _run("scancel", job, check=False)
        wait_until(lambda: not _run("squeue", "--noheader"), 30, 0.2)
    # The daemons, and what jobs have left: only these have the folder in their environment.
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if str(folder).encode() in path.read_bytes() and int(path.parent.name) != os.getpid():
                os.kill(int(path.parent.name), signal.SIGKILL)


def _run(*command: str, check: bool = True) -> str:
    quiet = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
    return subprocess.run(command, timeout=60, check=check, **quiet).stdout.strip()


def _host() -> str:
    return socket.gethostname().partition(".")[0]
