"""Write docs/probes.md from the probes themselves, with figures of real runs.

    python scripts/probe_docs.py                 make the runs below, then page and figures
    python scripts/probe_docs.py RUN_DIR ...     take the figures from these runs
    python scripts/probe_docs.py --text          the page alone; the figures stay as they are

A probe's section is its class docstring, the options of its yaml in ``conf/probe`` and what its
``variables`` announce. Its figure is taken from the first of the runs that measured it; where no
figure of a run shows it, one is drawn here, over training step.
"""

from __future__ import annotations

import argparse
import inspect
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from hydra.utils import get_class
from omegaconf import OmegaConf
from PIL import Image

import gradlab
from gradlab.probes.base import CloseProbe, Probe, Setting, Unsupported
from gradlab.record.figures import common
from gradlab.variable import Variable

ROOT = Path(__file__).parents[1]
CONF, PAGE = ROOT / "conf" / "probe", ROOT / "docs" / "probes.md"
FIGURES = "figures/probes"
"""Where the figures are, as the page links them."""

RUNS = (["probe=research"], ["model=rnn", "probe=research"])
"""Overrides of the runs that are made where none are given."""
PICTURES = {
    "adjoint": "adjoint_over_lag",
    "adjoint_alignment": "adjoint_alignment",
    "clipping": "clipping",
    "curvature": "curvature",
    "direct_adjoint": "direct_adjoint",
    "fixed_points": "fixed_points",
    "forget_path": "paths",
    "forget_product": "forget_product",
    "gate_statistics": "gates",
    "gradient_mass": "horizons",
    "gradient_noise": "gradient_noise",
    "isometry": "isometry",
    "jacobian_eigenvalues": "jacobian_eigenvalues",
    "long_jacobian": "long_jacobian",
    "lyapunov": "lyapunov",
    "mean_field": "lyapunov",
    "memory_horizon": "horizons",
    "pascanu_bound": "adjoint_over_lag",
    "recurrent_matrix": "recurrent_matrix",
    "singular_spectrum": "singular_spectrum",
    "state_covariance": "state_covariance",
    "step_jacobian": "step_jacobian",
    "temporal_contribution": "temporal_contribution",
    "truncation": "truncation",
}
"""Which figure of a run shows which probe. The others are drawn over training step."""

LSTM = Setting(
    cell="LSTM",
    states=("c", "h"),
    gates=("i", "f", "o"),
    retention="f",
    matrices=("i", "f", "c_tilde", "o"),
    length=100,
    hidden=32,
    clips=True,
)
RNN = Setting(
    cell="SimpleRNN",
    states=("h",),
    gates=(),
    retention=None,
    matrices=("h",),
    activation="tanh",
    length=100,
    hidden=32,
    clips=True,
)
PARAGRAPHS = ("Definition", "Source", "Cost", "Mask", "Limits", "How to read it")
"""What every probe's docstring has, in this order."""

INTRO = """\
# Probes

<!-- Written by scripts/probe_docs.py from src/gradlab/probes and conf/probe: change those. -->

A probe is one measurement. There are two kinds.

- **Step probes** read what a training step computes anyway, at every logged step
  (`trainer.log_every`) and over the whole batch. They cost next to nothing; `probe=standard`, the
  default, runs them all.
- **Close probes** look at the network as a function: Jacobians, Lyapunov exponents, what each
  timestep adds to the gradient. They take the first `probe.examples` examples of the batch (4 by
  default), at every `probe.every` steps (50 by default) and at the last step. In the rows between,
  their variables hold NaN. **A probe with an option `examples` looks at so many of these, which
  is one by default**: Jacobians are costly. Such a curve is of that one example, and does not show
  how examples differ. `probe=research` gives `lyapunov` up to 8 and `forget_path` up to 4.

`probe=full` runs all of them but the few that cost too much or answer a special question;
`probe=research` runs these too. A preset leaves out what the model cannot give (a plain RNN has no
forget gate) and records why; a probe that is asked for by name is refused with the reason.
`probe=[adjoint,lyapunov]` runs a choice, and `probe.measure.NAME.OPTION=value` sets an option.

Without training, in a notebook, `gradlab.analyze` runs them on one batch, for any Flax
`nnx.RNNCellBase` or module:

```python
import jax
from flax import nnx
import gradlab

cell = nnx.OptimizedLSTMCell(2, 16, rngs=nnx.Rngs(0))
inputs = jax.random.normal(jax.random.key(0), (8, 50, 2))   # (B, T, I)
found = gradlab.analyze(cell, inputs, lambda outputs: outputs[:, -1, 0], probes=["lyapunov"])
found["lyapunov_exponent"]                                  # found is an xarray.Dataset
```

Every recorded variable has a leading dimension `step`, left out below. Names with `_log10` hold
log10, -inf where something is exactly zero. `t` is the timestep, and `lag = T-1-t` its distance
from the end of the padded sequence. Names with `_over_lag` have `back` in the place of t: the
steps back from each example's own last real one, in the order in which the direction reads. Without
padding they are the same values reversed. Slopes, horizons, figures, pages and verdicts use these.
Norms are of each example; their mean is that of the logs.
"""


