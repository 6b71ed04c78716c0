"""Records that an older version left are opened, compared and resumed by this one.

README.md beside this file says how they were made.
"""

from __future__ import annotations

import json
import math
import tarfile
from pathlib import Path

import numpy as np
import pytest

from gradlab import open_run
from gradlab.compare.__main__ import main as compare
from gradlab.compare.recorded import recorded
from gradlab.compare.runs import runs_in
from gradlab.compare.table import write_csv

HERE = Path(__file__).parent
RUNS = ["finished", "full", "interrupted", "whole", "diverged", "sweep/0", "sweep/1", "sweep/2"]


def read(folder: Path) -> dict:
    """What :func:`open_run` makes of a run: everything but the inner rows of the curves."""
    run = open_run(folder)
    scalars = {str(name): array.values.tolist() for name, array in run.scalars.items()}
    curves = {}
    for name, array in run.curves.items():
        last = array.values[-1].ravel()
        curves[str(name)] = [list(array.dims), last[:3].tolist(), last[-3:].tolist()]
    found = {
        "status": run.status,
        "reason": run.info["reason"],
        "damage": list(run.damage),
        "summary": run.summary,
        "verdict": run.info["verdict"],
        "steps": run.scalars["step"].values.tolist(),
        "scalars": scalars,
        "curves": curves,
    }
    return json.loads(json.dumps(found))


def table(sweep: Path, file: Path) -> str:
    write_csv(runs_in(sweep), file)
    return file.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def expected():
    return json.loads((HERE / "expected.json").read_text(encoding="utf-8"))


@pytest.fixture
def records(tmp_path):
    """``records("sweep")``: the folder of a record, as it was left."""

    def unpack(name: str) -> Path:
        with tarfile.open(HERE / f"{name}.tar.xz") as archive:
            archive.extractall(tmp_path, filter="data")
        return tmp_path / name

    return unpack


@pytest.mark.parametrize("name", RUNS)
def test_a_run_reads_as_it_read_then(records, expected, name):
    folder, _, job = name.partition("/")
    np.testing.assert_equal(read(records(folder) / job), expected["runs"][name])


def test_a_sweep_that_was_killed_has_the_table_and_the_page_that_it_had(
    records, expected, tmp_path, capsys
):
    sweep = records("sweep")
    assert table(sweep, tmp_path / "table.csv") == expected["table"]
    assert compare([str(sweep)]) == 0
    page = (sweep / "compare.html").read_text(encoding="utf-8")
    assert page.count('"status": "finished"') == 2
    assert page.count('"status": "killed"') == 1


def test_runs_of_different_shapes_are_compared(records, tmp_path):
    names = ["finished", "full", "interrupted", "diverged"]
    out = tmp_path / "page.html"
    assert compare([*(str(records(name)) for name in names), "--out", str(out)]) == 0
    page = out.read_text(encoding="utf-8")
    statuses = [page.count(f'"status": "{name}"') for name in ("finished", *names[2:])]
    assert statuses == [2, 1, 1]


def test_an_interrupted_run_ends_as_the_run_that_was_never_stopped(command, records):
    folder, whole = records("interrupted"), records("whole")
    done = command(f"trainer.resume={folder}")
    assert done.code == 0, done.err
    run = open_run(folder)
    assert (run.status, run.damage, len(run.info["resumed"])) == ("finished", (), 1)
    mine, theirs = everything(folder), everything(whole)
    known = {name: mine[name] for name in theirs}
    assert_same(known, theirs)
    # What that version did not measure is measured from here on.
    new = run.curves["decades_lost"].values[:, 0]
    again = run.curves["step"].values > 18
    np.testing.assert_array_equal(np.isfinite(new), again)
    np.testing.assert_array_equal(
        run.curves["adj_h_over_lag_log10"].values[again],
        run.curves["adj_h_log10"].values[again][..., ::-1],
    )
    (compared,) = recorded(runs_in(folder))
    curve = compared.curve("adj_h_log10")
    np.testing.assert_array_equal(curve.steps, run.curves["step"])
    np.testing.assert_array_equal(curve.values, run.curves["adj_h_log10"].values[..., ::-1])


def test_a_killed_sweep_goes_on_to_its_end(command, records):
    sweep = records("sweep")
    before = {name: (sweep / name / "run.json").read_bytes() for name in "01"}
    done = command(f"trainer.resume={sweep}")
    assert done.code == 0, done.err
    assert "sweep of 4 runs: 4 finished" in done.out
    assert "initial_state" not in done.out  # two settings of two seeds, not four of one
    assert before == {name: (sweep / name / "run.json").read_bytes() for name in "01"}
    runs = [open_run(sweep / str(number)) for number in range(4)]
    assert [run.status for run in runs] == ["finished"] * 4
    assert [len(run.info["resumed"]) for run in runs] == [0, 0, 1, 0]
    for run in runs:
        assert run.scalars["step"].values.tolist() == [0, 4, 8, 11]
        assert math.isfinite(run.summary["test/loss"])


def everything(folder: Path) -> dict[str, np.ndarray]:
    """All that a run recorded, and the arrays of its last checkpoint."""
    import orbax.checkpoint as ocp

    run = open_run(folder)
    arrays = {str(name): one.values for name, one in (run.scalars | run.curves).variables.items()}
    last = max((folder / "checkpoints").iterdir(), key=lambda path: int(path.name))
    with ocp.StandardCheckpointer() as checkpointer:
        kept = checkpointer.restore(last / "arrays")
    for group, named in kept.items():
        leaves = named.items() if isinstance(named, dict) else [("", named)]
        arrays |= {f"{group}/{name}": np.asarray(leaf) for name, leaf in leaves}
    timed = {"steps_per_second", "probe_overhead"}
    return arrays | {key: value for key, value in run.summary.items() if key not in timed}


def assert_same(mine: dict, theirs: dict) -> None:
    """To the rounding of thirty steps in float32: a step is calculated otherwise by now."""
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        if np.asarray(value).dtype.kind != "f":
            np.testing.assert_array_equal(mine[name], value, err_msg=name)
        else:
            np.testing.assert_allclose(mine[name], value, rtol=1e-3, atol=1e-5, err_msg=name)
