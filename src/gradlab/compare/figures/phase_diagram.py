"""Two settings against each other: where the gradient survives, and where training succeeds."""

from __future__ import annotations

from gradlab.compare import phase_diagram
from gradlab.compare.figures.bands import Shown
from gradlab.compare.figures.style import Page, add_legend, new_page, safe
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
    across = min(len(wanted), 2)
    down = -(-len(wanted) // across)
    figure, grid = new_page(across, down, height=1.9, sharex=True, sharey=True)
    figure.get_layout_engine().set(wspace=0.06)
    for axes, panel in zip(grid.ravel(), wanted, strict=False):
        bar = phase_diagram.draw_panel(axes, found, panel, PAPER, pad=0.02)
        bar.set_label(LABELS[panel.name])
        bar.outline.set_linewidth(0.6)
    for unused in grid.ravel()[len(wanted) :]:
        unused.remove()
    for axes in grid[:, 0]:
        axes.set_ylabel(safe(name_of(found.keys[1])))
    for index, axes in enumerate(grid.ravel()[: len(wanted)]):
        if index + across >= len(wanted):
            axes.set_xlabel(safe(name_of(found.keys[0])))
            axes.tick_params(labelbottom=True)
    if keys := phase_diagram.keys_of(found, PAPER):
        add_legend(figure, keys)
    return Page(figure, phase_diagram.table_rows(found))
