"""One run over several devices and processes gives what one device gives.

What takes several devices runs in processes of its own: the number of devices is fixed when jax is
first used. Run as a program, this file compares one device with all that there are.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time

import jax
import numpy as np
import optax
import pytest

from gradlab.cells import GRU, SimpleRNN
from gradlab.errors import BadInput
from gradlab.experiment import build_steps
from gradlab.launch.multihost import BY_HAND, Place, place
from gradlab.probes import Adjoint, GateSaturation, StepJacobian
from gradlab.record.reader import open_run
from gradlab.regularizers import Flossing, Omega
from gradlab.tasks.adding import Adding
from gradlab.tasks.copying import Copying
from gradlab.training.checkpoint import Best, Position, Since, from_bytes, to_bytes
from gradlab.training.loop import Member, Trainer, train
from gradlab.training.mesh import ONE_DEVICE, PAYS, best_mesh, mesh_of
from gradlab.training.program import Solo
from gradlab.training.schedule import Schedule
from tests import ROOT
from tests.experiments import experiment

TOLERANCE = 1e-5
MASKED = Adding(length=8, min_length=3, held_out_examples=30)
PROBES = {"adjoint": Adjoint(), "gate_saturation": GateSaturation()}
CASES = {
    "masked lstm": {"task": MASKED, "probes": PROBES},
    "a cut route": {"task": MASKED, "initial_state": "learned", "backward": "no_h_path"},
    "masked rnn": {"make_cell": SimpleRNN, "task": MASKED},
    "loss at every step": {"make_cell": GRU, "task": Copying(length=24, held_out_examples=30)},
    "deep and bidirectional": {"layers": 2, "bidirectional": True, "task": MASKED},
    "close probes": {
        "probes": {"step_jacobian": StepJacobian(), "adjoint": Adjoint()},
        "close": Schedule(20),
        "close_examples": 3,
    },
    "penalty on all": {"make_cell": SimpleRNN, "regularizer": Omega(), "learning_rate": 0.01},
    "penalty on some": {"regularizer": Flossing(alone=0, until=30, exponents=3)},
}


class Rows:
    """A sink that keeps what it is given."""

    def __init__(self):
        self.rows = []

    def open(self, description): ...

    def log(self, row):
        self.rows.append(row)

    def close(self, outcome): ...


def compare(name: str) -> None:
    """Train on one device and on all of them: the rows and the parameters must be the same."""
    found, own = [], dict(CASES[name])
    route = own.pop("backward", "full")
    for mesh in (None, "data"):
        trainer = Trainer(
            steps=50,
            batch=8,
            log_every=5,
            eval_every=20,
            eval_batch=7,
            mesh=mesh,
            test_lengths=(30,),
            backward=route,
        )
        parts = experiment(**{"trainer": trainer, "rule": optax.sgd, "learning_rate": 0.1} | own)
        steps = build_steps(parts)
        assert steps.mesh.devices == (4 if mesh else 1)
        rows = Rows()
        program, member = Solo(steps, jax.random.key(1), trainer.eval_batch), Member([rows])
        program.compile()
        train(trainer, program, [member], close=parts.close)
        assert member.outcome.status == "finished"
        found.append((rows.rows, member.outcome.summary, program.state().params))
    (rows, summary, params), (split_rows, split_summary, split_params) = found
    assert [row.step for row in rows] == [*range(0, 50, 5), 49]
    for one, split in zip(rows, split_rows, strict=True):
        same(split.scalars, one.scalars)
        same(split.arrays, one.arrays)
    assert "test/loss/length_30" in summary
    same(split_summary, summary)
    for one, split in zip(jax.tree.leaves(params), jax.tree.leaves(split_params), strict=True):
        np.testing.assert_allclose(split, one, rtol=TOLERANCE, atol=TOLERANCE)
        copies = [np.asarray(shard.data) for shard in split.addressable_shards]
        assert len(copies) == jax.device_count()
        assert all(np.array_equal(copy, copies[0]) for copy in copies)


def same(given, wanted):
    assert given.keys() == wanted.keys()
    for name, value in wanted.items():
        # The adjoint of the example that is fitted best: a small difference of large numbers.
        limit = 10 * TOLERANCE if name.endswith("_q") else TOLERANCE
        np.testing.assert_allclose(given[name], value, rtol=limit, atol=limit, err_msg=name)


def choose() -> None:
    """What ``auto`` makes of four devices."""

    def split(batch: int, work: float, kept: int | None = None) -> int:
        mesh = best_mesh(batch, work, kept)
        assert (mesh.devices > 1) != bool(mesh.reason)
        return mesh.devices

    assert [split(batch, PAYS) for batch in (8, 6, 2, 1, 7)] == [4, 3, 2, 1, 1]
    assert [split(8, PAYS / rows) for rows in (2, 4, 7, 8, 9)] == [4, 2, 1, 1, 1]
    assert "7 does not divide" in best_mesh(7, PAYS).reason
    assert split(8, 0.0) == 1
    assert split(8, PAYS, kept=2) == 2  # a resumed run
    assert split(8, 0.0, kept=4) == 4
    assert split(8, PAYS, kept=1) == 1
    assert split(8, PAYS, kept=8) == 4  # of a machine with more
    auto = Trainer(steps=2, batch=8, mesh="auto")
    large = experiment(trainer=auto, hidden=300, task=Adding(length=30, held_out_examples=2))
    assert build_steps(large).mesh.devices == 4
    assert build_steps(experiment(trainer=auto)).mesh.devices == 1
    penalised = dataclasses.replace(large, regularizer=Omega())
    assert build_steps(penalised).mesh.devices == 1


def child(*words, devices=4):
    many = f"--xla_force_host_platform_device_count={devices}"
    flags = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {many}"}
    done = subprocess.run(
        [sys.executable, "-m", "tests.training.test_mesh", *words],
        cwd=ROOT,
        env=os.environ | flags,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def test_four_devices_give_what_one_gives_and_refuse_a_batch_they_cannot_split():
    out = child("masked lstm", "refuse", "auto")
    assert "trainer.batch: got 50" in out
    assert "try: trainer.batch=48 or trainer.batch=52" in out


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in CASES if name != "masked lstm"])
def test_four_devices_give_what_one_gives_in_every_kind_of_run(name):
    child(name)


@pytest.mark.skipif(
    jax.default_backend() == "cpu" or jax.device_count() == 1,
    reason="a CPU is split in processes of their own; one device has nothing to split",
)
def test_all_devices_of_an_accelerator_give_what_one_gives():
    child("masked lstm")


def test_one_device_says_so_and_runs_as_without(caplog):
    assert mesh_of(None, 5) is ONE_DEVICE
    assert caplog.text == ""
    assert mesh_of("data", 5) is ONE_DEVICE
    assert "there is one device" in caplog.text


def test_auto_says_why_it_splits_nothing_and_never_refuses(caplog):
    mesh = best_mesh(7, 1e12)
    assert (mesh.devices, mesh.reason) == (1, "there is one core for it")
    trainer = Trainer(steps=2, batch=7, mesh="auto")
    assert build_steps(experiment(trainer=trainer), split=1).mesh.devices == 1
    assert caplog.text == ""
    assert build_steps(experiment(trainer=trainer), split=7).mesh.devices == 1
    assert "over 1 device where it was split over 7 before" in caplog.text


def test_a_position_reaches_another_process_bit_by_bit():
    steps = build_steps(experiment(rule=optax.adam))
    state = steps.start(jax.random.key(7))
    params = jax.tree.map(lambda leaf: leaf + 0.1, state.params)
    best = Best(0.5, 3, state.params, {"loss": 0.5})
    since = Since(7, (0.1, 1 / 3, 4.0, 1e-300))
    sent = Position(state._replace(params=params), since, best, 8, 2.5)
    came = from_bytes(to_bytes(sent), steps.start(jax.random.key(0)))
    assert jax.tree.structure(came.state) == jax.tree.structure(sent.state)
    for one, other in zip(
        jax.tree.leaves((came.state, came.best.params)),
        jax.tree.leaves((sent.state, best.params)),
        strict=True,
    ):
        assert one.dtype == other.dtype
        assert np.array_equal(*(map(bits, (one, other))))
    assert dataclasses.astuple(came)[3:] == (8, 2.5)
    assert (came.since, came.best.scores) == (since, {"loss": 0.5})


def bits(leaf):
    key = jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if key else leaf)


# Which of several processes this is.


def by_hand(*values):
    return {name: value for name, value in zip(BY_HAND, values, strict=True) if value}


def test_the_environment_says_which_process_this_is():
    assert place({}) is None
    assert place(by_hand("host:1234", "3", "2")) == Place(2, 3, "host:1234")
    assert place(by_hand("host:1234", "1", "0")) is None
    slurm = {"SLURM_NTASKS": "2", "SLURM_PROCID": "1"}
    assert place(slurm) is None  # the script of a job, of which there is one
    assert place(slurm | {"SLURM_STEP_NUM_TASKS": "2"}) == Place(1, 2, None)
    assert place(slurm | {"SLURM_STEP_NUM_TASKS": "1"}) is None


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ((None, None, "1"), "JAX_COORDINATOR_ADDRESS"),
        (("host:1234", None, "1"), "JAX_NUM_PROCESSES"),
        (("host:1234", "2", None), "JAX_PROCESS_ID"),
        (("host", "2", "1"), "JAX_COORDINATOR_ADDRESS"),
        (("host:1234", "two", "1"), "JAX_NUM_PROCESSES"),
        (("host:1234", "2", "2"), "JAX_PROCESS_ID"),
        (("host:1234", "2", "-1"), "JAX_PROCESS_ID"),
    ],
)
def test_an_environment_that_contradicts_itself_is_refused(values, key):
    with pytest.raises(BadInput) as refused:
        place(by_hand(*values))
    assert refused.value.key == key


def test_a_lone_process_id_is_refused_and_nothing_is_left(command, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_PROCESS_ID", "1")
    done = command("trainer.mesh=data")
    assert done.code == 2
    assert done.err.startswith("gradlab: JAX_COORDINATOR_ADDRESS: got nothing")
    assert list(tmp_path.iterdir()) == []


def test_a_taken_port_is_refused(command, tmp_path, monkeypatch):
    with socket.create_server(("", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for name, value in by_hand(address, "2", "0").items():
            monkeypatch.setenv(name, value)
        done = command("trainer.mesh=data")
    assert done.code == 2
    assert address in done.err
    assert list(tmp_path.iterdir()) == []


def test_a_mesh_in_a_file_is_no_word_to_several_processes(command, tmp_path, monkeypatch):
    for name, value in by_hand("127.0.0.1:1", "2", "0").items():
        monkeypatch.setenv(name, value)
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    file = tmp_path / "mine" / "experiment" / "spread.yaml"
    file.write_text("# @package _global_\ntrainer:\n  mesh: data\n")
    done = command("--config-dir", "mine", "experiment=spread")
    assert done.code == 2
    assert "trainer.mesh=data as an argument" in done.err


# Several processes.

SMALL = [
    *("model=rnn", "model.hidden=4", "task.length=8", "task.min_length=3"),
    *("task.held_out_examples=30", "probe=adjoint", "trainer.batch=4"),
    *("optimizer.learning_rate=1e-4", "record.figures=false"),
]


@pytest.fixture
def processes(tmp_path, monkeypatch):
    """``processes(2, "trainer.steps=5", ...)``: started, over a free port."""
    started = []

    def start(count, *arguments, seconds=60):
        with socket.create_server(("127.0.0.1", 0)) as free:
            address = f"127.0.0.1:{free.getsockname()[1]}"
        together = []
        for index in range(count):
            environment = by_hand(address, str(count), str(index))
            environment |= {"PYTHONPATH": str(ROOT / "src"), "GRADLAB_JOIN_SECONDS": str(seconds)}
            together.append(
                subprocess.Popen(
                    [sys.executable, "-m", "gradlab", *arguments, "trainer.mesh=data"],
                    cwd=tmp_path,
                    env=os.environ | environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        started.extend(together)
        return together

    yield start
    for one in started:
        one.kill()
        one.communicate()


def ends(together, timeout=120):
    """``(code, out, err)`` of each."""
    said = [one.communicate(timeout=timeout) for one in together]
    return [(one.returncode, *words) for one, words in zip(together, said, strict=True)]


def until(there, seconds=90):
    end = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.1)


def same_runs(one, other):
    assert list(one.scalars["step"]) == list(other.scalars["step"])
    for name in one.scalars:
        np.testing.assert_allclose(
            other.scalars[name], one.scalars[name], rtol=TOLERANCE, atol=TOLERANCE, err_msg=name
        )
    np.testing.assert_allclose(
        other.curves["adj_h_log10"], one.curves["adj_h_log10"], atol=3 * TOLERANCE
    )


@pytest.mark.slow
def test_two_processes_give_what_one_gives_job_by_job(processes, command, tmp_path):
    line = [*SMALL, "trainer.steps=60", "seed=0,1"]
    done = ends(processes(2, "-m", *line, "hydra.sweep.dir=two"))
    assert [code for code, *_ in done] == [0, 0], done
    assert done[1][2] == ""
    assert command("-m", *line, "record.terminal=false", "hydra.sweep.dir=one").code == 0
    for job in "01":
        one, two = open_run(tmp_path / "one" / job), open_run(tmp_path / "two" / job)
        assert two.status == "finished"
        assert len(two.info["devices"]) == 2
        same_runs(one, two)
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}
    assert len(list(tmp_path.glob("two/*/run.json"))) == 2


@pytest.mark.slow
def test_a_signal_at_one_ends_all_and_either_number_goes_on(processes, command, tmp_path):
    line = [*SMALL, "trainer.steps=3000", "trainer.log_every=100", "trainer.checkpoint_seconds=0"]
    folder = tmp_path / "run"
    together = processes(2, *line, "hydra.run.dir=run")
    until(lambda: list(folder.glob("checkpoints/[1-9]*")))
    together[1].send_signal(signal.SIGTERM)
    done = ends(together)
    assert [code for code, *_ in done] == [128 + signal.SIGTERM] * 2, done
    run = open_run(folder)
    assert run.status == "interrupted"
    assert "SIGTERM" in run.info["reason"]
    made = int(run.info["reason"].split()[3])
    assert 0 < made < 3000
    assert (folder / "checkpoints" / str(made)).is_dir()
    # One goes on alone to the end, and two go on from there.
    done = command("trainer.resume=run", "trainer.mesh=null", "record.terminal=false")
    assert done.code == 0, done.err
    assert len(open_run(folder).info["devices"]) == 1
    alone = [*line, "record.terminal=false", "hydra.run.dir=alone"]
    assert command(*alone).code == 0
    same_runs(open_run(tmp_path / "alone"), open_run(folder))
    done = ends(processes(2, "trainer.resume=run", "trainer.steps=3300"))
    assert [code for code, *_ in done] == [0, 0], done
    assert command("trainer.resume=alone", "trainer.steps=3300").code == 0
    same_runs(open_run(tmp_path / "alone"), open_run(folder))
    run = open_run(folder)
    assert (run.status, len(run.info["resumed"]), len(run.info["devices"])) == ("finished", 2, 2)
    assert int(run.scalars["step"][-1]) == 3299


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_where_one_is_killed_the_other_ends_with_a_message(processes, tmp_path, killed):
    line = [*SMALL, "trainer.steps=1000000", "trainer.checkpoint_seconds=0", "hydra.run.dir=run"]
    together = processes(2, *line)
    until(lambda: list(tmp_path.glob("run/checkpoints/[1-9]*")))
    together[killed].kill()
    code, _, err = ends(together)[1 - killed]
    # jax may notice before we do that process 0 is gone, and aborts.
    assert code == 1 or (killed == 0 and code == -signal.SIGABRT)
    assert "another process of this run is gone" in err or "another task died" in err
    assert open_run(tmp_path / "run").status == ("killed" if killed == 0 else "crashed")


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_where_the_others_never_come_it_ends_with_a_message(process, tmp_path, monkeypatch, index):
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    for name, value in by_hand(address, "2", str(index)).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("GRADLAB_JOIN_SECONDS", "3")
    ((code, _, err),) = ends([process("trainer.mesh=data")])
    assert code == 1
    assert err.startswith(f"gradlab: process {index} of 2 waited 3 s")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_bad_input_ends_all_with_one_message_and_nothing_left(processes, tmp_path):
    done = ends(processes(2, "trainer.batch=51"))
    assert [code for code, *_ in done] == [2, 2]
    assert done[0][2].startswith("gradlab: trainer.batch: got 51")
    assert done[1][2] == ""
    assert list(tmp_path.iterdir()) == []


if __name__ == "__main__":
    for word in sys.argv[1:]:
        if word == "refuse":
            try:
                mesh_of("data", 50)
            except BadInput as error:
                print(error)
        elif word == "auto":
            choose()
        else:
            compare(word)
