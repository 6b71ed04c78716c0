"""Two settings against each other: where the gradient survives, and where training succeeds."""

from __future__ import annotations

from gradlab.compare import phase_diagram
from gradlab.compare.figures.bands import Shown
from gradlab.compare.figures.style import Page, add_legend, new_grid, safe
from gradlab.compare.phase_diagram import PAPER, name_of

LABELS = {
    phase_diagram.SLOPE.name: "adjoint slope (nats per step)",
    phase_diagram.HORIZON.name: "memory horizon (timesteps)",
    phase_diagram.LYAPUNOV.name: "λ₁ (nats per step)",
    phase_diagram.SHARE.name: "share of seeds that succeed",
    phase_diagram.RATIO.name: "log₁₀ (loss / baseline)",
}


def page(shown: Shown) -> Page | None:
    """The runs over the two numbers by which they differ, a panel a figure."""
    found = phase_diagram.diagram([run.entry for run in shown.runs])
    wanted = found.panels() if found is not None else []
    if found is None or not wanted:
        return None
    across, up = (safe(name_of(key)) for key in found.keys)
    figure, grid = new_grid(len(wanted), 2, across, up, height=1.9, sharex=True, sharey=True)
    figure.get_layout_engine().set(wspace=0.06)
    for axes, panel in zip(grid, wanted, strict=True):
        bar = phase_diagram.draw_panel(axes, found, panel, PAPER, pad=0.02)
        bar.set_label(LABELS[panel.name])
        bar.outline.set_linewidth(0.6)
    if keys := phase_diagram.keys_of(found, PAPER):
        add_legend(figure, keys)
    return Page(figure, phase_diagram.table_rows(found))
