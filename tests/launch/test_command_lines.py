"""Command lines by a seed (:mod:`tests.torture.command_lines`): one good message for each."""

import json

import pytest

from tests.torture import command_lines

KINDS = ("number", "argument", "typo", "target", "regularizer", "resume")
"""Those of which most lines are refused."""


@pytest.mark.parametrize("line", list(command_lines.lines(24, 16, KINDS)), ids=str)
def test_a_line_is_refused_with_one_message_or_could_be_run(command, tmp_path, monkeypatch, line):
    monkeypatch.setattr("gradlab.__main__.run_or_collect", lambda job: 0.0)
    command_lines.furnish(tmp_path)
    done = command(*command_lines.whole(line))
    assert command_lines.wrong_with(*done, tmp_path) == ""


@pytest.mark.slow
def test_no_line_of_a_hundred_ends_badly():
    assert command_lines.run(100, seed=1) == []


@pytest.mark.parametrize(
    ("code", "out", "err", "wrong"),
    [
        (1, "", "Traceback (most recent call last):", "a traceback"),
        (1, "", "gradlab: no", "exit code 1"),
        (2, "", "", "no message"),
        (2, "", "gradlab: seed: got -1\n  allowed: more", ""),
        (2, "", "gradlab: a: got 1\ngradlab: b: got 2", "several messages"),
        (2, "", "gradlab: something went wrong", "a message that names no key"),
        (2, "", "gradlab: the configuration cannot be composed\n  no", "a dump, and no message"),
        (0, "", "", ""),
    ],
)
def test_what_is_wrong_is_seen(tmp_path, code, out, err, wrong):
    assert command_lines.wrong_with(code, out, err, tmp_path) == wrong


@pytest.mark.parametrize(
    ("config", "summary", "wrong"),
    [
        ({"optimizer": {"rule": {"b1": 1.5}}}, {"train/loss": 1.0}, "optimizer.rule.b1=1.5"),
        ({"seed": True}, {"train/loss": 1.0}, "seed=True"),
        ({"trainer": {"foo": float("inf")}}, {"train/loss": 1.0}, "trainer.foo=inf"),
        ({"seed": 3}, {"train/loss": None}, "a loss of None"),
        ({"seed": 3}, {"train/loss": 0.5}, ""),
    ],
)
def test_nonsense_in_a_record_is_seen(tmp_path, config, summary, wrong):
    info = {"status": "finished", "config": config, "summary": summary}
    (tmp_path / "run.json").write_text(json.dumps(info))
    found = command_lines.wrong_with(0, "", "", tmp_path)
    assert found.endswith(wrong)
    assert bool(found) == bool(wrong)
