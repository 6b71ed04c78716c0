"""Slurm from nothing on this machine, and what a sweep on it makes of a preemption and a kill.

    python scripts/slurm_demo.py          as root, on Debian or Ubuntu; it takes about two minutes

It installs Slurm's packages if they are missing (``apt-get``), starts a cluster of one node with
accounting, on loopback and with every file in one temporary folder (no systemd, no cgroups, nothing
under /etc), and then, with jobs of a second or two of training:

1. starts a sweep of four jobs, ``python -m gradlab -m hydra/launcher=slurm … seed=range(4)``;
2. preempts job 0, as a cluster does that wants its node back: ``scancel --signal=USR2 --full``. It
   saves, is queued again, goes on, and ends with the same bits as a run that was left alone;
3. kills the python of job 1 with SIGKILL. Its siblings finish, and the sweep names it;
4. gives the command that goes on with what is unfinished, and compares job 1 likewise;
5. takes the cluster down again.

It prints a line for each of these and ends with exit code 0 if all of them held. Every wait has a
bound; one that takes too long is an error that says what was waited for.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

PACKAGES = ("slurm-wlm", "slurmdbd", "munge", "mariadb-server")
PROGRAMS = ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd", "mariadb-install-db")

LINE = [
    *("model=rnn", "model.hidden=4", "task.length=8", "task.held_out_examples=4", "probe=adjoint"),
    *("trainer.batch=3", "trainer.steps=20000", "trainer.log_every=20"),
    *("trainer.checkpoint_seconds=0.3", "record.figures=false", "record.wandb.mode=disabled"),
]
"""A run of a few seconds that saves often."""


class Failed(Exception):
    """Something that this script shows did not hold, or took too long."""


def main() -> None:
    """Show it all, and end with exit code 1 if something does not hold."""
    begun = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="gradlab-slurm-"))
    try:
        install()
        with cluster(folder) as environment:
            say(f"a cluster of one node is up, {time.monotonic() - begun:.0f} s after the start")
            Show(folder, environment).all()
        say("the cluster is down")
    except Failed as error:
        print(f"failed: {error}", file=sys.stderr, flush=True)
        sys.exit(1)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    say(f"all of it held, in {time.monotonic() - begun:.0f} s")


def say(text: str) -> None:
    """Print a line at once."""
    print(text, flush=True)


def check(holds: bool, what: str, *details: object) -> None:
    """Print what holds.

    Raises:
      Failed: if it does not.
    """
    if not holds:
        raise Failed("\n".join([what, *map(str, details)]))
    say(f"ok: {what}")


def wait_for(what: str, ready: Callable[[], Any], seconds: float, every: float = 0.1) -> Any:
    """What ``ready`` gives, once that is true.

    Raises:
      Failed: if that takes longer than ``seconds``.
    """
    end = time.monotonic() + seconds
    while not (found := ready()):
        if time.monotonic() > end:
            raise Failed(f"waited {seconds:.0f} s for {what}")
        time.sleep(every)
    return found


# The cluster.


def install() -> None:
    """Install what is missing of Slurm.

    Raises:
      Failed: if that cannot be.
    """
    if os.geteuid() != 0:
        raise Failed("Slurm's daemons are started by root only; run this as root")
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if not missing:
        return
    if shutil.which("apt-get") is None:
        raise Failed(f"{', '.join(missing)} missing, and no apt-get to install Slurm with")
    say(f"installing {', '.join(PACKAGES)}")
    # The packages start no service: an initramfs or container without systemd could not.
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    options = ["-y", "-qq", "--no-install-recommends", "-o", "DPkg::Lock::Timeout=60"]
    for words in (["update", "-qq"], ["install", *options, *PACKAGES]):
        run(["apt-get", *words], environment, seconds=150)


def run(command: Sequence[str], environment: Mapping[str, str], seconds: float = 20) -> str:
    """What a command prints.

    Raises:
      Failed: if it fails or takes longer than ``seconds``.
    """
    try:
        done = subprocess.run(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
        )
    except subprocess.TimeoutExpired:
        raise Failed(f"waited {seconds:.0f} s for {' '.join(command)}") from None
    if done.returncode:
        raise Failed(f"{' '.join(command)} ended with {done.returncode}\n{done.stdout[-2000:]}")
    return done.stdout


def works(command: Sequence[str], environment: Mapping[str, str]) -> bool:
    """Whether a command succeeds, and soon."""
    try:
        run(command, environment, seconds=5)
    except Failed:
        return False
    return True


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """A cluster while it lasts; gives the environment for Slurm's commands."""
    ports = free_ports(3)
    for name in ("munge", "mysql", "state", "spool"):
        (folder / name).mkdir()
    folder.chmod(0o755)  # munge wants its socket where everybody can go
    (folder / "munge").chmod(0o711)
    write_configuration(folder, ports)
    environment = {
        **{key: v for key, v in os.environ.items() if not key.startswith(("SLURM_", "SBATCH_"))},
        "SLURM_CONF": str(folder / "slurm.conf"),
        "MYSQL_UNIX_PORT": str(folder / "mysql.sock"),  # for slurmdbd
    }
    with ExitStack() as running:

        def start(*command: str) -> None:
            running.enter_context(daemon(command, environment, folder / f"{command[0]}.log"))

        munge = [f"--{kind}={folder}/munge/{kind}" for kind in ("pid-file", "seed-file")]
        munge += [f"--log-file={folder}/munge/log", f"--key-file={folder}/munge/key"]
        start("munged", "--foreground", "--force", f"--socket={folder}/munge/socket", *munge)
        database = ["--no-defaults", "--user=root", f"--datadir={folder}/mysql"]
        run(["mariadb-install-db", *database, "--skip-test-db"], environment, seconds=60)
        limits = ["--skip-networking", "--innodb-buffer-pool-size=64M", "--skip-log-bin"]
        files = [f"--socket={folder}/mysql.sock", f"--pid-file={folder}/mysql.pid"]
        start("mariadbd", *database, *files, *limits)
        ping = ["mariadb-admin", "--no-defaults", f"--socket={folder}/mysql.sock", "ping"]
        wait_for("the database", lambda: works(ping, environment), 30)
        credential = ["munge", "-n", f"--socket={folder}/munge/socket"]
        wait_for("munge", lambda: works(credential, environment), 10)
        start("slurmdbd", "-D")
        clusters = ["sacctmgr", "-n", "list", "cluster"]
        wait_for("the accounting daemon", lambda: works(clusters, environment), 30)
        run(["sacctmgr", "-i", "add", "cluster", "local"], environment)
        start("slurmctld", "-D")
        start("slurmd", "-D")
        state = ["sinfo", "--noheader", "--format=%t"]
        wait_for(
            "an idle node",
            lambda: works(state, environment) and run(state, environment).strip() == "idle",
            30,
        )
        try:
            yield environment
        finally:
            end_jobs(environment)


