"""Does the gradient keep its length in every direction? Dynamical isometry over the lag."""

from __future__ import annotations

from xarray import Dataset

from gradlab.record.figures import common

QUESTION = "Does the gradient keep its length, and in every direction?"
HINT = "both level = isometry,  left falling = vanishing,  right falling = few directions are left"
_MEAN, _RANK = "squared_singular_mean_log10", "effective_rank"


def figure(curves: Dataset, scalars: Dataset, info: common.Info) -> common.Figure | None:
    """Mean of the squared singular values of ∂s_T/∂s_t over lag, and their effective rank."""
    chosen = common.several_measured(curves, _MEAN)
    if chosen is None:
        return None
    page = common.Page(info, QUESTION, HINT, curves.sizes["layer"], 2)
    grid, lag = page.grid(sharex=True), chosen["back"].values
    for row, (mean, rank) in enumerate(grid):
        for one, style in common.each_step(chosen.isel(layer=row)):
            common.plot(mean, lag, one[_MEAN].values, **style)
            common.plot(rank, lag, one[_RANK].values, color=style["color"])
        common.mark_level(mean, 0, "as long as it was")
        common.mark_level(rank, 1, "one direction")
        mean.set_title(common.layer_title(curves, row, "how much comes back"))
        mean.set_ylabel("log10 of the mean squared\nsingular value of ∂s_T/∂s_t")
        rank.set_title(common.layer_title(curves, row, "in how many directions"))
        rank.set_ylabel("effective rank of ∂s_T/∂s_t")
        rank.set_ylim(bottom=0)
    for axes in grid[-1]:
        axes.set_xlabel("lag: timesteps back from each example's end")
    common.mark_float32(list(grid[:, 0]))
    return page.legend()
