"""The documentation of the probes says what the probes say."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import sys

import pytest

from tests import ROOT


def load_script():
    spec = importlib.util.spec_from_file_location("probe_docs", ROOT / "scripts" / "probe_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["probe_docs"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


script = load_script()
ENTRIES = script.find_probes()
PAGE = ROOT / "docs" / "probes.md"

every_probe = pytest.mark.parametrize("entry", ENTRIES, ids=[entry.name for entry in ENTRIES])


def test_probes_were_found():
    assert len(ENTRIES) >= 7
    assert {"adjoint", "grad_norm"} <= {entry.name for entry in ENTRIES}


@every_probe
def test_it_says_what_it_measures_and_how_to_read_it(entry):
    for heading in script.PARAGRAPHS:
        paragraphs = entry.sections.get(heading)
        assert paragraphs, f"{entry.name}: the docstring has no paragraph '{heading}:'"
        assert len(paragraphs[0].split()) > 1
    assert len(entry.sections[""]) == 1, "a paragraph before 'Definition:' has no heading"


@every_probe
def test_every_option_is_explained(entry):
    options = {field.name for field in dataclasses.fields(entry.kind)}
    assert entry.options.keys() <= options
    assert entry.meanings.keys() == options


@every_probe
def test_its_figure_is_one_that_runs_have(entry):
    from gradlab.record.figures import FIGURES

    assert script.PICTURES.get(entry.name, "loss") in FIGURES


def test_the_page_is_what_the_script_writes():
    text = PAGE.read_text(encoding="utf-8")
    written = script.page(ENTRIES, script.kept_figures(text))
    assert text == written, "stale: python scripts/probe_docs.py --text"


def test_every_figure_is_there():
    text = PAGE.read_text(encoding="utf-8")
    linked = {PAGE.parent / path for path in re.findall(r"\]\((figures/[^)]*)\)", text)}
    assert len(linked) >= 7
    for path in linked:
        assert path.read_bytes().startswith(b"\x89PNG"), path
    assert set((PAGE.parent / script.FIGURES).glob("*")) == linked


def test_figures_survive_a_new_text():
    shown = {"adjoint": "![a](figures/probes/adjoint.png)\n\n*Made by `python -m gradlab`.*"}
    text = script.page(ENTRIES, shown)
    assert script.kept_figures(text) == shown
    assert script.kept_figures(script.page(ENTRIES, {})) == {}


def test_a_bar_does_not_end_a_cell():
    text = script.page(ENTRIES, {})
    rows = [line for line in text.splitlines() if line.startswith("| `grad_norm`")]
    assert rows == [
        r"| `grad_norm` | `parameter` | loss/parameter | gradient norm \|∂L/∂θ\| |",
    ]