def end_jobs(environment: Mapping[str, str]) -> None:
    """Cancel what is left in the queue, so that nothing outlives the node's daemon."""
    queue = ["squeue", "--noheader", "--format=%A"]
    for job in set(run(queue, environment).split()):
        run(["scancel", "--signal=KILL", "--full", job], environment)
        run(["scancel", job], environment)
    wait_for("the end of the last jobs", lambda: not run(queue, environment).strip(), 30)


@contextmanager
def daemon(
    command: Sequence[str], environment: Mapping[str, str], log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the background; it is ended, and waited for, at the end."""
    with log.open("wb") as file:
        started = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    try:
        yield started
    finally:
        started.terminate()
        try:
            started.wait(20)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait(5)


def free_ports(number: int) -> list[int]:
    """Ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def write_configuration(folder: Path, ports: Sequence[int]) -> None:
    """``slurm.conf`` and ``slurmdbd.conf``, and munge's key."""
    host = socket.gethostname().partition(".")[0]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    munge = f"AuthType=auth/munge\nAuthInfo=socket={folder}/munge/socket,cred_expire=5"
    (folder / "slurm.conf").write_text(
        f"""ClusterName=local
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
SlurmUser=root
SlurmdUser=root
{munge}
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort={ports[2]}
AccountingStoragePass={folder}/munge/socket
SchedulerParameters=sched_interval=2,batch_sched_delay=0,bf_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
KillWait=5
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
NodeName={host} NodeAddr=127.0.0.1 CPUs={os.cpu_count()} RealMemory={memory // 2} State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""
    )
    accounting = folder / "slurmdbd.conf"
    accounting.write_text(
        f"""{munge}
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={ports[2]}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct
PidFile={folder}/slurmdbd.pid
"""
    )
    accounting.chmod(0o600)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o400)


# What is shown.
