"""Many steps in one call: which are measured and where calls are cut changes no number."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from gradlab.experiment import build_steps
from gradlab.record.base import Row
from gradlab.training import loop as loop_module
from gradlab.training import stretch
from gradlab.training.checkpoint import NOTHING, Since, _since, _stretches
from gradlab.training.loop import Member, Trainer, train
from gradlab.training.program import Solo
from gradlab.training.stretch import Block
from tests.experiments import experiment
from tests.training.test_loop import FirstLoss, Rows

KEY = jax.random.key(5)


@pytest.fixture(scope="module")
def program():
    """Compiled once for all who put it where they want it."""
    made = Solo(
        build_steps(experiment(probes=experiment().probes | {"close": FirstLoss()})), KEY, 9
    )
    made.compile()
    return made


def calls(program, *plans):
    """From the start: the reports of all steps, what the measured ones saw, and the state."""
    program.resume({0: program.steps.start(KEY)})
    reports, rows = [], {}
    for plan in plans:
        blocks, at = [Block(*block) for block in plan], program.step()
        program.send({0: blocks})
        landed = program.land()
        for block, (some, seen) in zip(blocks, landed.stretches()[0].by_block(blocks), strict=True):
            reports.append(some)
            at += block.steps
            if block.measured:
                rows[at - 1] = seen
        assert landed.step == {0: at}
        assert landed.alive == {0: True}
    return np.concatenate(reports), rows, program.state()


def same(one, other):
    """To the last bit."""
    raw = [state._replace(key=jax.random.key_data(state.key)) for state in (one, other)]
    for mine, theirs in zip(*map(jax.tree.leaves, raw), strict=True):
        np.testing.assert_array_equal(mine, theirs)


def test_where_calls_are_cut_changes_no_bit(program):
    at_once = calls(program, [(0, True), (3, True), (0, True), (2, False)])
    in_parts = calls(
        program,
        [(0, True)],
        [],
        [(2, False)],
        [(1, True), (0, True), (1, False)],
        [(1, False)],
    )
    assert at_once[1].keys() == in_parts[1].keys() == {0, 4, 5}
    np.testing.assert_array_equal(at_once[0], in_parts[0])
    for step, seen in at_once[1].items():
        assert seen.keys() == in_parts[1][step].keys()
        for name, array in seen.items():
            np.testing.assert_array_equal(array, in_parts[1][step][name])
    same(at_once[2], in_parts[2])


def test_what_it_reports_and_sees_is_that_of_the_single_steps(program):
    reports, rows, _ = calls(program, [(2, True), (1, False)])
    steps, state = program.steps, program.steps.start(KEY)
    probe, wanted = jax.jit(lambda state: steps.probe(state, ())), []
    for step in range(4):
        state, report, seen = probe(state)
        wanted.append(report)
        if step == 2:
            for name, array in seen.items():
                np.testing.assert_allclose(rows[2][name], array, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(reports, np.stack(wanted), rtol=1e-5)


def test_the_state_is_given_away_and_what_others_keep_is_theirs(program):
    before, kept = program._state, program.state()
    host = jax.tree.map(np.array, kept.params)
    program.send({0: [Block(1, measured=True)]})
    program.land()
    donated = [leaf.is_deleted() for leaf in jax.tree.leaves((before.params, before.opt_state))]
    assert all(donated)
    assert jax.tree.all(jax.tree.map(np.array_equal, kept.params, host))


def test_nothing_but_the_plan_goes_to_the_device(program):
    with jax.transfer_guard_host_to_device("disallow"):  # the plan goes explicitly
        program.send({0: [Block(3, measured=True)]})
        program.land()
        program.measure()
        program.score("val")
        program.state()


def test_as_many_rows_as_memory_is_meant_for(monkeypatch):
    """None or many, a call has room for one."""
    steps = build_steps(experiment())
    one = jax.eval_shape(lambda state: steps.probe(state, ()), steps.start(KEY))[2]
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in one.values())
    assert stretch._most(one, 1) == stretch.ROWS
    monkeypatch.setattr(stretch, "BYTES", 5 * size)
    assert [stretch._most(one, members) for members in (1, 2, 9)] == [5, 2, 1]
    assert stretch._most({}, 1) == stretch.ROWS


# The steps since the last row.


def test_sums_do_not_depend_on_how_steps_were_divided_nor_on_being_saved():
    reports = np.random.default_rng(0).lognormal(size=(300, 4), sigma=3).astype(np.float32)
    whole = NOTHING.then(reports)
    for cut in (1, 77, 299):
        parts = NOTHING.then(reports[:cut])
        parts = _since(_stretches(parts)).then(reports[cut:])
        assert parts == whole
    np.testing.assert_allclose(
        list(whole.means.values()), reports.mean(axis=0, dtype=np.float64), rtol=1e-12
    )
    assert _since(_stretches(NOTHING)) == NOTHING


def test_stretches_with_their_means_are_read_as_they_were_once_written():
    found = _since([[4, 0.5, 1.0, 0.25, 0.0], [2, 2.0, 4.0, 0.0, 0.0]])
    assert found == Since(6, (6.0, 12.0, 1.0, 0.0))


# The loop.


class Watched:
    """A program that notes what is asked of it; time goes by while it makes steps."""

    def __init__(self, program, seconds):
        self.program, self.seconds, self.time = program, seconds, 0.0
        self.events, self.flying = [], False

    def __getattr__(self, name):
        found = getattr(self.program, name)
        if name in ("send", "land", "measure", "score", "state"):
            assert self.flying == (name == "land"), f"{name} while a call is under way"
        if name in ("send", "land"):
            self.flying = not self.flying
        if name != "send":
            return found

        def send(plans):
            steps = sum(block.steps for block in plans[0])
            if steps:  # else it is only to see how long a call takes by itself
                self.events.append(("send", steps))
            self.time += steps * self.seconds
            return found(plans)

        return send

    def now(self):
        return self.time


class Noted(Rows):
    def __init__(self, watched):
        super().__init__()
        self.watched = watched

    def log(self, row):
        super().log(row)
        self.watched.events.append(("row", row.step, self.watched.flying))


def trained(program, seconds=0.001, **settings):
    watched = Watched(program, seconds)
    trainer = Trainer(**{"steps": 40, "batch": 4, "eval_every": 1000} | settings)
    member = Member([Noted(watched)])
    program.resume({0: program.steps.start(KEY)})
    close = loop_module.Schedule(None, 1)
    train(trainer, watched, [member], close=close, now=watched.now)
    assert member.outcome.status == "finished"
    return watched.events, member


def test_rows_are_handed_over_while_the_next_stretch_is_made(program):
    events, member = trained(program, log_every=1)
    rows = [event for event in events if event[0] == "row"]
    assert [step for _, step, _ in rows] == list(range(40))
    sends = [steps for kind, steps, *_ in events if kind == "send"]
    assert sum(sends) == 40
    assert max(sends) > 5  # of so short steps, many at once
    # But for close looks, which end a stretch, and the end: each row while the devices work.
    assert sum(flying for *_, flying in rows) >= 35
    looked = [row.step for row in member.sinks[0].rows if "first_loss" in row.arrays]
    assert looked == [0, 1, 10, 39]
    for row in member.sinks[0].rows:
        assert isinstance(row, Row)
        assert row.arrays.keys() >= {"adj_h_log10", "memory_horizon"}


def test_calls_are_about_as_long_as_they_should_be(program):
    """With steps of a fifth of that, five of them."""
    events, _ = trained(program, seconds=loop_module.SECONDS / 5, log_every=1)
    sends = [steps for kind, steps, *_ in events if kind == "send"]
    assert sends[0] == 1
    assert max(sends) == 5


@pytest.mark.parametrize("settings", [{"log_every": 7}, {"log_every": None, "log_per_decade": 4}])
def test_plain_and_probed_steps_are_compared_by_calls_of_one_kind(program, settings):
    _, member = trained(program, seconds=0.01, **settings)
    assert member.outcome.timings["probe_overhead"] == pytest.approx(1)
    assert member.outcome.timings["steps_per_second"] == pytest.approx(100)
    wanted = trained(program, log_every=1)[1]
    for name, value in member.outcome.summary.items():
        if name.startswith(("best/", "val/", "test/")):
            assert value == pytest.approx(wanted.outcome.summary[name], rel=1e-4), name
