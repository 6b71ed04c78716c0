"""Is what reaches far back one direction? How the adjoints of all lags point."""

from __future__ import annotations

from xarray import Dataset

from gradlab.record.figures import common

QUESTION = "Is the gradient that reaches far back one direction?"
HINT = "1 = the same direction,  near 0 = nothing in common"
_LINES = {
    "adjoint_cosine_lyapunov_over_lag": "that to which the\ntransport pulls all",
    "adjoint_cosine_examples_over_lag": "that of another\nexample",
    "adjoint_cosine_next_over_lag": "that one step later",
    "adjoint_cosine_end_over_lag": "that at lag 0",
}


def figure(curves: Dataset, scalars: Dataset, info: common.Info) -> common.Figure | None:
    """The four cosines over lag at the last look, a panel per layer."""
    last = common.last_measured(curves, *_LINES)
    if last is None:
        return None
    page = common.Page(info, QUESTION, HINT, curves.sizes["layer"], last=last)
    for row, axes in page.layers(curves, "|cos| of the adjoint with …", common.OWN_LAG):
        panel = last.isel(layer=row)
        for k, (name, label) in enumerate(_LINES.items()):
            if name in panel:
                style = {"color": common.colour(k), "linestyle": common.dashes(k)}
                common.plot(axes, panel["back"].values, panel[name].values, label=label, **style)
        axes.set_ylim(-0.03, 1.03)
    return page.legend(title="its direction and")
