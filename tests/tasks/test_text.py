"""Character-level text: what is read, how it is cut, and what is refused."""

import os
from collections import Counter
from math import log
from pathlib import Path

import numpy as np
import pytest

from gradlab.errors import BadInput
from gradlab.tasks.text import Text
from tests.tasks import draw

VARIANTS = [{"predict": "last"}]
RTOL = 0.08  # the windows are a sample of the split's text; with predict=last of 500 characters


def guess(task, batch, split):
    counts = np.bincount(task._splits[split], minlength=task.outputs)
    return np.log(np.maximum(counts, 1e-9) / counts.sum())


@pytest.fixture
def write(tmp_path):
    def write(text, name="a.txt"):
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return str(file)

    return write


LETTERS = "".join(map(chr, range(0x4E00, 0x4E00 + 800)))
"""800 different characters: a window of them tells where it was cut."""
LOCATED = LETTERS + LETTERS[:100][::-1] + LETTERS[300:400][::-1]
"""Training, validation and test: each without a repeated character, no two sharing a window."""


def located(write, **options):
    return Text(path=write(LOCATED), vocabulary=1000, length=9, **options)


def test_windows_are_cut_from_their_own_split(write):
    task = located(write)
    for split, part in (("val", LOCATED[800:900]), ("test", LOCATED[900:])):
        batch = task.held_out(split)
        assert batch.inputs.shape[1] == 10  # 100 characters, ten a window
        begins = [part.index(task.decode(column)) for column in np.asarray(batch.inputs).T]
        assert begins == list(range(0, 100, 10))
        for begin, targets in zip(begins, np.asarray(batch.targets).T, strict=True):
            assert task.decode(targets) == part[begin + 1 : begin + 10]


def test_training_windows_start_everywhere_in_training_alone(write):
    task = located(write)
    batch = draw(task, 0, 20_000)
    begins = set()
    for inputs, targets in zip(
        np.asarray(batch.inputs).T, np.asarray(batch.targets).T, strict=True
    ):
        window = task.decode(inputs)
        begin = LETTERS.index(window)
        assert task.decode(targets) == LETTERS[begin + 1 : begin + 10]
        begins.add(begin)
    assert begins == set(range(800 - 9))


def test_predict_last_asks_only_for_the_character_after_the_window(write):
    every, last = located(write), located(write, predict="last")
    assert (every.readout, last.readout) == ("every", "last")
    all_steps, one_step = draw(every, 0, 50), draw(last, 0, 50)
    np.testing.assert_array_equal(one_step.inputs, all_steps.inputs)
    np.testing.assert_array_equal(one_step.targets, all_steps.targets[-1])
    np.testing.assert_allclose(all_steps.weights, 1 / 9, rtol=1e-6)


@pytest.mark.parametrize("at_most", [1, 2, 3, 7])
def test_held_out_windows_are_evenly_spaced(write, at_most):
    task = located(write, held_out_examples=at_most)
    part = LOCATED[900:]
    begins = [part.index(task.decode(c)) for c in np.asarray(task.held_out("test").inputs).T]
    assert len(begins) == at_most
    assert begins[0] == 0
    assert all(gap >= 10 for gap in np.diff(begins))
    assert np.ptp(np.diff(begins)) <= 1 if at_most > 1 else begins == [0]
    assert at_most == 1 or begins[-1] == 90


def test_characters_round_trip(write):
    text = "naïve café – 日本\tend\r\n" * 20
    task = Text(path=write(text), length=5)
    assert task.decode(task.data) == text[: len(task.data)]
    assert task.decode(task.encode(text)) == text
    assert set(task.alphabet) == set(text)
    assert task.symbols == task.outputs == len(set(text)) + 1


def test_rare_and_unseen_characters_share_the_last_symbol(write):
    task = Text(path=write("aaaabbbccd" * 8 + "zzzzzzzzzz" + "aaaaaaaaaa"), vocabulary=3, length=4)
    assert task.alphabet == "abc"
    assert task.symbols == 4
    assert task.encode("abcdz").tolist() == [0, 1, 2, 3, 3]
    assert task.decode([0, 3]) == "a\ufffd"
    assert (np.asarray(task.held_out("val").inputs) == 3).all()


def test_alphabet_comes_from_training_alone(write):
    task = Text(path=write("ab" * 40 + "c" * 10 + "d" * 10), length=4)
    assert task.alphabet == "ab"


def test_large_vocabularies_do_not_wrap(write):
    task = located(write)  # 801 symbols, more than a byte holds
    assert task.encode(LETTERS).tolist() == [task.alphabet.index(c) for c in LETTERS]
    assert task.data.dtype.itemsize == 2
    assert Text(path=write("ab" * 50), length=4).data.dtype.itemsize == 1


def test_baseline_is_the_entropy_of_the_splits_own_characters(write):
    text = "aaab" * 20 + "abcccccccc" + "aaaaabbbbb"
    task = Text(path=write(text), length=4)

    def entropy(part):
        return -sum(n / len(part) * log(n / len(part)) for n in Counter(part).values())

    for split, part in (("train", text[:80]), ("val", text[80:90]), ("test", text[90:])):
        assert task.baseline(split).loss == pytest.approx(entropy(part), rel=1e-9)
        share = Counter(part).most_common(1)[0][1] / len(part)
        assert task.baseline(split).accuracy == pytest.approx(share)


