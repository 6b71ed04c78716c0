"""A training loop of one's own, recorded like gradlab's own runs."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import gradlab
from gradlab.compare.__main__ import main as compare
from gradlab.compare.headline import headline
from gradlab.compare.recorded import recorded
from gradlab.compare.runs import runs_in, settings_that_differ
from gradlab.record.directory import RunDirectory
from gradlab.record.figures import adjoint_heatmap, draw_one, forget_product
from gradlab.record.figures.common import titled
from gradlab.record.lags import values_by_lag
from gradlab.watching.gradient import Seen
from tests.record.wandb_file import load
from tests.zoo import ZOO

STEPS, B, T = 6, 4, 8


class Reader(nnx.Module):
    """An LSTM, and a GRU that reads every other step of it."""

    def __init__(self, rngs):
        self.first = nnx.RNN(nnx.OptimizedLSTMCell(2, 3, rngs=rngs))
        self.second = nnx.RNN(nnx.GRUCell(3, 4, rngs=rngs))
        self.readout = nnx.Linear(4, 1, rngs=rngs)

    def __call__(self, x):
        below: Any = self.first(x)
        above: Any = self.second(below[:, 1::2])
        return self.readout(above[:, -1])[:, 0]


class Single(nnx.Module):
    """One GRU, whose adjoints the tests make up."""

    def __init__(self, hidden=2):
        self.rnn = gradlab.RNN(nnx.GRUCell(1, hidden, rngs=nnx.Rngs(0)))


def made_up(log10: Any = 0.0, *, batch=2, length=4):
    """What a :class:`Single` may have seen, the same everywhere unless an array is given."""
    adjoint = jnp.broadcast_to(jnp.asarray(log10, jnp.float32), (batch, length))
    layer = {"adj_h_log10": adjoint, "mask": jnp.ones((batch, length), bool), "measured": {}}
    return Seen({"rnn": layer}, {"rnn/cell/dense_i/kernel": jnp.float32(3.0)})


@pytest.fixture
def recorder(tmp_path):
    """A recorder of made-up steps in the folder ``run``."""

    def make(**options):
        made = gradlab.Recorder(tmp_path / "run", Single(), **{"figures": False, **options})
        open_ones.append(made)
        return made

    open_ones: list[gradlab.Recorder] = []
    yield make
    for one in open_ones:
        one.close()


def refusal(act, *words):
    with pytest.raises(gradlab.BadInput) as caught:
        act()
    assert all(word in str(caught.value) for word in words), caught.value
    return caught.value


def within(recorder, *steps, error=None):
    """A loop over some steps of ``log``'s arguments, which an error may end."""
    with recorder:
        for step, seen, loss in steps:
            recorder.log(step, seen, loss=loss)
        if error is not None:
            raise error


# One whole run of a loop of one's own.


def squares(outputs, targets):
    return jnp.square(outputs - targets)


@pytest.fixture(scope="module")
def looped(tmp_path_factory):
    """``(folder, what each step saw, the losses)`` of a run with everything in it."""
    model = gradlab.watch(Reader(nnx.Rngs(0)))
    optimizer = nnx.Optimizer(model, optax.sgd(0.1), wrt=nnx.Param)
    grad = gradlab.value_and_grad(lambda model, x, y: jnp.mean(squares(model(x), y)))

    @nnx.jit
    def train_step(model, optimizer, x, y):
        loss, grads, seen = grad(model, x, y)
        optimizer.update(model, grads)
        return loss, seen

    folder = tmp_path_factory.mktemp("own") / "run"
    config = {"seed": 3, "task": "sums", "rate": {"of": 0.1}, "home": os.path.expanduser("~/x")}
    seens, losses = [], []
    recorder = gradlab.Recorder(folder, model, config=config, wandb="offline", figures=False)
    with recorder:
        for step in range(STEPS):
            x = jax.random.normal(jax.random.key(step), (B, T, 2))
            y = jnp.sum(x, axis=(1, 2))
            if step in (0, 4):
                looked = lambda outputs, y=y: squares(outputs, y[:2])  # noqa: E731
                recorder.look(step, model, x[:2], looked, probes=["lyapunov"])
            loss, seen = train_step(model, optimizer, x, y)
            recorder.log(step, seen, loss=loss)
            if step % 2:
                recorder.log(step, None, **{"val/loss": 0.5 - 0.1 * step, "seen examples": B})
            seens.append(jax.device_get(seen))
            losses.append(float(loss))
    return folder, seens, losses


