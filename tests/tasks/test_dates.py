"""Dates against Python's own parser, and the layout that makes them a task of memory."""

import datetime
import re
from collections import Counter
from math import log

import numpy as np
import pytest

from gradlab.errors import BadInput
from gradlab.tasks.dates import ALPHABET, ANSWERS, PAD, WRITE, Dates
from tests.tasks import draw

VARIANTS = [{"length": 60, "first_year": 2023, "last_year": 2024, "split_seed": 3}]
RTOL = 1e-5

FORMATS = ("%d %B %Y", "%B %d, %Y", "%a %d %b %Y", "%d.%m.%Y", "%Y/%m/%d", "%A, %B %d, %Y")


def guess(task, batch, split):
    """The logarithm of how often each character stands at each place; nothing while reading."""
    written = np.asarray(batch.targets)[-10:]
    counts = np.stack([np.bincount(step, minlength=11) for step in written])
    logits = np.zeros((task.length, 1, 11))
    logits[-10:, 0] = np.log(np.maximum(counts, 1e-300) / written.shape[1])
    return logits


def parse(source):
    """The day that ``source`` names and the place of its form in FORMATS; exactly one fits."""
    fits = []
    for place, form in enumerate(FORMATS):
        try:
            day = datetime.datetime.strptime(source, form).date()
        except ValueError:
            continue
        # strptime does not compare the weekday with the day; strftime pads with zeros
        written = re.sub(r"\b0", "", day.strftime(form))
        if written == source:
            fits.append((day, place))
    (fit,) = fits
    return fit


def read(task, batch):
    """Each example's source and answer as text."""
    answers = np.asarray(batch.targets)[-10:].T
    return [
        (task.decode(column), "".join(ANSWERS[c] for c in answer))
        for column, answer in zip(np.asarray(batch.inputs).T, answers, strict=True)
    ]


@pytest.fixture(scope="module")
def year():
    return Dates(first_year=2024, last_year=2024, held_out_examples=10_000)


def parts(task):
    """Every written date of each split: the source and the answer."""
    train = zip(np.asarray(task.data.sources), np.asarray(task.data.answers), strict=True)
    return {
        "train": [(task.decode(s), "".join(ANSWERS[c] for c in a)) for s, a in train],
        "val": read(task, task.held_out("val")),
        "test": read(task, task.held_out("test")),
    }


def test_the_forms_of_one_day(year):
    written = [(s, a) for part in parts(year).values() for s, a in part if a == "2024-03-05"]
    forms = ["5 March", "March 5,", "Tue 5 Mar", "5.3.2024", "2024/3/5", "Tuesday, March 5,"]
    assert {s.removesuffix(" 2024") for s, _ in written} == set(forms)
    assert len(written) == 6


def test_every_answer_is_what_the_source_says_by_strptime():
    task = Dates()
    batch = draw(task, 0, 1500)
    places = Counter()
    for source, answer in read(task, batch):
        day, place = parse(source)
        assert day.isoformat() == answer
        assert 1950 <= day.year <= 2049
        places[place] += 1
    np.testing.assert_allclose([places[p] / 1500 for p in range(6)], 1 / 6, atol=0.05)


def test_a_leap_year_is_divided_by_days_each_in_all_its_forms(year):
    days = {}
    for split, part in parts(year).items():
        forms = Counter(answer for _, answer in part)
        assert set(forms.values()) == {6}
        assert {(parse(source)[0].isoformat(), answer) for source, answer in part} == {
            (answer, answer) for answer in forms
        }
        assert len({source for source, _ in part}) == len(part)
        days[split] = set(forms)
    assert {split: len(found) for split, found in days.items()} == {
        "train": 366 - 37 - 37,
        "val": 37,
        "test": 37,
    }
    new_year = datetime.date(2024, 1, 1)
    every = {(new_year + datetime.timedelta(n)).isoformat() for n in range(366)}
    assert days["train"] | days["val"] | days["test"] == every


