"""Members of a population are the runs that they would have been alone."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gradlab.cells import LSTM, SimpleRNN
from gradlab.cells.base import Cell, HiddenCarry, NamedTuple
from gradlab.errors import BadInput, CannotRecord
from gradlab.experiment import build_steps
from gradlab.probes import Lyapunov
from gradlab.record.reader import open_run
from gradlab.recording import Recording
from gradlab.regularizers import Omega
from gradlab.run import groups, run, run_together
from gradlab.tasks.adding import Adding
from gradlab.training import population as population_module
from gradlab.training.interruption import Interruption
from gradlab.training.loop import Member, Trainer, train
from gradlab.training.optimizer import Optimizer
from gradlab.training.population import Population, Untraceable, numbers_of, together
from gradlab.training.program import Solo
from tests.experiments import experiment
from tests.training.test_loop import FirstLoss, Rows, compilations

TRAINER = Trainer(steps=12, batch=4, log_every=5, eval_every=5)


def optimizer(rate=1e-2, clip=1.0, decay=0.0, trainer=TRAINER, rule=optax.adamw, **more):
    rule = functools.partial(rule, weight_decay=decay) if rule is optax.adamw else rule
    return Optimizer(rule, steps=trainer.steps, learning_rate=rate, clip_norm=clip, **more)


def cell(**options):
    return functools.partial(LSTM, **options)


def different(trainer=TRAINER, **more):
    """Three members that differ in all that a population may differ in."""
    numbers = [(1e-2, 1.0, 0.0, 1.0), (3e-2, 0.1, 0.1, -1.0), (1e-3, 9.0, 0.01, 3.0)]
    return [
        experiment(
            seed=seed,
            trainer=trainer,
            optimizer=optimizer(rate, clip, decay, trainer),
            make_cell=cell(forget_bias=bias, recurrent_gain=0.5 + seed),
            initial_state="random",
            **more,
        )
        for seed, (rate, clip, decay, bias) in enumerate(numbers)
    ]


def prepared(experiments, **options):
    steps = [build_steps(one) for one in experiments]
    keys = [jax.random.fold_in(jax.random.key(one.seed), 1) for one in experiments]
    return Population(steps, keys, 250, **options)


def trained(experiments, sinks=None, **options):
    population = prepared(experiments, **options)
    population.compile()
    members = [Member([sink]) for sink in sinks or [Rows() for _ in experiments]]
    train(experiments[0].trainer, population, members, close=experiments[0].close)
    return population, members


def alone(one):
    steps = build_steps(one)
    program = Solo(steps, jax.random.fold_in(jax.random.key(one.seed), 1), 250)
    program.compile()
    member = Member([Rows()])
    train(one.trainer, program, [member], close=one.close)
    return program, member


def assert_same_rows(member, solo, rtol=1e-5, measured=True):
    mine, theirs = member.sinks[0].rows, solo.sinks[0].rows
    assert [row.step for row in mine] == [row.step for row in theirs]
    for one, other in zip(mine, theirs, strict=True):
        assert one.scalars.keys() == other.scalars.keys()
        for name, value in one.scalars.items():
            assert value == pytest.approx(other.scalars[name], rel=rtol), (one.step, name)
        assert one.arrays.keys() == other.arrays.keys() or not measured
        for name, array in other.arrays.items():
            np.testing.assert_allclose(one.arrays[name], array, rtol=1e-4, atol=1e-4)
    assert member.outcome.status == solo.outcome.status
    assert member.outcome.summary.keys() == solo.outcome.summary.keys() or not measured
    for name, value in solo.outcome.summary.items():
        assert member.outcome.summary[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def assert_same_params(population, index, program):
    for mine, theirs in zip(
        jax.tree.leaves(population.state(index).params),
        jax.tree.leaves(program.state().params),
        strict=True,
    ):
        np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_members_equal_their_solo_runs():
    """Three on two devices: rates, thresholds, decays, biases, gains and seeds of their own."""
    experiments = different()
    population, members = trained(experiments)
    assert len({member.outcome.summary["val/loss"] for member in members}) == 3
    adjoints = [member.sinks[0].rows[0].arrays["adj_h_log10"] for member in members]
    assert len({array.tobytes() for array in adjoints}) == 3
    for index, one in enumerate(experiments):
        measured = index == 1  # to compile the probes for each alone would take as long again
        program, solo = alone(one if measured else dataclasses.replace(one, probes={}))
        assert_same_rows(members[index], solo, measured=measured)
        assert_same_params(population, index, program)


@pytest.mark.slow
def test_members_equal_their_solo_runs_over_a_hundred_steps():
    trainer = Trainer(steps=100, batch=20, log_every=1, eval_every=50)
    more = {"task": Adding(length=30, min_length=10, held_out_examples=50), "hidden": 16}
    experiments = different(trainer, probes={"lyapunov": Lyapunov()}, **more)
    _, members = trained(experiments)
    for member, one in zip(members, experiments, strict=True):
        _, solo = alone(one)
        losses = [
            [row.scalars["train/loss"] for row in seen.sinks[0].rows] for seen in (member, solo)
        ]
        np.testing.assert_allclose(losses[0], losses[1], rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("at_once", [2, 3])
def test_going_together_changes_nothing(at_once):
    """Five members, so that the last places are filled up."""
    experiments = [experiment(seed=seed, probes={"close": FirstLoss()}) for seed in range(5)]
    _, one_by_one = trained(experiments)
    population, together_ = trained(experiments, at_once=at_once)
    assert population.at_once == at_once
    for mine, theirs in zip(together_, one_by_one, strict=True):
        assert_same_rows(mine, theirs)


@pytest.mark.slow
def test_how_many_go_together_can_be_measured(monkeypatch):
    experiments = [experiment(seed=seed, probes={}) for seed in range(4)]
    every = -(-4 // len(jax.devices()))
    for slower, faster in ((1, every), (every, 1)):
        population = prepared(experiments, at_once="measure")
        monkeypatch.setattr(population, "_seconds_of_steps", lambda n, slow=slower: n == slow)
        population.compile()
        assert population.at_once == faster
    assert prepared(experiments, at_once="measure")._seconds_of_steps(2) > 0


def test_nothing_compiles_after_the_first_row():
    trainer = Trainer(steps=30, batch=4, log_every=5, eval_every=10)
    with compilations() as counts:
        trained(different(trainer), [counts, Rows(), Rows()])
    assert counts.at_rows[0] > 0
    assert counts.at_rows[-1] == counts.at_rows[1]


def test_a_member_that_diverges_disturbs_no_other():
    wild = {
        "make_cell": functools.partial(SimpleRNN, activation_fn="identity"),
        "task": Adding(length=60, held_out_examples=10),
        "optimizer": optimizer(1e-4, None, rule=optax.sgd),
        "probes": {},
    }
    calm = [experiment(**wild, seed=seed) for seed in range(3)]
    too_fast = dataclasses.replace(wild["optimizer"], learning_rate=1e6)
    experiments = [calm[0], dataclasses.replace(calm[1], optimizer=too_fast), calm[2]]
    _, members = trained(experiments)
    assert [member.outcome.status for member in members] == ["finished", "diverged", "finished"]
    _, undisturbed = trained(calm)  # the same program
    for index in (0, 2):
        assert_same_rows(members[index], undisturbed[index], rtol=0)
    _, solo = alone(experiments[1])
    assert members[1].outcome.reason == solo.outcome.reason
    assert solo.outcome.reason.startswith("diverged at step")
    assert [row.step for row in members[1].sinks[0].rows] == [0, 1]


class Gates(NamedTuple):
    k: jax.Array


class Leaky(Cell):
    gate_names, retention_gate = ("k",), "k"

    def __init__(self, in_features, hidden_features, *, leak=0.5, rngs):
        self.in_features, self.hidden_features, self.leak = in_features, hidden_features, leak
        self.dense = nnx.Linear(in_features, hidden_features, rngs=rngs)

    def step(self, carry, x):
        h = self.leak * carry.h + (1 - self.leak) * jnp.tanh(self.dense(x))
        return HiddenCarry(h), Gates(jnp.full_like(h, self.leak))


def test_a_number_that_a_cell_holds_is_each_members_own():
    experiments = [
        experiment(make_cell=functools.partial(Leaky, leak=leak)) for leak in (0.5, 0.25)
    ]
    steps = [build_steps(one) for one in experiments]
    assert together(*steps)
    assert numbers_of(steps[1])["model.layers.0.0.leak"] == 0.25
    _, members = trained(experiments)
    for member, leak in zip(members, (0.5, 0.25), strict=True):
        adjoint = member.sinks[0].rows[-1].arrays["adj_h_log10"]
        np.testing.assert_allclose(np.diff(adjoint[0]), -np.log10(leak), rtol=1e-4)


@dataclasses.dataclass(frozen=True)
class Noisy(Adding):
    """Adding with a number of its own, in training and in the held-out splits."""

    scale: float = 1.0

    def sample(self, data, key, batch):
        drawn = super().sample(data, key, batch)
        return drawn._replace(targets=drawn.targets * self.scale)


@pytest.mark.slow
def test_a_number_of_the_task_is_each_members_own_in_every_split():
    tasks = [Noisy(length=8, held_out_examples=30, scale=scale) for scale in (1.0, 3.0)]
    experiments = [experiment(task=task) for task in tasks]
    _, members = trained(experiments)
    for member, one in zip(members, experiments, strict=True):
        assert_same_rows(member, alone(one)[1])


@pytest.mark.slow
def test_a_penalty_has_each_members_weight():
    experiments = [experiment(regularizer=Omega(weight=weight), probes={}) for weight in (0.0, 2.0)]
    _, members = trained(experiments)
    for member, one in zip(members, experiments, strict=True):
        assert_same_rows(member, alone(one)[1])


def test_what_cannot_share_a_program():
    base = build_steps(experiment())
    assert together(base, build_steps(experiment(seed=5, learning_rate=0.5)))
    for change in (
        {"hidden": 6},
        {"layers": 2},
        {"clip_norm": None},
        {"rule": optax.sgd},
        {"task": Adding(length=9, held_out_examples=30)},
        {"task": Adding(length=8, held_out_examples=31)},
        {"trainer": dataclasses.replace(TRAINER, batch=5)},
        {"probes": {}},
        {"make_cell": SimpleRNN},
        {"regularizer": Omega()},
        {"trainer": dataclasses.replace(TRAINER, backward="no_h_path")},
        {"initial_state": "learned"},
        {"initial_state": "random"},
    ):
        assert not together(base, build_steps(experiment(**change))), change


def test_a_number_that_decides_what_the_program_is_is_named():
    shares = (0.1, 0.5)
    experiments = [
        experiment(optimizer=optimizer(rate, schedule="exponential", final_fraction=share))
        for rate, share in zip((1e-2, 1e-3), shares, strict=True)
    ]
    with pytest.raises(Untraceable) as fault:
        prepared(experiments)
    assert fault.value.paths == {"optimizer.final_fraction"}


def test_members_that_need_more_memory_than_there_is_are_refused(monkeypatch):
    monkeypatch.setattr(population_module, "free", lambda _: 1000)
    with pytest.raises(BadInput, match=r"fit into the 1e-06 GB of memory") as refusal:
        prepared([experiment(), experiment(seed=1)])
    assert "hydra.sweeper.max_batch_size=1" in refusal.value.hint
    assert "2 members that need about" in str(refusal.value.given)


@pytest.mark.slow
def test_fewer_go_together_where_memory_is_short(monkeypatch):
    experiments = [experiment(seed=seed, probes={}) for seed in range(8)]
    population = prepared(experiments, at_once=4)
    population.compile()
    monkeypatch.setattr(population, "_needs", lambda _: population.at_once)
    monkeypatch.setattr(population_module, "free", lambda _: 2)
    population.compile()
    assert population.at_once == 2


# The records of a population.


class Crew:
    def __init__(self):
        self.outcomes, self.errors = {}, {}

    def ended(self, recording, outcome):
        self.outcomes[recording.folder.name] = outcome
        recording.close(outcome)

    def refused(self, recording, error):
        self.errors[recording.folder.name] = error


def recorded(experiments, folder, resume=(), interruption=None):
    crew = Crew()
    recordings = [
        Recording(one, folder / str(i), resume=i in resume) for i, one in enumerate(experiments)
    ]
    with Interruption() if interruption is None else interruption as asked:
        for group in groups(recordings):
            run_together(group, crew, asked)
    return crew


def test_each_member_has_a_record_of_its_own(tmp_path):
    experiments = [*different(), experiment(hidden=6)]
    crew = recorded(experiments, tmp_path)
    assert [outcome.status for outcome in crew.outcomes.values()] == ["finished"] * 4
    runs = [open_run(tmp_path / str(i)) for i in range(4)]
    assert len({one.info["id"] for one in runs}) == 4
    assert len({one.summary["test/loss"] for one in runs}) == 4
    assert [one.info["facts"]["parameters"] for one in runs[2:]] == [166, 223]
    for i, one in enumerate(runs):
        assert list(one.scalars["step"]) == [0, 5, 10, 11]
        assert one.info["summary"] == pytest.approx(crew.outcomes[str(i)].summary)
        assert one.info["verdict"][0].startswith("layer 0: ")
        assert sorted(p.name for p in (tmp_path / str(i) / "checkpoints").iterdir()) == ["12"]


class AfterSteps(Interruption):
    """A signal that comes when it has been asked for so many times."""

    def __init__(self, looks):
        self.looks = 2 * looks  # each look reads it twice

    @property
    def signal(self):
        self.looks -= 1
        return 15 if self.looks < 0 else 0

    @signal.setter
    def signal(self, number):
        assert number in (0, 15)


@pytest.mark.slow
def test_members_go_on_from_where_each_of_them_stands(tmp_path):
    """One is interrupted late, one early, one has not begun; together they are brought to the end.

    The rows are those of runs that never stopped.
    """
    trainer = dataclasses.replace(TRAINER, checkpoint_seconds=0)
    experiments = different(trainer, probes={})
    recorded(experiments, tmp_path / "whole")
    recorded(experiments[:1], tmp_path / "parts", interruption=AfterSteps(6))
    early = Recording(experiments[1], tmp_path / "parts" / "1")
    with AfterSteps(3) as asked:
        run_together([early], Crew(), asked)
    steps = [open_run(tmp_path / "parts" / str(i)).summary["steps"] for i in (0, 1)]
    assert steps[0] > steps[1] > 0
    crew = recorded(experiments, tmp_path / "parts", resume=(0, 1))
    assert [outcome.status for outcome in crew.outcomes.values()] == ["finished"] * 3
    for i in range(3):
        mine, theirs = (open_run(tmp_path / kind / str(i)) for kind in ("parts", "whole"))
        assert list(mine.scalars["step"]) == [0, 5, 10, 11]
        for name in theirs.scalars.data_vars:
            np.testing.assert_allclose(mine.scalars[name], theirs.scalars[name], rtol=1e-5)


def test_members_that_cannot_begin_or_go_on_recording_leave_the_others_alone(tmp_path, monkeypatch):
    experiments = [experiment(seed=seed, probes={}) for seed in range(3)]
    (tmp_path / "0").mkdir(parents=True)
    (tmp_path / "0" / "run.json").write_text("{}")  # taken
    full = tmp_path / "1"
    usual = Recording.member

    def member(recording, ended=None):
        made = usual(recording, ended)
        if recording.folder == full:
            made.sinks = [*made.sinks, _Full()]
        return made

    monkeypatch.setattr(Recording, "member", member)
    crew = recorded(experiments, tmp_path)
    assert isinstance(crew.errors["0"], BadInput)
    assert (tmp_path / "0" / "run.json").read_text() == "{}"
    assert crew.outcomes["1"].status == "crashed"
    info = json.loads((full / "run.json").read_text())
    assert (info["status"], info["reason"]) == ("crashed", "cannot record: No space left on device")
    assert open_run(tmp_path / "2").status == "finished"


class _Full(Rows):
    def log(self, row):
        if row.step >= 5:
            raise CannotRecord("folder", "No space left on device")


@pytest.mark.slow
def test_numbers_that_decide_the_program_divide_the_members(tmp_path):
    """They are found while tracing; each part is trained, and all are recorded."""
    experiments = [
        experiment(
            probes={}, optimizer=optimizer(rate, schedule="exponential", final_fraction=share)
        )
        for rate, share in ((1e-2, 0.1), (1e-3, 0.5), (1e-3, 0.1))
    ]
    crew = recorded(experiments, tmp_path)
    assert [crew.outcomes[str(i)].status for i in range(3)] == ["finished"] * 3
    run(experiments[1], tmp_path / "alone", [], figures=False)
    mine, theirs = open_run(tmp_path / "1"), open_run(tmp_path / "alone")
    np.testing.assert_allclose(mine.scalars["train/loss"], theirs.scalars["train/loss"], rtol=1e-5)