def test_an_h_by_its_own_name_is_recorded_by_both(tmp_path):
    model = gradlab.watch(nnx.Sequential(nnx.RNN(ZOO["carry NamedTuple"].build())))
    x = jax.random.normal(jax.random.key(0), (B, T, *ZOO["carry NamedTuple"].features))
    grad = gradlab.value_and_grad(lambda model: jnp.mean(squares(model(x)[:, -1], 1.0)))
    _, _, seen = nnx.jit(grad)(model)
    (name,), (layer,) = seen, seen.values()
    assert seen.h == {name: "output"}
    assert layer.keys() >= {"adj_output_log10", "adj_store_log10", "adj_h_log10"}
    with gradlab.Recorder(tmp_path / "run", model, figures=False) as recorder:
        recorder.log(0, seen)
    curves = gradlab.open_run(tmp_path / "run").curves
    h = curves["adj_h_log10"].values[0, 0]
    np.testing.assert_array_equal(h, curves["adj_output_log10"].values[0, 0])
    np.testing.assert_allclose(h, np.mean(layer["adj_output_log10"], axis=0), rtol=1e-6)
    both = np.log10(np.hypot(*(10.0 ** layer[f"adj_{one}_log10"] for one in ("output", "store"))))
    fall = np.mean(both[:, -1] - both[:, 0])  # of the whole state, in which h is once
    assert curves["decades_lost"].values[0, 0] == pytest.approx(fall, abs=1e-5)


@pytest.fixture(scope="module")
def own(looped):
    return gradlab.open_run(looped[0])