def test_folder_is_read_in_order_and_only_its_text(write, tmp_path):
    parts = {
        "b.txt": "2" * 10,
        "a.MD": "1" * 10,
        "sub/a.py": "4" * 10,
        "c.py": "3" * 10,
        "tests/t.txt": "5" * 10,
        "d.bin": "x" * 10,
        ".git/a.txt": "y" * 10,
        "sub/__pycache__/a.py": "z" * 10,
    }
    for name, text in parts.items():
        write(text, name)
    task = Text(path=str(tmp_path), length=2)
    assert task.decode(task.data) == ("1" * 10 + "2" * 10 + "3" * 10 + "4" * 10 + "5" * 10)[:40]
    assert Text(path=str(tmp_path), length=1, max_characters=25).data.shape == (21,)


def test_a_file_of_any_ending_is_read_and_the_home_folder_known(write, tmp_path, monkeypatch):
    write("abcd" * 10, "poem.tex")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert Text(path="~/poem.tex", length=2).alphabet == "abcd"


@pytest.mark.parametrize("limit", [10, 11, 40, 41])
def test_at_most_max_characters_are_read(write, limit):
    text = "é" * 20 + "日" * 20  # more bytes than characters, so a cut may fall inside one
    task = Text(path=write("\ufeff" + text), length=1, max_characters=limit, val_fraction=0.2,
                test_fraction=0.2)  # fmt: skip
    cut = text[:limit]
    assert task.decode(task.data) == cut[: len(task.data)]
    assert len(task.data) == len(cut) - 2 * round(0.2 * len(cut))


def test_the_standard_library_without_tests_and_machine_files(write, tmp_path, monkeypatch):
    write("a" * 20, "abc.py")
    write("b" * 20, "os.py")
    write("c" * 20, "json/tool.py")
    for name in ("test/t.py", "site-packages/p.py", "json/tests/t.py", "_sysconfigdata_x.py"):
        write("x" * 20, name)
    write("x" * 20, "LICENSE.txt")
    monkeypatch.setattr(os, "__file__", str(tmp_path / "os.py"))
    task = Text(length=2, val_fraction=0.05, test_fraction=0.05)
    assert task.decode(task.data) == "a" * 20 + "b" * 20 + "c" * 14


def test_default_text_is_this_pythons_source():
    task = Text()
    first = sorted(Path(os.__file__).parent.glob("*.py"))[0].read_text("utf-8")[:300]
    assert task.decode(task.data[:300]).replace("\ufffd", "?")[:20] == first[:20]
    assert task.data.shape == (800_000,)
    assert task.symbols == 97
    assert set("etaoin (=:\n") < set(task.alphabet)


def refused(key, **options):
    with pytest.raises(BadInput) as refusal:
        Text(**options)
    assert refusal.value.key == f"task.{key}"
    return str(refusal.value)


@pytest.mark.parametrize("path", ["/no/such/file.txt", "", "  ", "missing", 7])
def test_missing_path(path):
    assert "that exists" in refused("path", path=path)


def test_empty_file(write):
    assert "not empty" in refused("path", path=write(""))


def test_folder_without_text(write, tmp_path):
    write("x" * 100, "a.bin")
    said = refused("path", path=str(tmp_path))
    assert ".md, .py, .txt" in said
    assert "no such file" in said
    write("", "a.txt")
    assert "are empty" in refused("path", path=str(tmp_path))


def test_file_that_is_not_utf8_is_named_with_the_byte(write, tmp_path):
    write("fine " * 30, "a.txt")
    bad = write("é".encode() * 3 + "é".encode("latin1") + b" et la suite", "b.txt")
    said = refused("path", path=str(tmp_path))
    assert f"{bad} is not, at byte 6 (0xe9)" in said
    assert "iconv" in said


def test_file_that_ends_inside_a_character(write):
    assert "byte 100 (0xc3)" in refused("path", path=write(b"a" * 100 + b"\xc3"))


def test_file_that_cannot_be_opened(tmp_path):
    (tmp_path / "a.txt").symlink_to(tmp_path / "gone.txt")
    assert "a.txt cannot" in refused("path", path=str(tmp_path))


def test_text_too_short_for_any_window(write):
    said = refused("path", path=write("abcdef"), length=1)
    assert "of the 6 read" in said


def test_text_too_short_for_this_window_names_the_longest(write):
    path = write("abcdefghij" * 20)  # 20 characters in validation and in test
    assert "at most 19 with this text: of its 200" in refused("length", path=path, length=20)
    longest = Text(path=path, length=19)
    assert longest.held_out("val").inputs.shape == (19, 1)
    assert longest.decode(longest.held_out("test").inputs[:, 0]) == "abcdefghijabcdefghi"


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"length": 0}, "length"),
        ({"predict": "first"}, "predict"),
        ({"max_characters": 0}, "max_characters"),
        ({"max_characters": 1.5}, "max_characters"),
        ({"vocabulary": 0}, "vocabulary"),
        ({"val_fraction": 0.0}, "val_fraction"),
        ({"test_fraction": 1.5}, "test_fraction"),
        ({"val_fraction": 0.7, "test_fraction": 0.3}, "test_fraction"),
        ({"held_out_examples": 0}, "held_out_examples"),
    ],
)
def test_refuses(options, key):
    refused(key, **options)
