"""What does a single step do to the gradient? The norm of each step's Jacobian."""

from __future__ import annotations

from xarray import Dataset

from gradlab.record.figures import common

QUESTION = "What does a single step do to the gradient?"
HINT = "above the dotted line = it can grow in this step,  below = it must shrink"
_WHOLE, _BLOCKS = "step_jacobian_log10", "step_jacobian_block_log10"


def figure(curves: Dataset, scalars: Dataset, info: common.Info) -> common.Figure | None:
    """log10 of ‖J_t‖ over lag for several training steps; beside it its blocks at the last."""
    chosen = common.several_measured(curves, _WHOLE)
    if chosen is None:
        return None
    last = common.last_measured(curves, _BLOCKS)
    if last is not None and curves.sizes["to"] * curves.sizes["from"] == 1:
        last = None  # the one block is the whole
    page = common.Page(info, QUESTION, HINT, curves.sizes["layer"], 1 + (last is not None))
    grid = page.grid(sharex=True)
    for row, axes in enumerate(grid[:, 0]):
        for one, style in common.each_step(chosen.isel(layer=row)):
            style["label"] = f"training {style['label']}"
            common.line(axes, one, _WHOLE, **style)
        axes.set_title(common.layer_title(curves, row, "the whole step, J_t"))
        axes.set_ylabel("log10 of the largest singular value")
        common.mark_level(axes, 0, "neither grows\nnor shrinks")
        if last is not None:
            _draw_blocks(grid[row, 1], last.isel(layer=row))
            title = f"old part → new part, step {int(last['step']):,}"
            grid[row, 1].set_title(common.layer_title(curves, row, title))
    for axes in grid[-1]:
        axes.set_xlabel(common.LAG if last is None else "lag: timesteps back from the end")
    return page.legend(title=None)


def _draw_blocks(axes: common.Axes, panel: Dataset) -> None:
    """A line for each pair of parts of the state, e.g. c → h."""
    pairs = [(to, origin) for origin in panel["from"].values for to in panel["to"].values]
    for k, (to, origin) in enumerate(pairs):
        block = panel.sel({"to": to, "from": origin})
        style = {"color": common.colour(k), "linestyle": common.dashes(k)}
        common.line(axes, block, _BLOCKS, label=f"{origin} → {to}", **style)
    axes.set_ylabel("log10 of the Frobenius norm")