@dataclass(frozen=True)
class Entry:
    """A probe and its yaml.

    Attributes:
      name: as in ``probe=NAME``.
      kind: its class.
      options: option -> default, as the yaml has them.
    """

    name: str
    kind: type[Probe]
    options: Mapping[str, Any]

    @cached_property
    def sections(self) -> dict[str, list[str]]:
        """Paragraphs of the class docstring by their heading; what comes first has none."""
        found: dict[str, list[str]] = {"": []}
        heading = ""
        for paragraph in inspect.cleandoc(self.kind.__doc__ or "").split("\n\n"):
            start = re.match(rf"({'|'.join(PARAGRAPHS)}|Args):\s+", paragraph)
            if start:
                heading, paragraph = start[1], paragraph[start.end() :]
            found.setdefault(heading, []).append(paragraph)
        return found

    @cached_property
    def meanings(self) -> dict[str, str]:
        """Option -> what it is, from ``Args``."""
        text = "\n".join(self.sections.get("Args", []))
        lines = re.split(r"\n(?=\s*\w+: )", text)
        pairs = (line.strip().partition(": ") for line in lines)
        return {name: _in_a_line(meaning) for name, _, meaning in pairs if name}

    @cached_property
    def probe(self) -> Probe:
        """The probe with the options of the yaml."""
        return self.kind(**self.options)

    @cached_property
    def refusals(self) -> dict[str, str]:
        """Which of the LSTM and the plain RNN it cannot measure, and why."""
        found = {}
        for model, setting in (("lstm", LSTM), ("rnn", RNN)):
            try:
                self.probe.variables(setting)
            except Unsupported as reason:
                found[model] = str(reason)
        return found

    @cached_property
    def variables(self) -> dict[str, Variable]:
        """What it records, of an LSTM, or of a plain RNN if it cannot measure one."""
        return self.probe.variables(RNN if "lstm" in self.refusals else LSTM)

    @property
    def close(self) -> bool:
        """Whether it is a close probe."""
        return issubclass(self.kind, CloseProbe)


def find_probes() -> list[Entry]:
    """Every probe that has a yaml of its own, by kind and name."""
    found = []
    for path in sorted(CONF.glob("*.yaml")):
        node: Any = OmegaConf.to_container(OmegaConf.load(path))
        options = node.get(path.stem)
        if isinstance(options, dict) and "_target_" in options:
            kind = get_class(options.pop("_target_"))
            found.append(Entry(path.stem, kind, options))
    return sorted(found, key=lambda entry: (entry.close, entry.name))


# --- the page ------------------------------------------------------------------------------------


def page(entries: Sequence[Entry], figures: Mapping[str, str]) -> str:
    """The page; ``figures`` has the two lines of Markdown that show a probe's figure."""
    parts = [INTRO]
    for title, close in (("Step probes", False), ("Close probes", True)):
        chosen = [entry for entry in entries if entry.close == close]
        rows = [(f"[`{e.name}`](#{e.name})", _markdown(e.sections[""][0])) for e in chosen]
        parts.append(f"## {title}\n\n{_table(('probe', 'what it measures'), rows)}")
        parts += [_section(entry, figures.get(entry.name)) for entry in chosen]
    return "\n".join(parts)


