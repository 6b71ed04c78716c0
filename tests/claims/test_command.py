"""The command line of a check."""

import pytest

from gradlab.claims.command import main
from gradlab.claims.finding import Finding
from tests.compare.recordings import record_run


@pytest.fixture
def folder(tmp_path):
    record_run(tmp_path / "sweep" / "0", T=8, rows=2)
    return str(tmp_path / "sweep")


def check_that(held):
    def check(sweep):
        runs = sweep.where({"model": "lstm"})
        return [Finding("It is so.", True, "7"), Finding("And so.", held, f"{len(runs)} run")]

    return check


def test_code_0_if_all_held_and_1_if_one_did_not(folder, capsys):
    assert main("adding", check_that(True), [folder]) == 0
    assert capsys.readouterr().out.splitlines()[2:] == [
        "        held: And so.",
        "              1 run",
    ]
    assert main("adding", check_that(False), [folder]) == 1
    assert "did not hold: And so." in capsys.readouterr().out


@pytest.mark.parametrize("name", ["copying", "adding"])
def test_code_2_and_one_message_for_runs_that_cannot_tell(folder, capsys, name):
    def check(sweep):
        sweep.where({"model": "gru"})
        raise AssertionError

    assert main(name, check, [folder]) == 2
    seen = capsys.readouterr()
    assert not seen.out
    assert seen.err.startswith(f"{name}: runs: got ")
    assert f"python -m gradlab -m experiment={name}" in seen.err


def test_a_folder_that_is_not_there(capsys, tmp_path):
    assert main("adding", check_that(True), [str(tmp_path / "nowhere")]) == 2
    assert "nowhere" in capsys.readouterr().err
