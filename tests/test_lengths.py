"""``trainer.test_lengths``: one set of weights is tested at any number of timesteps."""

from __future__ import annotations

import dataclasses
import functools
import io
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import optax
import pytest

from gradlab.bptt.parts import by_name
from gradlab.cells import SimpleRNN
from gradlab.errors import BadInput
from gradlab.experiment import build_steps
from gradlab.launch.objective import check_objective
from gradlab.launch.resume import _check_same
from gradlab.record.reader import open_run
from gradlab.record.terminal import Terminal
from gradlab.recording import at_other_lengths, describe, key_of
from gradlab.run import run
from gradlab.tasks.adding import Adding
from gradlab.tasks.base import at_length
from gradlab.tasks.copying import Copying
from gradlab.training.loop import Member, Trainer, train
from gradlab.training.program import Solo
from tests.experiments import experiment
from tests.training.test_loop import Rows
from tests.training.test_population import Noisy, alone, optimizer, trained

LENGTHS = (21, 30)
TRAINER = Trainer(steps=12, batch=4, log_every=5, eval_every=5, test_lengths=LENGTHS)
BEFORE = {
    *("steps", "best/step", "train/loss", "train/grad_norm", "train/clip_rate"),
    *("val/loss", "val/accuracy", "test/loss", "test/accuracy"),
}


@dataclass(frozen=True)
class Watched(Copying):
    """Copying that says which of its held-out sets were asked for."""

    asked: ClassVar[list[tuple[str, int]]] = []

    def held_out(self, split):
        self.asked.append((split, self.length))
        return super().held_out(split)


COPYING = experiment(
    task=Watched(length=24, held_out_examples=30),
    make_cell=SimpleRNN,
    hidden=3,
    probes={},
    trainer=TRAINER,
)


class Watching(Rows):
    """Rows, and the held-out sets that had been asked for by the last."""

    def log(self, row):
        self.asked = list(Watched.asked)
        super().log(row)


@pytest.fixture(scope="module")
def solo():
    """A single run that has ended."""
    Watched.asked.clear()
    steps = build_steps(COPYING)
    program, member = Solo(steps, key_of(COPYING), eval_batch=7), Member([Watching()])
    program.compile()
    train(TRAINER, program, [member])
    member.sinks[0].asked_in_all = list(Watched.asked)
    return member


def by_hand(params, task):
    """Loss and accuracy on the test split in numpy, step by step: an RNN that reads symbols."""
    weights = {name: np.asarray(leaf, float) for name, leaf in by_name(params).items()}
    cell = "layers/0/0/dense_{}/{}".format
    batch = task.held_out("test")
    inputs, targets = np.asarray(batch.inputs), np.asarray(batch.targets)
    h, losses, right = np.zeros((inputs.shape[1], 3)), [], []
    assert len(inputs) == task.length
    for symbols, answers in zip(inputs, targets, strict=True):
        read = np.eye(task.symbols)[symbols] @ weights[cell("i", "kernel")]
        h = np.tanh(read + weights[cell("i", "bias")] + h @ weights[cell("h", "kernel")])
        logits = h @ weights["readout/kernel"] + weights["readout/bias"]
        chosen = np.take_along_axis(logits, answers[:, None], 1)[:, 0]
        losses.append(np.log(np.exp(logits).sum(1)) - chosen)
        right.append(logits.argmax(1) == answers)
    return np.mean(losses), np.mean(right)


def test_scores_are_those_of_the_same_weights_on_the_task_at_each_length(solo):
    summary = solo.outcome.summary
    for length, at in [(24, ""), *((length, f"/length_{length}") for length in LENGTHS)]:
        task = Copying(length=length, held_out_examples=30)
        loss, accuracy = by_hand(solo.best.params, task)
        assert summary[f"test/loss{at}"] == pytest.approx(loss, rel=1e-5)
        assert summary[f"test/accuracy{at}"] == pytest.approx(accuracy, rel=1e-5)
    assert len({value for name, value in summary.items() if name.startswith("test/loss")}) == 3


def test_the_sequences_of_other_lengths_are_made_when_training_is_over(solo):
    (sink,), asked = solo.sinks, [("val", 24), ("test", 24)]
    assert sink.rows[-1].step == 11
    assert sink.asked == asked
    assert sink.asked_in_all == [*asked, *(("test", length) for length in LENGTHS)]


def test_without_the_key_a_run_is_as_ever_and_with_it_one_that_goes_on_is_tested(solo, tmp_path):
    folder, half = tmp_path / "run", dataclasses.replace(TRAINER, steps=6, test_lengths=())
    run(dataclasses.replace(COPYING, trainer=half), folder, [], figures=False)
    found = open_run(folder)
    assert found.summary.keys() - {"status", "steps_per_second", "probe_overhead"} == BEFORE
    assert found.info["baseline"].keys() == {"train", "val", "test"}
    assert "other lengths" not in str(found.info["verdict"])
    run(COPYING, folder, [], resume=True, figures=False)
    found = open_run(folder)
    assert solo.outcome.summary.keys() == BEFORE | {
        f"test/{figure}/length_{length}" for figure in ("loss", "accuracy") for length in LENGTHS
    }
    for name, value in solo.outcome.summary.items():
        assert found.summary[name] == pytest.approx(value, rel=1e-5), name
    for length in LENGTHS:
        want = Copying(length=length).baseline("test")._asdict()
        assert found.info["baseline"][f"test/length_{length}"] == want
    known = describe(COPYING, build_steps(COPYING))
    assert found.info["verdict"][-2:] == at_other_lengths(solo.outcome, known, LENGTHS)


