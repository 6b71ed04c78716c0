"""One run over several processes, with ``trainer.mesh=data``: how they meet, and who does what.

The first process is the one that the user sees: it composes the configuration, makes the run
directory and records. It tells the others what to build and where to resume (:meth:`Company.lead`);
they take part in the steps and neither read nor write anything (:meth:`Company.follow`).
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from gradlab.errors import BadInput, LostPeer
from gradlab.launch.resume import value_of

if TYPE_CHECKING:
    from gradlab.training.checkpoint import Position

KEY = "trainer.mesh"
BY_HAND = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
"""Environment of a process that was started by hand: where process 0 listens, how many, which."""
PATIENCE = "GRADLAB_JOIN_SECONDS"
"""Environment: how long a process waits for the others to be started; 60 unless it says so."""
_SHOWS = ("--help", "-h", "--hydra-help", "--version", "--cfg", "-c", "--info", "-i")
_SHOWS += ("--shell-completion", "-sc")


class Place(NamedTuple):
    """Which process this one is.

    Attributes:
      index: from 0.
      count: of the processes of the run.
      address: ``host:port`` where process 0 listens; None: where Slurm's variables say.
    """

    index: int
    count: int
    address: str | None


def place(environment: Mapping[str, str]) -> Place | None:
    """Which of several processes this is, by its environment; None if it is the only one.

    Raises:
      BadInput: for variables that are incomplete or contradict each other.
    """
    given = {name: environment[name] for name in BY_HAND if environment.get(name)}
    if given:
        found = _by_hand(given)
    elif "SLURM_STEP_NUM_TASKS" in environment:  # started by srun, not by the script of the job
        tasks, index = environment["SLURM_STEP_NUM_TASKS"], environment.get("SLURM_PROCID", "0")
        found = Place(int(index), int(tasks), None)
    else:
        return None
    return found if found.count > 1 else None


def _by_hand(given: Mapping[str, str]) -> Place:
    for name in BY_HAND:
        if name not in given:
            allowed = (
                f"a value, since {' and '.join(given)} {'is' if len(given) == 1 else 'are'} set"
            )
            hint = f"all of {', '.join(BY_HAND)}, or none of them"
            raise BadInput(name, None, allowed, hint)
    address, count, index = (given[name] for name in BY_HAND)
    if not address.rpartition(":")[0] or not address.rpartition(":")[2].isdecimal():
        allowed = "HOST:PORT, where process 0 listens, the same for all"
        raise BadInput(BY_HAND[0], address, allowed, "127.0.0.1:PORT on one machine")
    if not count.isdecimal() or int(count) < 1:
        raise BadInput(BY_HAND[1], count, "how many processes there are, the same for all")
    if not index.isdecimal() or int(index) >= int(count):
        allowed = f"0 to {int(count) - 1}, another for each of {count} processes"
        raise BadInput(BY_HAND[2], index, allowed)
    return Place(int(index), int(count), address)


def join(arguments: Sequence[str], environment: Mapping[str, str] = os.environ) -> Company:
    """Meet the other processes of the run, if ``arguments`` ask for that and there are any.

    jax must not have been used before.

    Raises:
      BadInput: see :func:`place`.
    """
    shows = any(argument.partition("=")[0] in _SHOWS for argument in arguments)
    if shows or value_of(arguments, KEY) != "data":
        return Company()
    here = place(environment)
    if here is not None:
        _meet(here, _patience(environment))
    return Company(here)


def _patience(environment: Mapping[str, str]) -> float:
    given = environment.get(PATIENCE, "60")
    with contextlib.suppress(ValueError):
        if 0 < float(given) < 1e6:
            return float(given)
    raise BadInput(PATIENCE, given, "seconds, a number above 0")


def _meet(here: Place, seconds: float) -> None:
    import jax

    # Where jax's own patience ends, it ends the process with a trace of its inner workings.
    watch = threading.Timer(seconds, _alone, (here, seconds))
    watch.daemon = True
    watch.start()
    try:
        options: dict[str, Any] = {"initialization_timeout": int(10 * seconds) + 60}
        if here.address is not None:
            _check_free(here)
            options |= {
                "coordinator_address": here.address,
                "cluster_detection_method": "deactivate",
                "num_processes": here.count,
                "process_id": here.index,
            }
        jax.distributed.initialize(**options)
        jax.devices()  # each learns of the devices of all
    finally:
        watch.cancel()


def _check_free(here: Place) -> None:
    """Refuse a port that is taken: jax would end in a memory fault."""
    assert here.address is not None
    if here.index == 0:
        try:
            socket.create_server(("", int(here.address.rpartition(":")[2]))).close()
        except (OSError, OverflowError) as error:
            allowed = f"HOST:PORT with a port that process 0 can listen at ({error})"
            raise BadInput(BY_HAND[0], here.address, allowed, "another port") from None


def _alone(here: Place, seconds: float) -> None:
    at = f" at {here.address}" if here.address else ""
    missing = "process 0" if here.index else "all of the others"
    _leave(
        f"process {here.index} of {here.count} waited {seconds:g} s for {missing}{at}, in vain\n"
        f"  start all {here.count} with the same command; {PATIENCE}=SECONDS waits longer"
    )


def _leave(message: str, code: int = 1) -> None:
    """End at once: an orderly end would wait for the other processes."""
    if message:
        print(f"gradlab: {message}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


class Company:
    """The processes of this run, seen from one of them.

    Args:
      place: which one this is; None: there are no others.
    """

    def __init__(self, place: Place | None = None):
        self.place = place
        self._in_step = False

    @property
    def follows(self) -> bool:
        """Whether another process leads."""
        return self.place is not None and self.place.index > 0

    def check(self, config: Mapping[str, Any]) -> None:
        """Refuse a run that should be spread over processes that have not met.

        Raises:
          BadInput: if the environment speaks of several, and this process knows of none.
        """
        if self.place is None and config["trainer"].get("mesh") == "data" and place(os.environ):
            allowed = "said on the command line, since processes must meet before anything is read"
            hint = f"{KEY}=data as an argument, and no launcher that has processes of its own"
            raise BadInput(KEY, config["trainer"]["mesh"], allowed, hint)

    def lead(
        self, **job: Any
    ) -> Callable[[Position | None], contextlib.AbstractContextManager[None]]:
        """What the first process holds while it trains: the others take part within it.

        Args:
          job: arguments of :func:`gradlab.launch.build.build`.

        Returns:
          A function of the position that the run is resumed from.
        """

        @contextlib.contextmanager
        def together(position: Position | None) -> Iterator[None]:
            if self.place is None:
                yield
                return
            from gradlab.training.checkpoint import to_bytes

            with self._step():
                _share(json.dumps(job).encode())
                _share(b"" if position is None else to_bytes(position))
                yield

        return together

    def follow(self) -> int:
        """Take part in whatever the first process leads; its exit code, once it has ended."""
        from gradlab.launch.build import build
        from gradlab.run import take_part
        from gradlab.training.interruption import Interruption

        logging.getLogger("gradlab").setLevel(logging.ERROR)  # the first process says it all
        with Interruption() as interruption:
            while True:
                with self._step():
                    message = json.loads(_share())
                    if "end" in message:
                        break
                    take_part(build(**message), _share(), interruption)
        self.place = None
        return message["end"]

    @contextlib.contextmanager
    def _step(self) -> Iterator[None]:
        """Within it the processes compute together; one that fails there cannot say so."""
        import jax

        if self._in_step:
            raise LostPeer("an earlier job of this sweep failed while they computed together")
        self._in_step = True
        try:
            yield
        except jax.errors.JaxRuntimeError as error:
            raise LostPeer(str(error)) from error
        self._in_step = False

    def part(self, code: int) -> None:
        """Let the others go, with the exit code that this process ends with."""
        if self.place is None:
            return
        if self._in_step:  # they wait for a step: that nobody answers is what tells them
            error = sys.exception()
            if error is not None and not isinstance(error, SystemExit):
                traceback.print_exception(error)
            _leave("", code)
        _share(json.dumps({"end": code}).encode())


def _share(message: bytes = b"") -> bytes:
    """What the first process says, at all of them; waits until all are here."""
    import numpy as np
    from jax.experimental.multihost_utils import broadcast_one_to_all

    size = int(broadcast_one_to_all(np.uint32(len(message))))
    own = np.frombuffer(message or bytes(size), np.uint8)
    return np.asarray(broadcast_one_to_all(own)).tobytes() if size else b""
