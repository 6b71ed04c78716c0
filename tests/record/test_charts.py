"""The chart for W&B, drawn by Vega from a table as W&B fills it in."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from importlib.resources import files
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import vl_convert
from PIL import Image

from tests import ROOT
from tests.record.wandb_server import WandbServer

TEXT = (files("gradlab.record") / "charts" / "vanishing_curve.json").read_text(encoding="utf-8")
SCRIPT = ROOT / "scripts" / "wandb_chart.py"
COLUMNS = ("lag", "train_step", "series", "log10")
STEPS, LAGS = (0, 50, 100, 400, 1000), np.arange(0, 60, 2)
SERIES = ("adj_h layer_0", "adj_h layer_1", "adj_c layer_0")
RUNS = (("brave-sun-1", "rgb(218,76,76)"), ("calm-sea-2", "rgb(83,135,221)"))


def value(step: int, series: int) -> np.ndarray:
    """A curve over lag whose shape, not only its scale, is another at every step."""
    return -1 - 0.2 * series - 0.01 * LAGS ** (1.9 - step / 2000)


def table(runs=((None, None),), series=SERIES, prefix: str = "", steps=STEPS) -> list[dict]:
    return [
        dict(
            zip((prefix + column for column in COLUMNS), (int(lag), step, name, log10), strict=True)
        )
        | ({"name": run, "color": colour} if run else {})
        for run, colour in runs
        for index, name in enumerate(series)
        for step in steps
        for lag, log10 in zip(LAGS, value(step, index).tolist(), strict=True)
    ]


def filled(rows: list[dict], percent: float = 100, prefix: str = "", width: int = 640) -> dict:
    """The chart as W&B makes it of the table: placeholders replaced, rows in the set ``wandb``."""
    text = TEXT.replace("${string:title}", "vanishing")
    for column in COLUMNS:
        text = text.replace("${field:" + column + "}", prefix + column)
    spec = json.loads(text)
    (data,) = (one for one in spec["data"] if one["name"] == "wandb")
    (slider,) = (one for one in spec["signals"] if one["name"] == "percent")
    data["values"], slider["value"], spec["width"] = rows, percent, width
    return spec


class Drawing:
    """What an SVG shows: texts, and by mark the paths with their points ``(n, 2)`` and colours."""

    def __init__(self, spec: dict):
        self.root = ElementTree.fromstring(vl_convert.vega_to_svg(spec))
        self.texts = [node.text or "" for node in self.root.iter() if node.tag.endswith("}text")]

    def labels(self) -> list[str]:
        return [node.text or "" for node in self._under("role-legend-label")]

    def paths(self, mark: str) -> list[tuple[str, np.ndarray]]:
        return [
            (
                node.attrib["stroke"],
                np.array(re.findall(r"(-?[\d.]+),(-?[\d.]+)", node.attrib["d"]), float),
            )
            for node in self._under(mark)
        ]

    def _under(self, word: str):
        for group in self.root.iter():
            if word in group.attrib.get("class", "").split():
                yield from (node for node in group if node.tag.endswith(("}path", "}text")))


def shape(points: np.ndarray) -> np.ndarray:
    """A curve without the scale of the picture: 0 at its first point and 1 at its last."""
    return (points - points[0]) / (points[-1] - points[0])


def assert_curves(drawn: list[tuple[str, np.ndarray]], step: int) -> None:
    """That ``drawn`` are the curves of all series, in order of their names, at ``step``."""
    order = np.argsort(SERIES)
    assert len(drawn) == len(SERIES)
    for index, (_, points) in zip(order, drawn, strict=True):
        np.testing.assert_allclose(shape(points[:, 0]), shape(LAGS), atol=2e-3)
        np.testing.assert_allclose(shape(points[:, 1]), shape(value(step, index)), atol=2e-3)


def test_it_has_wandbs_data_set_and_placeholders():
    assert set(re.findall(r"\$\{[^}]*\}", TEXT)) == {
        "${string:title}",
        *("${field:" + column + "}" for column in COLUMNS),
    }
    spec = json.loads(TEXT)
    assert spec["$schema"] == "https://vega.github.io/schema/vega/v5.json"
    assert spec["data"][0] == {"name": "wandb"}


@pytest.mark.parametrize(
    ("percent", "step"), [(0, 0), (4.9, 0), (5, 50), (20, 100), (39.9, 100), (99, 400), (100, 1000)]
)
def test_the_slider_chooses_the_latest_recorded_step(percent, step):
    drawing = Drawing(filled(table(), percent))
    assert_curves(drawing.paths("curve_line"), step)
    assert_curves(drawing.paths("reference_curve_line"), 0)
    (caption,) = (text for text in drawing.texts if text.startswith("training step"))
    assert caption.startswith(f"training step {step:,} of 0 … 1,000")
    assert ("faint" in caption) == (step > 0)


def test_each_series_has_a_colour_and_a_name_in_the_legend():
    drawing = Drawing(filled(table()))
    assert drawing.labels() == sorted(SERIES)
    assert len({colour for colour, _ in drawing.paths("curve_line")}) == len(SERIES)
    assert {"vanishing", "series", "log10 of the norm", "lag, timesteps before the end"} <= set(
        drawing.texts
    )
    assert "run" not in drawing.texts


def test_of_several_runs_each_has_its_colour_and_the_series_are_dashed():
    drawing = Drawing(filled(table(RUNS, SERIES[:2]), 20))
    assert drawing.labels() == ["brave-sun-1", "calm-sea-2", *SERIES[:2]]
    lines = drawing.paths("curve_line")
    assert [colour for colour, _ in lines] == [colour for _, colour in RUNS for _ in range(2)]
    assert {"run", "series"} <= set(drawing.texts)
    dashes = [node.attrib["stroke-dasharray"] for node in drawing._under("curve_line")]
    assert dashes[:2] == dashes[2:]
    assert dashes[0] != dashes[1]


def test_two_runs_of_one_name_are_two_lines():
    same = (("n", "rgb(1,2,3)"), ("n", "rgb(4,5,6)"))
    drawing = Drawing(filled(table(same, SERIES[:1])))
    assert drawing.labels() == ["n", "n", SERIES[0]]
    assert len(drawing.paths("curve_line")) == 2


def test_a_run_that_began_later_is_not_drawn_before():
    rows = table(RUNS[:1], SERIES[:1]) + table(RUNS[1:], SERIES[:1], steps=(400, 500))
    for percent, runs in ((20, 1), (45, 2), (100, 2)):
        assert len(Drawing(filled(rows, percent)).paths("curve_line")) == runs


def test_columns_of_other_names_and_values_that_are_not_finite():
    odd = [
        {"my lag": 1, "my train_step": 0, "my series": "x", "my log10": bad}
        for bad in (None, "NaN", "-Infinity")
    ]
    drawing = Drawing(filled(table(prefix="my ") + odd, 20, prefix="my "))
    assert_curves(drawing.paths("curve_line"), 100)
    assert drawing.labels() == sorted(SERIES)


def test_without_rows_it_is_empty():
    drawing = Drawing(filled([]))
    assert drawing.paths("curve_line") == []
    assert "lag, timesteps before the end" in drawing.texts


@pytest.mark.parametrize("width", [300, 1200])
def test_nothing_is_cut_off_when_narrow_or_wide(width):
    spec = filled(table(RUNS), 20, width=width)
    picture = Image.open(io.BytesIO(vl_convert.vega_to_png(spec, scale=1))).convert("L")
    assert picture.size == (width, 360)
    pixels = np.asarray(picture)
    frame = np.concatenate([pixels[:2].ravel(), pixels[-2:].ravel(), pixels[:, 0], pixels[:, -1]])
    assert (frame == 255).all()
    assert (pixels < 128).any()
    points = Drawing(spec).paths("curve_line")[0][1]
    assert np.ptp(points[:, 0]) > 0.75 * width


# The script that registers it.


class Registry(WandbServer):
    """Takes charts."""

    def _on_get_default_entity(self, _):
        return {"viewer": {"id": "viewer", "entity": "somebody"}}

    def _on_create_custom_chart(self, asked):
        self.chart = asked
        return {"createCustomChart": {"chart": {"id": f"{asked['entity']}/{asked['chartName']}"}}}


def script(home: Path, *words: str, **environment: str) -> subprocess.CompletedProcess:
    kept = {key: text for key, text in os.environ.items() if not key.startswith("WANDB")}
    kept |= {"HOME": str(home), "WANDB_ERROR_REPORTING": "false"}
    command = [sys.executable, str(SCRIPT), *words]
    return subprocess.run(
        command, env={**kept, **environment}, capture_output=True, text=True, cwd=home
    )


def test_the_script_registers_the_chart_and_says_what_to_set(tmp_path):
    with Registry() as server:
        known = {"WANDB_BASE_URL": server.url, "WANDB_API_KEY": "k" * 40}
        done = script(tmp_path, **known)
    assert (done.returncode, done.stdout) == (
        0,
        "record.wandb.chart=somebody/gradlab-vanishing-curve\n",
    ), done.stderr
    assert json.loads(server.chart["spec"]) == json.loads(TEXT)
    assert (server.chart["chartType"], server.chart["access"]) == ("vega2", "PRIVATE")


def test_without_an_account_it_says_so_and_print_needs_none(tmp_path):
    done = script(tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "W&B knows no account here\n  try: `wandb login`" in done.stderr
    assert "Traceback" not in done.stderr
    shown = script(tmp_path, "--print")
    assert (shown.returncode, shown.stdout, shown.stderr) == (0, TEXT, "")
