"""The documentation says what the code says: the page of the probes, and every reference."""

from __future__ import annotations

import ast
import contextlib
import dataclasses
import importlib.util
import inspect
import operator
import re
import sys
from pathlib import Path

import pytest

import gradlab
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


# References in the docstrings of the package.

ROLES = re.compile(r":(?:attr|class|data|exc|func|meth|mod):`~?([\w.]+)`")


def docstrings(tree, owner=""):
    """``(class or "", text)`` of every string that stands alone."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield owner, str(node.value.value)
        inside = f"{owner}.{node.name}".lstrip(".") if isinstance(node, ast.ClassDef) else owner
        yield from docstrings(node, inside)


def has(owner, name):
    """Whether a class has what is only given to its objects: declared, or set in a method."""
    kinds = owner.__mro__ if isinstance(owner, type) else ()
    return any(
        name in getattr(kind, "__annotations__", {})
        or (kind is not object and re.search(rf"\bself\.{name}\b.* = ", inspect.getsource(kind)))
        for kind in kinds
        if kind.__module__.startswith("gradlab")
    )


def leads_somewhere(owner, path):
    """Whether following ``path`` from a module or class ends at something."""
    first, _, rest = path.partition(".")
    if hasattr(owner, "__path__"):  # a package, whose modules need not be loaded yet
        with contextlib.suppress(ModuleNotFoundError):
            importlib.import_module(f"{owner.__name__}.{first}")
    if not hasattr(owner, first):
        return not rest and has(owner, first)
    return not rest or leads_somewhere(getattr(owner, first), rest)


def test_every_reference_in_a_docstring_leads_somewhere():
    package = Path(gradlab.__file__).parent
    checked, lost = 0, []
    for path in sorted(package.rglob("*.py")):
        parts = path.relative_to(package.parent).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        module = importlib.import_module(name)
        for owner, text in docstrings(ast.parse(path.read_text(encoding="utf-8"))):
            places = [module]
            if owner:
                places.append(operator.attrgetter(owner)(module))
            for reference in ROLES.findall(text):
                checked += 1
                absolute = reference.startswith("gradlab.")
                found = (
                    leads_somewhere(gradlab, reference.removeprefix("gradlab."))
                    if absolute
                    else any(leads_somewhere(place, reference) for place in places)
                )
                if not found:
                    lost.append(f"{name}: {reference}")
    assert checked > 150
    assert not lost, "\n".join(lost)