def test_members_of_a_population_are_tested_as_alone(solo):
    other = dataclasses.replace(COPYING, seed=5)
    _, (same, unlike) = trained([COPYING, other])
    assert same.outcome.summary.keys() == unlike.outcome.summary.keys()
    for name, value in solo.outcome.summary.items():
        assert same.outcome.summary[name] == pytest.approx(value, rel=1e-4), name
    for length in LENGTHS:
        task = Copying(length=length, held_out_examples=30)
        loss, accuracy = by_hand(unlike.best.params, task)
        assert unlike.outcome.summary[f"test/loss/length_{length}"] == pytest.approx(loss, rel=1e-5)
        key = f"test/accuracy/length_{length}"
        assert unlike.outcome.summary[key] == pytest.approx(accuracy, rel=1e-5)


def test_members_with_tasks_of_their_own_are_tested_as_alone_and_one_that_diverges_too():
    trainer = dataclasses.replace(TRAINER, test_lengths=(70,))
    experiments = [
        experiment(
            make_cell=functools.partial(SimpleRNN, activation_fn="identity"),
            task=Noisy(length=60, held_out_examples=10, scale=scale),
            optimizer=optimizer(rate, None, rule=optax.sgd),
            trainer=trainer,
            probes={},
        )
        for rate, scale in ((1e-4, 1.0), (1e6, 2.0), (1e-5, 3.0))
    ]
    _, members = trained(experiments)
    assert [member.outcome.status for member in members] == ["finished", "diverged", "finished"]
    for member, one in zip(members, experiments, strict=True):
        own, summary = alone(one)[1].outcome.summary, member.outcome.summary
        assert {"test/loss/length_70"} < own.keys() == summary.keys()
        for name, value in own.items():  # those of the one that diverges are not finite
            assert summary[name] == pytest.approx(value, rel=1e-4, nan_ok=True), name


def test_a_run_that_is_interrupted_is_tested_too():
    sink = Watching(interrupt_at=5)
    steps = build_steps(COPYING)
    program, member = Solo(steps, key_of(COPYING), eval_batch=7), Member([sink])
    program.compile()
    train(TRAINER, program, [member])
    assert member.outcome.status == "interrupted"
    for length in LENGTHS:
        loss, _ = by_hand(member.best.params, Copying(length=length, held_out_examples=30))
        found = member.outcome.summary[f"test/loss/length_{length}"]
        assert found == pytest.approx(loss, rel=1e-5)


def test_accuracies_have_a_line_of_their_own_and_the_terminal_no_row_for_each(solo):
    known = describe(COPYING, build_steps(COPYING))
    lines = at_other_lengths(solo.outcome, known, LENGTHS)
    assert [line.partition(":")[0] for line in lines] == [
        "test loss at other lengths",
        "test accuracy at other lengths",
    ]
    share, guess = solo.outcome.summary["test/accuracy/length_21"], 11 / 21 + 10 / 21 / 8
    assert f" 21: {share:.1%} (baseline {guess:.1%}), 30: " in lines[1]
    stream = io.StringIO()
    terminal = Terminal(stream)
    terminal.open(known)
    terminal.close(dataclasses.replace(solo.outcome, verdict=lines))
    assert "test/loss" in stream.getvalue()
    assert "length_21" not in stream.getvalue()
    assert stream.getvalue().splitlines()[-2:] == lines


def test_a_sweeper_can_ask_for_one_and_the_key_may_change_when_a_run_goes_on():
    check_objective("test/accuracy/length_30", COPYING)
    check_objective("test/loss/length_21", COPYING)
    with pytest.raises(BadInput, match="test/loss/length_22"):
        check_objective("test/loss/length_22", COPYING)
    config = {"trainer": {"steps": 3}, "optimizer": {"schedule": "constant"}}
    _check_same(config, config | {"trainer": {"steps": 3, "test_lengths": [3]}}, Path("run"))


# What is refused, before anything is trained; what is typed is in test_bad_input.


@dataclass(frozen=True)
class Wider(Adding):
    @property
    def features(self):
        return self.length


class ByHand(Adding):
    """No dataclass of its own accord: its constructor takes something else."""

    def __init__(self, how_long):
        super().__init__(how_long)


@dataclass(frozen=True)
class Even(Adding):
    def __post_init__(self):
        if self.length % 2:
            raise ValueError("an odd number of steps")


@dataclass(frozen=True)
class Rounded(Adding):
    def __post_init__(self):
        object.__setattr__(self, "length", self.length // 10 * 10)


class Plain:
    """A task that is no dataclass at all."""

    length = 8


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (Copying(length=24), "Copying can have: a whole number of at least 21"),
        (Adding(length=24, min_length=22), "task.min_length=22 would have to be a whole number"),
        (Wider(length=8), "the same features as at task.length=8, 8, .* it is 13"),
        (ByHand(8), "ByHand can have: making it ends with TypeError"),
        (Even(length=8), "ValueError: an odd number of steps"),
        (Rounded(length=20), "a length of 10 of this one"),
        (Plain(), "Plain is no dataclass"),
    ],
)
def test_a_length_that_the_task_or_the_model_cannot_have_is_refused(task, words):
    with pytest.raises(BadInput, match=words) as refused:
        at_length(task, 13, "trainer.test_lengths")
    assert (refused.value.key, refused.value.given) == ("trainer.test_lengths", 13)


def test_it_is_refused_before_there_is_anything_to_train():
    trainer = dataclasses.replace(TRAINER, test_lengths=(30, 20))
    with pytest.raises(BadInput, match=r"trainer\.test_lengths: got 20"):
        build_steps(dataclasses.replace(COPYING, trainer=trainer))