def test_training_draws_all_its_written_dates_and_no_other(year):
    drawn = set(read(year, draw(year, 1, 20_000)))
    assert drawn == set(parts(year)["train"])


@pytest.mark.parametrize("length", [39, 40, 75])
def test_layout(length):
    """Pads, the source up to step 28, pads again from there on, and ten steps of writing."""
    task = Dates(length=length, first_year=2024, last_year=2024)
    batch = draw(task, 0, 500)
    inputs, weights = np.asarray(batch.inputs), np.asarray(batch.weights)
    reading, waiting, writing = np.split(inputs, [29, length - 10])
    assert (writing == WRITE).all()
    assert (waiting == PAD).all()
    assert (reading[-1] < PAD).all()
    assert (reading[0] < PAD).any()  # the longest form needs every one of the 29 steps
    assert (np.diff((reading < PAD).astype(int), axis=0) >= 0).all()  # padded in front alone
    assert not weights[:-10].any()
    np.testing.assert_array_equal(weights[-10:], np.float32(0.1))
    np.testing.assert_array_equal(np.asarray(batch.targets)[[-6, -3]], ANSWERS.index("-"))


def test_every_symbol_and_class_is_used():
    task = Dates(first_year=2024, last_year=2029)
    batch = draw(task, 0, 5000)
    assert set(np.unique(batch.inputs)) == set(range(len(ALPHABET) + 2))
    assert set(np.unique(batch.targets)) == set(range(task.outputs))
    assert task.symbols == len(ALPHABET) + 2


def test_held_out_holds_at_most_so_many_and_another_seed_divides_otherwise(year):
    few = Dates(first_year=2024, last_year=2024, held_out_examples=7)
    assert few.held_out("test").inputs.shape == (39, 7)
    assert set(read(few, few.held_out("test"))) < set(parts(year)["test"])
    other = Dates(first_year=2024, last_year=2024, held_out_examples=10_000, split_seed=1)
    assert set(parts(other)["test"]) != set(parts(year)["test"])


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_baseline_is_the_mean_entropy_of_the_ten_places(year, split):
    places = list(zip(*(answer for _, answer in parts(year)[split]), strict=True))
    counts = [Counter(place) for place in places]
    n = len(places[0])
    entropy = [-sum(c / n * log(c / n) for c in count.values()) for count in counts]
    assert entropy[:5] == [0] * 5  # one year alone: 2024- is known
    assert year.baseline(split).loss == pytest.approx(sum(entropy) / 10, rel=1e-9)
    right = sum(max(count.values()) / n for count in counts) / 10
    assert year.baseline(split).accuracy == pytest.approx(right)


@pytest.mark.parametrize(
    ("options", "key"),
    [
        ({"length": 38}, "length"),
        ({"length": 50.5}, "length"),
        ({"first_year": 1582}, "first_year"),
        ({"first_year": 10_000, "last_year": 10_000}, "first_year"),
        ({"last_year": 1949}, "last_year"),
        ({"last_year": 2350}, "last_year"),
        ({"first_year": 9900, "last_year": 10_000}, "last_year"),
        ({"val_fraction": 0.0}, "val_fraction"),
        ({"val_fraction": 0.7, "test_fraction": 0.3}, "test_fraction"),
        ({"first_year": 2023, "last_year": 2023, "val_fraction": 0.001}, "val_fraction"),
        ({"first_year": 2023, "last_year": 2023, "test_fraction": 0.001}, "test_fraction"),
        ({"split_seed": -1}, "split_seed"),
        ({"held_out_examples": 0}, "held_out_examples"),
    ],
)
def test_refuses(options, key):
    with pytest.raises(BadInput) as refusal:
        Dates(**options)
    assert refusal.value.key == f"task.{key}"
    assert refusal.value.given == options[key]


def test_a_length_too_short_is_told_the_least():
    with pytest.raises(BadInput, match="at least 39: 29 steps read the longest form"):
        Dates(length=20)
