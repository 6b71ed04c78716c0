"""Every code block of the documentation runs.

Blocks of Python run in order, those of one page in one namespace, in a folder with recorded runs
under the names that the pages use. Of a shell's blocks each command of gradlab's runs with small
sizes. A block that cannot run says so in the line above it: ``<!-- not run: reason -->``.
"""

from __future__ import annotations

import re
import shlex
from typing import NamedTuple

import jax
import pytest

from gradlab.compare.__main__ import main as compare
from gradlab.record import figures
from tests import ROOT
from tests.compare.recordings import record_run, record_sweep
from tests.small import QUIET, TINY

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
SLOW = ("README.md", "your_own_loop.md")
"""They look closely, which takes long to compile."""
_BLOCK = re.compile(r"^(<!--[^\n]*-->\n)?```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_NOT_RUN = re.compile(r"<!-- not run: \w.* -->\n")


class Block(NamedTuple):
    """One block of a page: where it is, its language, its text."""

    page: str
    line: int
    language: str
    text: str


def blocks(language):
    """Those of a language that run, of all pages."""
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in _BLOCK.finditer(text):
            if match[2] == language and not (match[1] and _NOT_RUN.fullmatch(match[1])):
                line = text.count("\n", 0, match.start(3)) + 1
                found.append(Block(page.name, line, language, match[3]))
    return found


def python_pages():
    names = list(dict.fromkeys(block.page for block in blocks("python")))
    return [pytest.param(n, marks=[pytest.mark.slow] if n in SLOW else []) for n in names]


def test_blocks_are_of_languages_that_run():
    languages = set()
    for page in PAGES:
        languages |= {match[2] for match in _BLOCK.finditer(page.read_text(encoding="utf-8"))}
    assert languages <= {"python", "sh"}
    assert len(blocks("python")) >= 10


@pytest.mark.parametrize("page", python_pages())
def test_the_python_of_a_page_runs(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record_run(tmp_path / "outputs" / "2026-11-23" / "12-00-00-000000_default")
    record_sweep(tmp_path / "multirun" / "DATE" / "TIME", models=("rnn",), seeds=(0,))
    monkeypatch.setattr(figures, "FIGURES", {"loss": figures.FIGURES["loss"]})
    space = {"__name__": page}
    for block in blocks("python"):
        if block.page == page:
            # With its own lines, so that a traceback names them.
            code = "\n" * (block.line - 1) + block.text
            with jax.numpy_dtype_promotion("standard"):  # as everybody has it but these tests
                exec(compile(code, page, "exec"), space)  # noqa: S102


def commands():
    """Every command of gradlab's own in a block that runs, without its comment."""
    found = []
    for block in blocks("sh"):
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:2] == ["python", "-m"] and words[2].startswith("gradlab"):
                found.append((block.page, words[2:]))
    return found


def plain_commands():
    """Those that train one run: neither sweeps nor placeholders."""
    kept = {}
    for page, (module, *words) in commands():
        text = " ".join(words)
        if module == "gradlab" and not re.search("-m |--help|…|trainer.resume=", text):
            kept.setdefault(tuple(words), page)
    return [pytest.param(words, id=f"{page} {' '.join(words)}") for words, page in kept.items()]


@pytest.mark.slow
@pytest.mark.parametrize("words", plain_commands())
def test_a_documented_run_runs(words, command, tmp_path):
    (tmp_path / "my_book.txt").write_text("It was a dark and stormy night. " * 400)
    small = [one for one in TINY if not one.startswith("task.")]
    done = command(*words, *small, *QUIET, "record.wandb.mode=disabled", "probe.examples=2")
    assert done.code == 0, done.err


@pytest.mark.slow
def test_the_documented_comparisons_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in ("multirun/DATE/TIME", "SWEEP"):
        record_sweep(tmp_path / place, models=("rnn",), seeds=(0,))
    record_run(tmp_path / "outputs" / "run")
    said = [words[1:] for _, words in commands() if words[0] == "gradlab.compare"]
    assert len(said) >= 4
    for words in dict.fromkeys(map(tuple, said)):
        if not {"--serve", "--wandb", "RUN…"} & {*words}:  # for ever; an account; a placeholder
            assert compare(list(words)) == 0, words
