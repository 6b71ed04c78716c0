"""Does the gate alone explain the transport? Its product beside the true Jacobian, over lag."""

from __future__ import annotations

from typing import Any

from gradlab.compare.figures.bands import Shown, draw_band, rows_of
from gradlab.compare.figures.over_lag import COLUMNS, LAG, over_lag, relative
from gradlab.compare.figures.style import Page, add_keys, level, new_page

PANELS = {
    "forget_product_log10": "forget product",
    "forget_path_log10": "forget path",
    "whole_path_log10": "whole path (true)",
    "long_jacobian_log10": "true Jacobian",
}
"""What is drawn where it was recorded, each against its value at lag 0."""


def page(shown: Shown) -> Page | None:
    """What is left over lag, of the first layer: by the gate alone, and in truth."""
    rows: list[list[Any]] = [shown.header("variable", *COLUMNS)]
    layer = shown.layers[0] if shown.layers else ""
    found = {
        name: [over_lag(shown, group, name, layer, relative) for group in shown.groups]
        for name in PANELS
    }
    found = {name: lines for name, lines in found.items() if any(lines)}
    if not found:
        return None
    figure, grid = new_page(len(found), sharey=True)
    axes_of = list(grid[0])
    for axes, (name, lines) in zip(axes_of, found.items(), strict=True):
        for group, look, line in zip(shown.groups, shown.looks.of, lines, strict=True):
            if line is not None:
                draw_band(axes, line[0], look, shade=shown.looks.few)
                rows += rows_of([*shown.told(group), name, layer, line[1]], line[0])
        axes.set_title(PANELS[name])
        axes.margins(x=0)
        level(axes, 0)
    axes_of[len(axes_of) // 2 if len(axes_of) % 2 else 0].set_xlabel(LAG)
    if len(axes_of) % 2 == 0:
        for axes in axes_of:
            axes.set_xlabel("")
        figure.supxlabel(LAG, fontsize=8)
    more = f", layer {layer}" if len(shown.layers) > 1 else ""
    axes_of[0].set_ylabel(f"log₁₀ of what is left{more}")
    add_keys(figure, axes_of, shown.looks)
    return Page(figure, rows)