def test_the_curves_are_those_of_each_layer_and_step(own, looped):
    curves, seens = own.curves, looped[1]
    assert own.status == "finished"
    assert curves["layer"].values.tolist() == ["first", "second"]
    first = curves["adj_h_log10"].sel(layer="first")
    second = curves["adj_h_log10"].sel(layer="second")
    for step, seen in enumerate(seens):
        mean = seen["first"]["adj_h_log10"].mean(axis=0)
        np.testing.assert_allclose(first.sel(step=step), mean, rtol=1e-5)
        mean = seen["second"]["adj_h_log10"].mean(axis=0)
        np.testing.assert_allclose(second.sel(step=step)[: T // 2], mean, rtol=1e-5)
        assert np.isnan(second.sel(step=step)[T // 2 :]).all()
        lost = float(curves["decades_lost"].sel(layer="second", step=step))
        state = seen["second"]["adj_h_log10"]
        assert lost == pytest.approx(np.mean(state[:, -1] - state[:, 0]), rel=1e-4)
    assert np.isnan(curves["adj_c_log10"].sel(layer="second")).all()
    assert not np.isnan(curves["adj_c_log10"].sel(layer="first")).any()


def test_what_comes_of_the_gates_lies_under_each_layers_own(own, looped):
    saturation = own.curves["gate_saturation"].isel(step=0)
    seen = looped[1][0]
    for layer, gates in (("first", ["i", "f", "o"]), ("second", ["r", "z"])):
        values = saturation.sel(layer=layer)
        there = values.sel(gate=gates).values
        np.testing.assert_allclose(there, seen[layer]["measured"]["gate_saturation"])
        assert int(np.isfinite(values).sum()) == len(gates)
    assert own.curves["forget_product_log10"].attrs["gate"] == "f/z"


def test_numbers_keep_their_names_and_steps(own, looped):
    scalars, (_, seens, losses) = own.scalars, looped
    np.testing.assert_allclose(scalars["train/loss"], losses, rtol=1e-6)
    assert np.isnan(scalars["val/loss"][::2]).all()
    assert scalars["val/loss"].sel(step=3) == pytest.approx(0.2)
    assert scalars["seen examples"].sel(step=5) == B
    norms = own.curves["grad_norm"]
    for name, norm in seens[2].gradient_norms.items():
        assert norms.sel(step=2, parameter=name) == pytest.approx(float(norm))
    whole = np.linalg.norm(norms.sel(step=2))
    assert scalars["train/grad_norm"].sel(step=2) == pytest.approx(float(whole), rel=1e-5)
    assert own.summary["val/loss"] == pytest.approx(0.0)
    assert own.summary["steps"] == STEPS
    assert own.summary["decades_lost/layer_first"] == float(own.curves["decades_lost"][-1, 0])


def test_a_close_look_is_in_the_row_of_its_step(own):
    exponents = own.curves["lyapunov_exponent"]
    measured = np.isfinite(exponents.sel(layer="first")).any("index")
    assert measured.values.tolist() == [True, False, False, False, True, False]
    assert own.scalars["train/loss"].notnull().all()


def test_the_run_says_what_it_is_and_no_more_than_is_known(own):
    facts = own.info["facts"]
    assert own.config["rate"] == {"of": 0.1}
    assert own.config["home"] == "~/x"
    assert (facts["model"], facts["task"], facts["T"]) == ("Reader", "sums", T)
    second = {"cell": "GRUCell", "states": ["h"], "h": "h", "T": T // 2, "gate": "z"}
    assert facts["layers"]["second"] == second
    assert own.info["steps_per_second"] > 0
    assert own.info["probe_overhead"] is None
    assert own.info["baseline"] == {}
    verdict = own.info["verdict"]
    assert [line.partition(":")[0] for line in verdict] == ["layer first", "layer second"]
    assert all("which is not known" in line for line in verdict)
    assert "f gate" in verdict[0]
    assert "z gate" in verdict[1]


def test_wandb_has_the_same_rows(own, looped):
    (file,) = looped[0].glob("wandb/*/run-*.wandb")
    kept = load(file)
    rows = [row for row in kept["history"] if "train/loss" in row]
    assert [row["train_step"] for row in rows] == list(range(STEPS))
    np.testing.assert_allclose([row["train/loss"] for row in rows], own.scalars["train/loss"])
    assert [row.get("val/loss") for row in rows[:2]] == [None, pytest.approx(0.4)]
    lag = own.curves["adj_h_over_lag_log10"].sel(layer="first", back=2)
    shown = [row["adj_h/layer_first/lag_00002"] for row in rows]
    np.testing.assert_allclose(shown, lag, rtol=1e-6)
    assert "lyapunov_exponent/layer_first/index_0" in rows[4]
    assert kept["exit"] == 0
    assert kept["config"]["seed"] == 3


def test_figures_and_pages_read_it_like_any_other(own, looped, tmp_path):
    figure = tmp_path / "adjoint_over_lag.png"
    draw_one("adjoint_over_lag", own.curves, own.scalars, own.info, tmp_path)
    assert figure.read_bytes().startswith(b"\x89PNG")
    for name, rate in (("a", 0.1), ("b", 0.3)):
        with gradlab.Recorder(
            tmp_path / name, Single(), config={"seed": 0, "rate": rate}, figures=False
        ) as one:
            for step in range(3):
                log10 = jnp.linspace(-rate, 0, 4)
                one.log(step, made_up(log10), loss=rate, **{"val/loss": rate})
    runs = runs_in(tmp_path / "a", tmp_path / "b")
    assert settings_that_differ(runs) == {"rate": [0.1, 0.3]}
    assert (
        compare([str(tmp_path / "a"), str(tmp_path / "b"), "--out", str(tmp_path / "p.html")]) == 0
    )
    lines = headline(recorded(runs)).lines
    assert "Results and decades are those recorded last." in lines
    assert any("do not say" in line for line in lines)
    assert runs[0].command == ""
    assert compare([str(looped[0]), "--out", str(tmp_path / "q.html")]) == 0


def test_figures_show_each_layer_its_own_state_and_gate(own):
    page = forget_product.figure(own.curves, own.scalars, own.info)
    assert page is not None
    first, second = page.axes
    assert first.get_title() == "layer first: ‖∂ℓ/∂c‖, gate f"
    assert second.get_title() == "layer second: ‖∂ℓ/∂h‖, gate z"
    assert 'recorder.look(..., probes=["forget_path"])' in page.get_suptitle()
    for axes, name in ((first, "adj_c_log10"), (second, "adj_h_log10")):
        (drawn,) = (line for line in axes.lines if str(line.get_label()).startswith("norm"))
        panel = own.curves.isel(step=-1).sel(layer=axes.get_title().split()[1][:-1])
        shown = np.asarray(drawn.get_ydata(), float)
        expected = values_by_lag(panel, name)
        expected = expected - expected[np.isfinite(expected)][0]
        np.testing.assert_allclose(shown[np.isfinite(shown)], expected[np.isfinite(expected)])
        assert np.isfinite(shown).any()
    page = adjoint_heatmap.figure(own.curves, own.scalars, own.info)
    assert page is not None
    titles = [axes.get_title() for axes in page.axes]
    assert titles[1] == "layer first\nwhat the gate f alone would keep"
    assert titles[3] == "layer second\nwhat the gate z alone would keep"


def test_a_long_name_has_a_line_of_its_own():
    name = "layer encoder/blocks/0/backward_rnn"
    assert titled("layer 0", "some words") == "layer 0: some words"
    assert titled(name, "4.2 decades lost over it", 50) == f"{name}\n4.2 decades lost over it"
    assert max(map(len, titled(name * 3, "words\nothers", 40).split("\n"))) == 40


# How a run ends.


def test_an_error_in_the_loop_is_recorded_and_raised_unchanged(recorder, tmp_path):
    error = ZeroDivisionError("of mine")
    with pytest.raises(ZeroDivisionError) as caught:
        within(recorder(), (0, made_up(), 1.0), (1, made_up(), 0.5), error=error)
    assert caught.value is error
    run = gradlab.open_run(tmp_path / "run")
    assert (run.status, run.info["reason"]) == ("crashed", "ZeroDivisionError: of mine")
    assert run.scalars["train/loss"].values.tolist() == [1.0, 0.5]


def test_ctrl_c_interrupts(recorder, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        within(recorder(), (3, made_up(), 1.0), error=KeyboardInterrupt())
    run = gradlab.open_run(tmp_path / "run")
    assert (run.status, run.info["reason"]) == ("interrupted", "interrupted at step 3")


def test_ctrl_c_while_a_row_is_written_writes_it_once(recorder, tmp_path, monkeypatch):
    log = RunDirectory.log

    def log_and_stop(self, row):
        log(self, row)
        if row.step == 1:
            monkeypatch.undo()
            raise KeyboardInterrupt

    monkeypatch.setattr(RunDirectory, "log", log_and_stop)
    with pytest.raises(KeyboardInterrupt):
        within(recorder(), *((step, made_up(), step + 1.0) for step in range(3)))
    run = gradlab.open_run(tmp_path / "run")
    assert run.status == "interrupted"
    assert run.scalars["step"].values.tolist() == [0, 1]
    assert run.scalars["train/loss"].values.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("error", [None, ValueError("of mine")], ids=["no error", "an error"])
def test_a_program_that_ends_without_close_says_so(recorder, tmp_path, monkeypatch, error):
    one = recorder()
    one.log(7, made_up(), loss=1.0)
    monkeypatch.setattr(sys, "last_value", error, raising=False)
    monkeypatch.delattr(sys, "ps1", raising=False)
    one._at_exit()
    run = gradlab.open_run(tmp_path / "run")
    status, words = (
        ("crashed", "ValueError") if error else ("interrupted", "without a call of close")
    )
    assert run.status == status
    assert words in run.info["reason"]
    assert run.scalars.sizes["step"] == 1


BROKEN = jnp.array([0.0, jnp.nan, 0.0, 0.0])
DIVERGED = {
    "the loss is nan": ((0.0, math.nan), "diverged at step 2: the loss is nan"),
    "the adjoint is nan": ((BROKEN, 1.0), "diverged at step 2: in layer rnn the adjoint of h is"),
}


@pytest.mark.parametrize("case", DIVERGED)
def test_a_run_that_diverges_goes_on_and_says_from_which_step(recorder, tmp_path, case):
    (log10, loss), words = DIVERGED[case]
    with recorder() as one:
        for step in range(4):
            bad = step >= 2
            one.log(step, made_up(log10 if bad else 0.0), loss=loss if bad else 0.25)
    run = gradlab.open_run(tmp_path / "run")
    assert run.status == "diverged"
    assert run.info["reason"].startswith(words)
    assert run.scalars.sizes["step"] == 4
    assert run.summary["train/loss"] == 0.25
    assert "At step 1" in run.info["verdict"][0]


def test_a_run_that_recovers_has_not_diverged(recorder, tmp_path):
    with recorder() as one:
        for step, loss in enumerate([1.0, math.inf, 0.5]):
            one.log(step, made_up(-math.inf if step else 0.0), loss=loss)
    assert gradlab.open_run(tmp_path / "run").status == "finished"


def test_other_lengths_are_refused_and_other_batches_are_not(recorder, tmp_path):
    batches = made_up(), made_up(batch=3), made_up(length=5)
    steps = [(step, seen, 1.0) for step, seen in enumerate(batches)]
    refusal(lambda: within(recorder(), *steps), "T = 5", "seq_lengths")
    run = gradlab.open_run(tmp_path / "run")
    assert run.status == "crashed"
    assert "T = 4, as at the steps before" in run.info["reason"]
    assert run.curves.sizes["step"] == 2


def test_a_run_without_a_step_can_be_read(recorder, tmp_path):
    one = recorder()
    assert gradlab.open_run(tmp_path / "run").status == "running"
    one.close()
    run = gradlab.open_run(tmp_path / "run")
    assert run.status == "finished"
    assert run.scalars.sizes["step"] == 0
    refusal(lambda: one.log(0, made_up()), "not closed")


KILLED = """
import os, signal, sys
from pathlib import Path
import gradlab
from tests.test_recorder import Single, made_up
one = gradlab.Recorder(sys.argv[1], Single(), figures=False)
for step in range(10**9):
    one.log(step, made_up(), loss=1.0)
    if step == 50:
        print("on", flush=True)
    if sys.argv[2] == "error" and step == 60:
        raise ValueError("of mine")
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "error"])
def test_a_process_that_dies_leaves_what_it_logged(tmp_path, how):
    command = [sys.executable, "-c", KILLED, str(tmp_path / "run"), how]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "on\n"
    if how == "kill":
        time.sleep(2.5)
        process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    run = gradlab.open_run(tmp_path / "run")
    assert run.status == ("killed" if how == "kill" else "crashed")
    assert run.scalars.sizes["step"] > 50
    assert not run.damage


# Resuming.


def test_a_folder_with_a_run_is_not_overwritten(recorder):
    recorder().close()
    refusal(recorder, "no run yet", "resume=True")


def test_a_resumed_run_keeps_its_rows_and_adds_to_them(recorder, tmp_path):
    with recorder(config={"seed": 1}) as one:
        for step in range(6):
            one.log(step, made_up(), loss=float(step))
    with recorder(resume=True) as one:  # from a checkpoint of step 4
        for step in range(4, 8):
            one.log(step, made_up(-1.0), loss=10.0 * step, accuracy=0.5)
    run = gradlab.open_run(tmp_path / "run")
    assert run.scalars["train/loss"].values.tolist() == [0, 1, 2, 3, 4, 5, 60, 70]
    assert run.scalars["accuracy"].values[-3:].tolist() == pytest.approx(
        [np.nan, 0.5, 0.5], nan_ok=True
    )
    assert run.curves["adj_h_log10"][:, 0, 0].values.tolist() == [0] * 6 + [-1] * 2
    assert run.config == {"seed": 1}
    assert [one["rows"] for one in run.info["resumed"]] == [6]


def test_the_command_line_does_not_resume_a_loop_of_ones_own(recorder, tmp_path, command):
    within(recorder(), (0, made_up(), 1.0))
    done = command(f"trainer.resume={tmp_path / 'run'}")
    assert (done.code, done.err.count("allowed")) == (2, 1)
    assert "Recorder(folder, module, resume=True)" in done.err


def test_a_run_of_another_module_or_length_is_not_resumed(recorder, tmp_path):
    with recorder() as one:
        one.log(0, made_up(), loss=1.0)
    folder = tmp_path / "run"
    other = gradlab.watch(Reader(nnx.Rngs(0)))
    refusal(lambda: gradlab.Recorder(folder, other, resume=True), "rnn (GRUCell)", "first (Opt")
    wider = Single(hidden=3)
    refusal(lambda: gradlab.Recorder(folder, wider, resume=True), "parameters")
    longer = 1, made_up(length=5), 1.0
    refusal(lambda: within(recorder(resume=True), longer), "T = 5")
    info = json.loads((folder / "run.json").read_text())
    del info["facts"]["layers"]
    (folder / "run.json").write_text(json.dumps(info))
    refusal(lambda: recorder(resume=True), "a run that a Recorder recorded")


# Bad input.


def call_log(*args, **scalars):
    return lambda one: one.log(*args, **scalars)


def measured(**gates):
    """What another module's layer of the same name may have seen."""
    return Seen({"rnn": {**made_up()["rnn"], "measured": gates}})


WITH_C = {**made_up()["rnn"], "adj_c_log10": jnp.zeros((2, 4))}
REFUSED = {
    "a step before the last": (call_log(2), "step", "3, the last one logged"),
    "a negative step": (call_log(-1), "whole number"),
    "a step that is no number": (call_log("3"), "whole number"),
    "the same twice": (call_log(3, made_up(), loss=1.0), "seen", "train/loss"),
    "a gradient for what was seen": (call_log(4, {"rnn": jnp.ones(3)}), "value_and_grad"),
    "an array": (call_log(4, loss=jnp.ones(3)), "shape (3,)"),
    "a word": (call_log(4, note="good"), "note", "a number"),
    "the name of a curve": (call_log(4, adj_h_log10=1.0), "adj_h_log10"),
    "the name of a dimension": (call_log(4, t=1.0), "a name that nothing else has"),
    "a name that reads the same": (call_log(4, train_loss=1.0), "train_loss"),
    "two names that read the same": (call_log(4, **{"a/b": 1.0, "a_b": 2.0}), "a_b"),
    "steps that a scan stacked": (
        call_log(4, jax.tree.map(lambda one: jnp.stack([one, one]), made_up())),
        "(2, 2, 4)",
        "jax.tree.map(lambda one: one[i], seen)",
    ),
    "other gates": (call_log(4, measured(gate_saturation=jnp.ones(3))), "GRUCell", "r, z"),
    "no gates of its": (call_log(4, measured(other=jnp.ones(3))), "other", "r, z"),
    "other states": (
        call_log(4, Seen({"rnn": WITH_C})),
        "the states c, h",
        "the Recorder was made",
    ),
    "another layer": (call_log(4, Seen({"lstm": made_up()["rnn"]})), "its layers: rnn"),
}


def test_what_cannot_be_logged_is_refused_and_nothing_is_lost(recorder, tmp_path):
    with recorder() as one:
        one.log(3, made_up(), loss=1.0)
        for act, *words in REFUSED.values():
            refusal(lambda act=act: act(one), *words)

        @jax.jit
        def step(x):
            one.log(4, loss=x)

        refusal(lambda: step(1.0), "outside of it")
        one.log(4, made_up(), loss=0.5)
    run = gradlab.open_run(tmp_path / "run")
    assert run.scalars["train/loss"].values.tolist() == [1.0, 0.5]


LATER = [
    "t",
    "gate",
    "parameter",
    "index",
    "quantile",
    "back",
    "layer",
    "adj_h_log10",
    "adj_any_zero",
]


def test_what_has_no_place_is_refused_at_the_first_step_too(recorder, tmp_path):
    with recorder() as one:
        refusal(lambda: one.log(0, measured(gate_saturation=jnp.ones(3))), "GRUCell")
        for name in [*LATER, "singular_value_log10"]:
            for seen in (None, made_up()):
                refusal(lambda name=name, seen=seen: one.log(0, seen, **{name: 1.0}), name)
        one.log(0, loss=1.0, **{"val/t": 2.0})
        refusal(lambda: one.log(0, val_t=1.0), "a name that nothing else has")
        one.log(1, made_up(), loss=0.5)
        for name in LATER:
            refusal(lambda name=name: one.log(2, made_up(), **{name: 1.0}), name)
    run = gradlab.open_run(tmp_path / "run")
    assert run.status == "finished"
    assert run.scalars["train/loss"].values.tolist() == [1.0, 0.5]
    assert run.scalars["val/t"].values[0] == 2.0


def test_what_cannot_be_recorded_is_refused_before_a_folder_is_made(tmp_path):
    folder = tmp_path / "run"

    class Plain(nnx.Module):
        def __init__(self):
            self.rnn = nnx.RNN(nnx.GRUCell(1, 2, rngs=nnx.Rngs(0)))

    module: Any
    for module, words in ((Plain(), "gradlab.watch"), (Single, "the class Single"), (3, "int")):
        refusal(lambda module=module: gradlab.Recorder(folder, module), "module", words)
    wrong: list[tuple[dict[str, Any], str]] = [
        ({"config": [1]}, "a dict"),
        ({"wandb": "on"}, "offline"),
        ({"wandb": {"projekt": "x"}}, "projekt"),
        ({"readout": "first"}, "every"),
    ]
    for options, words in wrong:
        refusal(lambda options=options: gradlab.Recorder(folder, Single(), **options), words)
    assert not folder.exists()
