"""Measured parts of READMEs, and figures."""

import pytest

from gradlab.claims import page
from gradlab.claims.finding import Finding
from gradlab.claims.sweep import curve, read
from gradlab.errors import BadInput
from gradlab.record.figures.common import new_figure
from tests.compare.recordings import record_sweep


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    folder = record_sweep(
        tmp_path_factory.mktemp("sweep"), models=("rnn",), seeds=(0, 1), T=8, rows=1, close=False
    )
    return read("adding", folder)


def test_only_what_is_between_the_marks_changes(tmp_path):
    readme = tmp_path / "README.md"
    before, after = "# A\n\n\\1 kept\n\n", "\n\n## What differs\n"
    readme.write_text(f"{before}{page.BEGIN}\nold\n{page.END}{after}", encoding="utf-8")
    for _ in range(2):
        page.rewrite(readme, [r"| \1 |", "new"])
        text = readme.read_text(encoding="utf-8")
        assert text == f"{before}{page.BEGIN}\n\n| \\1 |\nnew\n\n{page.END}{after}"


@pytest.mark.parametrize(
    "text", ["", page.BEGIN, f"{page.END}{page.BEGIN}", 2 * (page.BEGIN + page.END)]
)
def test_a_file_without_marks_is_left_alone(tmp_path, text):
    readme = tmp_path / "README.md"
    readme.write_text(text, encoding="utf-8")
    with pytest.raises(BadInput, match="measured: begin"):
        page.rewrite(readme, ["new"])
    assert readme.read_text(encoding="utf-8") == text


def test_a_table_has_a_row_a_finding_and_no_cell_breaks_it():
    rows = page.table([Finding("It | is\nso.", True, "7 | 8"), Finding("Not so.", False, "9")])
    assert rows[2:] == [r"| It \| is so. | held | 7 \| 8 |", "| Not so. | did not hold | 9 |"]


def test_what_made_it_is_read_from_the_runs(sweep):
    words = page.made_by(sweep, "python -m gradlab -m experiment=adding", 2.345)
    info = sweep.runs[0].entry.info
    assert words.startswith("*Made by `python -m gradlab -m experiment=adding` on ")
    assert info["started"][:10] in words
    assert "2 runs, 2 seeds, 2.3 minutes" in words
    assert info["versions"]["python"] in words


def test_a_figure_is_a_small_png_and_the_same_each_time(sweep, tmp_path):
    def draw(sweep):
        figure = new_figure(1)
        axes = figure.subplots()
        for run in sweep.runs:
            axes.plot(*curve(run, "adj_h_log10"))
        return figure

    page.save(draw, sweep, tmp_path / "result.png")
    first = (tmp_path / "result.png").read_bytes()
    page.save(draw, sweep, tmp_path / "result.png")
    assert first.startswith(b"\x89PNG")
    assert len(first) < 150_000
    assert first == (tmp_path / "result.png").read_bytes()
