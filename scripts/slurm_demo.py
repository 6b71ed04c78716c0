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
    *("trainer.batch=3", "trainer.steps=30000", "trainer.log_every=20"),
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
        works(["scancel", "--signal=KILL", "--full", job], environment)  # it may have ended
        works(["scancel", job], environment)
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
class Show:
    """A sweep on the cluster, and what happens to its jobs.

    Args:
      folder: where everything is kept.
      environment: for Slurm's commands.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str]):
        self.folder, self.environment = folder, environment
        self.sweep, self.log = folder / "sweep", folder / "sweep.log"

    def all(self) -> None:
        """Show it, from the first job to the last."""
        begun = time.monotonic()
        launch = ["-m", "hydra/launcher=slurm", "hydra.launcher.cpus_per_task=1", *LINE]
        arguments = [*launch, "seed=range(4)", f"hydra.sweep.dir={self.sweep}"]
        with self.gradlab(self.log, *arguments) as sweep:
            self.disturb({1: self.kill, 0: self.preempt})
            code = wait_for("the end of the sweep", lambda: self.ended(sweep), 120)
        seconds = time.monotonic() - begun
        said = self.log.read_text(encoding="utf-8")
        say("".join(f"    {line}\n" for line in said.splitlines()).rstrip())
        check(code == 1, f"the sweep ends with exit code 1, after {seconds:.0f} s", code)
        named = [line for line in said.splitlines() if line.startswith("gradlab: job 1 (seed=1): ")]
        check(len(named) == 1 and "Slurm: " in named[0], "it names the killed job, and only that")
        check("gradlab: job 0" not in said, "the preempted job is not among those that failed")
        self.look_at_requeued()
        self.go_on(said)
        self.compare()

    @contextmanager
    def gradlab(self, log: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
        """The command line in the background, printing into a file."""
        command = [sys.executable, "-m", "gradlab", *arguments]
        say(f"$ python -m gradlab {' '.join(arguments)}")
        with log.open("wb") as file:
            started = subprocess.Popen(
                command, env=self.environment, cwd=self.folder, stdout=file, stderr=file
            )
        try:
            yield started
        except Failed as error:
            raise Failed(f"{error}\n{log.read_text(encoding='utf-8')[-4000:]}") from None
        finally:
            started.kill()
            started.wait(10)

    def ended(self, process: subprocess.Popen[bytes]) -> Any:
        """Its exit code, in a list so that 0 is true, or nothing."""
        return None if process.poll() is None else ExitCode(process.returncode)

    def disturb(self, what: dict[int, Callable[[int], None]]) -> None:
        """Do something to jobs, to each as soon as it has a checkpoint."""
        while what:

            def ready() -> list[int]:
                return [number for number in what if has_checkpoint(self.sweep / str(number))]

            number = wait_for(f"a checkpoint of job {' or '.join(map(str, what))}", ready, 60)[0]
            what.pop(number)(number)

    def preempt(self, number: int) -> None:
        """Ask a job to save and make room."""
        job = self.job_id(number)
        command = ["scancel", "--signal=USR2", "--full", job]
        say(f"preempted job {number}: {' '.join(command)}")
        # It would try again for a while where the job makes room at once.
        with daemon(command, self.environment, self.folder / "scancel.log"):
            wait_for(f"job {number} to make room", lambda: self.status(number) != "running", 30)

    def status(self, number: int) -> str:
        """What a job's record says of it."""
        from gradlab import open_run

        return open_run(self.sweep / str(number)).status

    def kill(self, number: int) -> None:
        """Kill the process of a job."""
        writer = (self.sweep / str(number) / "writer.lock").read_text(errors="replace")
        found = re.match(r"process (\d+) on ", writer)
        if found is None:
            raise Failed(f"job {number} ended before it could be killed")
        os.kill(int(found[1]), signal.SIGKILL)
        say(f"killed job {number}: kill -9 {found[1]}")

    def job_id(self, number: int) -> str:
        """What Slurm calls a job of the sweep."""
        queue = run(["squeue", "-h", "-r", "--format=%F_%K"], self.environment).split()
        found = [job for job in queue if job.endswith(f"_{number}")]
        if not found:
            raise Failed(f"job {number} has left the queue: {queue}")
        return found[0]

    def look_at_requeued(self) -> None:
        """Slurm says that the job was begun twice, and its record that it was interrupted."""
        from gradlab import open_run

        went_on = open_run(self.sweep / "0").info["resumed"]
        check([one["from"] for one in went_on] == ["interrupted"], "job 0 went on once", went_on)
        queued = run(["sacct", "-n", "-D", "-X", "--format=JobID,State", "-P"], self.environment)
        say("".join(f"    {line}\n" for line in queued.splitlines()).rstrip())
        states = [line.partition("|")[2] for line in queued.splitlines() if "_0|" in line]
        again = states[-1:] == ["COMPLETED"] and set(states[:-1]) == {"REQUEUED"}
        check(again, "Slurm had queued it again", states)

    def go_on(self, said: str) -> None:
        """Give the command that the sweep printed at its end; meanwhile run it undisturbed."""
        found = re.search(r"^ *python -m gradlab (.*trainer\.resume=\S+)$", said, re.MULTILINE)
        check(found is not None, "it prints the command that goes on")
        command = found[1].split() if found else []
        alone = ["-m", *LINE, "seed=0,1", f"hydra.sweep.dir={self.folder / 'alone'}"]
        with (
            self.gradlab(self.folder / "alone.log", *alone, "record.terminal=false") as other,
            self.gradlab(self.folder / "again.log", *command) as again,
        ):
            code = wait_for("the sweep that goes on", lambda: self.ended(again), 120)
            check(code == 0, "the sweep goes on and ends with exit code 0", code)
            code = wait_for("the undisturbed runs", lambda: self.ended(other), 60)
            check(code == 0, "the undisturbed runs end with exit code 0", code)

    def compare(self) -> None:
        """The disturbed runs have the same bits as those that were left alone."""
        from gradlab import open_run

        for number, from_ in ((0, "interrupted"), (1, "killed")):
            one, other = (open_run(self.folder / kind / str(number)) for kind in ("sweep", "alone"))
            went_on = [entry["from"] for entry in one.info["resumed"]]
            check(
                (one.status, went_on) == ("finished", [from_]), f"job {number} went on from there"
            )
            for kind in ("scalars", "curves"):
                a, b = getattr(one, kind), getattr(other, kind)
                same = set(a.variables) == set(b.variables) and all(
                    a[name].values.tobytes() == b[name].values.tobytes() for name in a.variables
                )
                check(same, f"its {len(a.data_vars)} recorded {kind} are the same bits")
            pairs = [last_parameters(run.path) for run in (one, other)]
            check(
                pairs[0] == pairs[1] and len(pairs[0]) > 0,
                f"so are its {len(pairs[0])} last arrays (parameters, optimizer, best parameters)",
            )
        untouched = [open_run(self.sweep / str(number)) for number in (2, 3)]
        check(
            all(one.status == "finished" and not one.info["resumed"] for one in untouched),
            "jobs 2 and 3 were left alone",
        )


class ExitCode(int):
    """An exit code, which is true also if it is 0."""

    def __bool__(self) -> bool:
        return True


def has_checkpoint(folder: Path) -> bool:
    """Whether a job has saved where it stands."""
    return any(folder.glob("checkpoints/[0-9]*/arrays"))


def last_parameters(folder: Path) -> dict[str, bytes]:
    """Every array of a run's last checkpoint, as bytes."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    last = max(folder.glob("checkpoints/[0-9]*"), key=lambda path: int(path.name))
    with ocp.StandardCheckpointer() as reader:
        arrays = reader.restore((last / "arrays").absolute())
    return {
        jax.tree_util.keystr(path): np.asarray(leaf).tobytes()
        for path, leaf in jax.tree_util.tree_leaves_with_path(arrays)
    }


if __name__ == "__main__":
    main()
