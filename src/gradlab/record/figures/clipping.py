"""What does clipping take away, and how often? By lag, and over training."""

from __future__ import annotations

from xarray import Dataset

from gradlab.record.figures import common

QUESTION = "What does clipping take away, and how often?"
HINT = "left: high = much of it came from this lag,  below 0 = this lag pulled the other way"


def figure(curves: Dataset, scalars: Dataset, info: common.Info) -> common.Figure | None:
    """What clipping removed by the lag that it came from; the share of clipped steps."""
    looks = common.all_measured(curves, "clip_removed")
    if looks is None:
        return None
    clipped = (looks["clip_removed"] != 0).any("t").values
    if clipped.any():
        looks = looks.isel(step=clipped)
    chosen = common.several_measured(looks, "clip_removed")
    assert chosen is not None
    rates = common.recorded(scalars, ["train/clip_rate"]).values()
    page = common.Page(info, QUESTION, HINT, columns=1 + len(rates))
    removed, *beside = page.grid()[0]
    for one, style in common.each_step(chosen):
        common.line(removed, one, "clip_removed", **style)
    common.mark_level(removed, 0, "nothing")
    removed.set_xlabel("lag: timesteps back from the end")
    removed.set_ylabel("gradient removed (loss per parameter)")
    removed.set_title(f"what it takes away (at {clipped.sum()} of {len(clipped)} looks)")
    for axes, rate in zip(beside, rates, strict=True):
        axes.plot(rate["step"], 100 * rate.values, color=common.BLUE)
        axes.set_ylim(-3, 103)
        axes.set_title("how often it is at work")
        axes.set_xlabel("training step")
        axes.set_ylabel("steps that are clipped (%)")
    return page.legend()