def _section(entry: Entry, figure: str | None) -> str:
    parts = [f"### {entry.name}", *map(_markdown, entry.sections[""])]
    for heading in PARAGRAPHS:
        first, *rest = entry.sections.get(heading, [""])
        parts += [f"**{heading}.** {_markdown(_capital(first))}", *map(_markdown, rest)]
    if entry.options:
        rows = [
            (f"`{name}`", f"`{json.dumps(value)}`", _markdown(entry.meanings.get(name, "")))
            for name, value in entry.options.items()
        ]
        parts.append(_table(("option", "default", "meaning"), rows).rstrip())
    rows = [
        (f"`{name}`", ", ".join(f"`{dim}`" for dim in one.dims), one.units, one.long_name)
        for name, one in entry.variables.items()
    ]
    parts.append(_table(("variable", "over", "unit", "what it is"), rows).rstrip())
    parts += [f"Not for every cell: {reason}." for reason in entry.refusals.values()]
    model = "model=rnn " if "lstm" in entry.refusals else ""
    parts.append(f"```sh\npython -m gradlab {model}probe={entry.name}\n```")
    parts += [figure] if figure else []
    return "\n\n".join(parts) + "\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table in Markdown; a bar in a cell would end it."""
    lines = [head, ["---"] * len(head), *rows]
    cells = [[_in_a_line(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in cells)


def _markdown(text: str) -> str:
    """A docstring's paragraph in Markdown."""
    text = re.sub(r":\w+:`~?(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    return text.replace("``", "`")


def _in_a_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def _capital(text: str) -> str:
    """With a capital at the start, unless a symbol stands there."""
    return text[:1].upper() + text[1:] if re.match(r"a |[a-z]{2,}\b", text) else text


def kept_figures(text: str) -> dict[str, str]:
    """The figures that a page shows already, by probe."""
    pattern = rf"^!\[[^\n]*\]\({FIGURES}/(\w+)\.png\)\n\n\*[^\n]*\*$"
    return {found[1]: found[0] for found in re.finditer(pattern, text, re.MULTILINE)}


# --- the figures ---------------------------------------------------------------------------------


def take_figures(entries: Sequence[Entry], runs: Sequence[gradlab.Run]) -> dict[str, str]:
    """Copy or draw a figure of each probe that one of the runs measured; Markdown by probe."""
    folder = PAGE.parent / FIGURES
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    found = {}
    for entry in entries:
        target = folder / f"{entry.name}.png"
        for run in runs:
            if _measured(entry, run):
                _take(entry, run, target)
                alt = _in_a_line(_markdown(entry.sections[""][0])).replace("`", "")
                link = f"![{alt}]({FIGURES}/{target.name})"
                found[entry.name] = f"{link}\n\n*Made by `{command_of(run)}`.*"
                break
        else:
            print(f"no figure: none of the runs measured {entry.name}", file=sys.stderr)
    return found


def _measured(entry: Entry, run: gradlab.Run) -> bool:
    data = {**run.curves.data_vars, **run.scalars.data_vars}
    return any(bool(data[name].notnull().any()) for name in entry.variables if name in data)


def _take(entry: Entry, run: gradlab.Run, target: Path) -> None:
    """The run's own figure in 256 colours, or one over training step."""
    source = run.path / "figures" / f"{PICTURES.get(entry.name)}.png"
    if source.is_file():
        with Image.open(source) as image:
            image.convert("RGB").quantize(256).save(target, optimize=True)
    else:
        with matplotlib.rc_context(common.STYLE):
            over_training(entry, run).savefig(target)


def over_training(entry: Entry, run: gradlab.Run) -> Any:
    """A panel for each of the probe's variables: lines over training step."""
    data = {**run.curves.data_vars, **run.scalars.data_vars}
    shown = {name: data[name].dropna("step", how="all") for name in entry.variables if name in data}
    with matplotlib.rc_context(common.STYLE):
        figure = common.new_figure(len(shown), columns=1)
        common.set_title(figure, _in_a_line(_markdown(entry.sections[""][0])).replace("`", ""))
        grid = figure.subplots(len(shown), 1, squeeze=False, sharex=True)[:, 0]
        for axes, (name, values) in zip(grid, shown.items(), strict=True):
            lines = (
                values.stack(line=values.dims[1:])
                if values.ndim > 1
                else values.expand_dims("line")
            )
            for k, one in enumerate(lines.transpose("line", "step")):
                label = ", ".join(
                    str(one[dim].values) for dim in values.dims[1:] if dim in one.coords
                )
                style = common.DASHES[k // len(common.PALETTE) % len(common.DASHES)]
                colour = common.PALETTE[k % len(common.PALETTE)]
                common.plot(axes, one["step"], one, label=label, color=colour, linestyle=style)
            sizes = lines.values[np.isfinite(lines.values)]
            if sizes.size and sizes.min() > 0 and sizes.max() / sizes.min() > 30:
                axes.set_yscale("log")
            axes.set_title(values.attrs["long_name"], fontsize=12)
            axes.set_ylabel(f"{name} ({values.attrs['units']})", fontsize=11)
        grid[-1].set_xlabel("training step")
        titles = map(str, next(iter(shown.values())).dims[1:])
        handles = common.handles_of(figure)
        figure.legend(handles=handles, loc="outside right center", title=", ".join(titles))
    return figure


def command_of(run: gradlab.Run) -> str:
    """The command that made a run, without what only concerns where it is recorded."""
    path = run.path / ".hydra" / "overrides.yaml"
    given: Any = OmegaConf.to_container(OmegaConf.load(path)) if path.is_file() else []
    words = [word for word in given if not word.startswith("record.")]
    return " ".join(["python -m gradlab", *map(shlex.quote, words)])


def make_runs(folder: Path) -> list[Path]:
    """Make the runs of :data:`RUNS`; their directories."""
    made = []
    for index, overrides in enumerate(RUNS):
        target = folder / str(index)
        words = [*overrides, "record.wandb.mode=disabled", f"hydra.run.dir={target}"]
        subprocess.run([sys.executable, "-m", "gradlab", *words], check=True)
        made.append(target)
    return made


def main() -> None:
    """Write the page, and the figures unless only the text is wanted."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN_DIR")
    parser.add_argument("--text", action="store_true", help="leave the figures as they are")
    options = parser.parse_args()
    entries = find_probes()
    if options.text:
        figures = kept_figures(PAGE.read_text(encoding="utf-8") if PAGE.is_file() else "")
    else:
        with tempfile.TemporaryDirectory() as folder:
            paths = options.runs or make_runs(Path(folder))
            figures = take_figures(entries, [gradlab.open_run(path) for path in paths])
    PAGE.write_text(page(entries, figures), encoding="utf-8")
    print(f"{len(entries)} probes, {len(figures)} figures: {PAGE}")


if __name__ == "__main__":
    main()
