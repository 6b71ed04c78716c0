"""The benchmark's own house: that all compute the same, and what it says of those that do not."""

import importlib
import json
import sys

import jax
import pytest

from tests import ROOT

sys.path.append(str(ROOT / "scripts"))

import benchmark
from benchmarks import contestants, flax_loop, problem, reference, steps
from benchmarks.process import Desk

TINY = problem.Size(5, 3, 2, 4)


MEASURED = pytest.param("rnn", "gradlab-standard", marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("cell", "name"), [("gru", "gradlab"), ("lstm", "flax-taps"), ("rnn", "flax"), MEASURED]
)
def test_contestants_compute_what_numpy_computes(cell, name):
    """In float64, by the equations; the gradient is that of the step that is timed."""
    desk = Desk()
    with jax.numpy_dtype_promotion("standard"):  # optax mixes types
        first = desk.build(name, contestants.CONTESTANTS[name].module, cell, TINY)
    found = problem.errors(first, reference.first(cell, TINY))
    assert 0 < found["gradient"] < 1e-5
    assert found["loss"] < 1e-6
    assert desk.time(name, 2, 1)["steps"] > 0
    assert desk.temporaries(name) > 0


def test_the_plain_loop_says_when_its_first_step_is_done_and_how_long_the_others_took(capsys):
    with jax.numpy_dtype_promotion("standard"):
        flax_loop.main(3, 4, 2, 3)
    first, last = capsys.readouterr().out.splitlines()
    assert first.startswith("step 0/3 loss 0.")
    assert last.startswith("step 2/3 loss ")
    assert float(last.split("train_seconds ")[1]) > 0


def test_what_computes_something_else_is_not_timed():
    due = reference.first("rnn", TINY)
    gradient = {**due.gradient, "recurrent": due.gradient["recurrent"].T}
    wrong = steps.refusal(problem.errors(due._replace(gradient=gradient), due))
    assert "gradient off by" in wrong["refused"]
    assert steps.refusal({"loss": float("nan"), "gradient": 0.0})
    assert not steps.refusal({"loss": 0.0, "gradient": 0.0})
    row = {"cell": "rnn", "size": list(TINY), "contestant": "torch", **wrong}
    shown = steps.show({"rows": [row], "skipped": {}, "tolerance": steps.TOLERANCE})
    assert f"- PyTorch, rnn, {TINY}: not timed: gradient off by" in shown


def test_faster_than_flax_is_said_only_where_it_is_faster_than_both():
    took = {"flax": 2.0, "flax-split": 1.0, "gradlab-standard-split": 0.9}
    assert steps.verdict(took, "gradlab-standard-split") == "faster than Flax"
    took["gradlab-standard-split"] = 1.5
    assert steps.verdict(took, "gradlab-standard-split") == ""
    del took["flax-split"]
    assert steps.verdict(took, "gradlab-standard-split") == ""


def test_a_missing_peer_is_named_and_what_is_kept_reads_back(tmp_path, monkeypatch, capsys):
    """No process is started when nobody takes part."""
    find = importlib.util.find_spec
    there = lambda name: None if name in ("torch", "keras") else find(name)  # noqa: E731
    monkeypatch.setattr(importlib.util, "find_spec", there)
    words = ["--sizes", "3,2,2,2", "--cells", "rnn", "--contestants", "torch", "keras"]
    out = tmp_path / "found.json"
    monkeypatch.setattr(sys, "argv", ["benchmark.py", *words, "--out", str(out)])
    benchmark.main()
    shown = capsys.readouterr().out
    assert "- PyTorch: torch is not installed (pip install -e '.[bench]')" in shown
    assert "- Keras on JAX: keras is not installed" in shown
    assert "cores, Python" in shown
    kept = json.loads(out.read_text())
    assert kept["skipped"].keys() == {"torch", "keras"}
    assert kept["versions"]["jax"]
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "--show", str(out), str(out)])
    benchmark.main()
    assert capsys.readouterr().out.strip() == shown.strip()
