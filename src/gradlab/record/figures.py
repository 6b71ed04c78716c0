"""Pictures of a run, made to be read without documentation.

Every curve is a log10: a straight line is exponential decay, and its slope is the rate. ``-inf``
means that the gradient is exactly zero; it is drawn black in the heatmaps and left out of the
lines.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

LINES = 6
"""Training steps shown as lines."""
HEAT_STEPS, HEAT_TIMES = 300, 500
"""Most columns and rows of a heatmap."""
FLOAT32_ZERO = -44.85
"""log10 of the smallest positive float32."""

# Okabe and Ito's colours, told apart with every kind of colour vision.
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#555555"
_STYLE: dict[Any, Any] = {
    "font.size": 13,
    "axes.titlesize": 14,
    "axes.labelsize": 13,
    "legend.fontsize": 12,
    "figure.titlesize": 16,
    "axes.grid": True,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "lines.linewidth": 2.0,
    "savefig.dpi": 120,
}
_LAG = "lag: timesteps back from the end of the sequence"


def draw(
    curves: xarray.Dataset,
    scalars: xarray.Dataset,
    info: Mapping[str, Any],
    folder: str | os.PathLike[str],
) -> list[Path]:
    """Draw the figures that the recorded variables allow.

    Args:
      curves: as ``gradlab.open_run(path).curves``: log10 norms over ``step``, ``layer`` and ``t``.
      scalars: as ``gradlab.open_run(path).scalars``: losses over ``step``.
      info: as ``gradlab.open_run(path).info``; ``name``, ``facts`` and ``baseline`` are used.
      folder: where to write the PNGs; made if missing.

    Returns:
      Paths of the files written, of ``adjoint_over_lag.png``, ``adjoint_heatmap.png``,
      ``forget_product.png`` and ``loss.png``; a figure without data is not written.
    """
    import matplotlib

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    pictures = {
        "adjoint_over_lag.png": lambda: _over_lag(curves, info),
        "adjoint_heatmap.png": lambda: _heatmaps(curves, info),
        "forget_product.png": lambda: _forget_product(curves, info),
        "loss.png": lambda: _losses(scalars, info),
    }
    written = []
    with matplotlib.rc_context(_STYLE):
        for name, picture in pictures.items():
            figure = picture()
            if figure is not None:
                figure.savefig(folder / name)
                written.append(folder / name)
    return written


def heat_colours() -> Colormap:
    """The heatmaps' colours: viridis, black for exactly zero, light grey for not measured."""
    import matplotlib

    return matplotlib.colormaps["viridis"].with_extremes(under="black", bad="lightgrey")


def colour_limits(values: np.ndarray) -> tuple[float, float]:
    """Lowest and highest finite value, always apart; (0, 1) if there is none."""
    finite = values[np.isfinite(values)]
    if not finite.size:
        return 0.0, 1.0
    low, high = float(finite.min()), float(finite.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


# --- the figures ---------------------------------------------------------------------------------


def _over_lag(curves: xarray.Dataset, info: Mapping[str, Any]) -> Figure | None:
    """log10 of the adjoint's norm over lag, a line per training step, a panel per layer."""
    rows = _measured(curves, "adj_h_log10")
    if not len(rows):
        return None
    rows = rows[_early_and_late(len(rows), LINES)]
    chosen = curves.isel(step=rows)
    steps, colours = chosen["step"].values, _step_colours(len(rows))
    layers = curves["layer"].values
    figure = _new_figure(len(layers))
    figure.suptitle(
        f"How far back does the gradient reach?{_subject(info)}\n"
        "left = recent past,  down = the gradient has vanished"
    )
    for index, (axes, layer) in enumerate(zip(_panels(figure, len(layers)), layers, strict=True)):
        panel = chosen.isel(layer=index)
        for k, step in enumerate(steps):
            _line(axes, panel, "adj_h_log10", k, color=colours[k], label=f"step {step:,}")
            _line(axes, panel, "adj_c_log10", k, color=colours[k], linestyle=(0, (4, 2)), lw=1.4)
        _quantile_band(axes, panel, colours[-1])
        horizon, zeros = _mark_horizon(axes, panel), _mark_zeros(panel)
        axes.set_title("\n".join(filter(None, [f"layer {layer}{horizon}", zeros])), fontsize=12)
        axes.set_xlim(0, float(panel["lag"].max()) or 1)
        axes.set_ylabel("log10 of the gradient's norm")
    handles = list(figure.axes[0].get_legend_handles_labels()[0])
    handles += _style_keys(curves)
    handles += _mark_float32(figure.axes)
    figure.legend(handles=handles, loc="outside right center", title="at training step")
    return figure


def _heatmaps(curves: xarray.Dataset, info: Mapping[str, Any]) -> Figure | None:
    """Timestep over training step, coloured by log10; the forget product beside the adjoint."""
    titles = {"adj_h_log10": "gradient ‖∂ℓ/∂h‖"}
    if "forget_product_log10" in curves:
        gate = curves["forget_product_log10"].attrs.get("gate", "")
        titles["forget_product_log10"] = f"what the gate {gate} alone would keep"
    shown = {}
    for name in titles:
        rows = _measured(curves, name)
        if len(rows):
            rows = rows[_spread(len(rows), HEAT_STEPS)]
            times = _spread(curves.sizes["t"], HEAT_TIMES)
            shown[name] = curves[name].isel(step=rows).load().isel(t=times)
    if "adj_h_log10" not in shown:
        return None
    low, high = colour_limits(np.concatenate([v.values.ravel() for v in shown.values()]))
    layers = curves["layer"].values
    figure = _new_figure(len(layers), columns=len(shown), width=6.2)
    grid = figure.subplots(len(layers), len(shown), squeeze=False, sharex=True, sharey=True)
    for row, layer in enumerate(layers):
        for axes, (name, values) in zip(grid[row], shown.items(), strict=True):
            mesh = _heatmap(axes, values.isel(layer=row), low, high)
            axes.set_title(f"layer {layer}: {titles[name]}" if len(layers) > 1 else titles[name])
        grid[row, 0].set_ylabel("timestep t")
    for axes in grid[-1]:
        axes.set_xlabel("training step")
    bar = figure.colorbar(mesh, ax=grid, shrink=0.9, pad=0.02, aspect=20 * len(layers))
    zeros = any(np.isneginf(v.values).any() for v in shown.values())
    bar.set_label("log10 (bright = strong" + (", black = exactly zero)" if zeros else ")"))
    figure.suptitle(
        f"Where in the sequence does the gradient arrive?{_subject(info)}\n"
        "top = end of the sequence, bottom = its start,  right = later in training"
    )
    return figure


def _forget_product(curves: xarray.Dataset, info: Mapping[str, Any]) -> Figure | None:
    """Forget product and adjoint over lag at the last measured step, both from 0 at lag 0."""
    rows = _measured(curves, "forget_product_log10")
    if not len(rows):
        return None
    last = curves.isel(step=rows[-1])
    gate = curves["forget_product_log10"].attrs.get("gate", "")
    adjoint = next((n for n in ("adj_c_log10", "adj_h_log10") if n in curves), None)
    layers = curves["layer"].values
    figure = _new_figure(len(layers))
    step = int(last["step"])
    figure.suptitle(
        f"Does the gate alone explain the memory?{_subject(info)}, step {step:,}\n"
        "lines together = through the gate,  apart = the rest went through h"
    )
    symbol = "c" if adjoint == "adj_c_log10" else "h"
    for index, (axes, layer) in enumerate(zip(_panels(figure, len(layers)), layers, strict=True)):
        panel = last.isel(layer=index)
        lag, product = _by_lag(panel, "forget_product_log10")
        if adjoint:
            lag, norm = _by_lag(panel, adjoint)
            label = f"gradient ‖∂ℓ/∂{symbol}‖ (0 at its first lag)"
            axes.plot(lag, norm - _first(norm), color=BLUE, label=label)
        product_label = f"product of the retention gate {gate}".rstrip()
        axes.plot(lag, product, color=ORANGE, linestyle="--", label=product_label)
        axes.set_title(f"layer {layer}")
        axes.set_ylabel("log10 of what is left")
    handles = figure.axes[0].get_legend_handles_labels()[0] + _mark_float32(figure.axes)
    figure.legend(handles=handles, loc="outside lower center", ncols=2)
    return figure


def _losses(scalars: xarray.Dataset, info: Mapping[str, Any]) -> Figure | None:
    """Training and validation loss over training step, with the baseline."""
    losses = {}
    for split in ("train", "val"):
        if f"{split}/loss" in scalars:
            loss = scalars[f"{split}/loss"].dropna("step")
            if loss.size:
                losses[split] = loss
    if not losses:
        return None
    figure = _new_figure(1, width=9.5)
    axes = figure.subplots()
    names = {"train": "training", "val": "validation"}
    styles = {"train": {"color": BLUE, "alpha": 0.75}, "val": {"color": ORANGE, "marker": "o"}}
    for split, loss in losses.items():
        axes.plot(loss["step"], _finite(loss.values), label=names[split], **styles[split])
    baseline = _baseline(info)
    if baseline:
        axes.axhline(baseline["loss"], color=GREY, ls="--", label=f"baseline: {baseline['name']}")
    every = np.concatenate([loss.values for loss in losses.values()])
    every = every[np.isfinite(every)]
    if every.size and every.min() > 0 and every.max() / every.min() > 8:
        axes.set_yscale("log")
    units = next(iter(losses.values())).attrs.get("units", "")
    axes.set_ylabel(f"loss ({units})" if units not in ("", "1") else "loss")
    axes.set_xlabel("training step")
    below = ",  below the dashed line = better than a guess" if baseline else ""
    figure.suptitle(f"Is it learning?{_subject(info)}\ndown = better{below}")
    figure.legend(loc="outside lower center", ncols=3)
    return figure


# --- panels --------------------------------------------------------------------------------------


def _new_figure(panels: int, columns: int = 0, width: float = 6.5) -> Figure:
    """A figure of the right size: up to two panels side by side, or ``columns`` of them."""
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    across = columns or min(panels, 2)
    down = panels if columns else -(-panels // 2)
    size = (max(9.5, width * across), 1.6 + 4.0 * down)
    return Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.1, w_pad=0.1))


def _panels(figure: Figure, count: int) -> list[Axes]:
    """``count`` panels over lag, two side by side."""
    across = min(count, 2)
    grid = figure.subplots(-(-count // across), across, squeeze=False, sharey=True).ravel()
    for unused in grid[count:]:
        unused.remove()
    for axes in grid[:count]:
        axes.set_xlabel(_LAG)
    return list(grid[:count])


def _line(axes: Axes, panel: xarray.Dataset, name: str, row: int, **style: Any) -> None:
    if name in panel:
        lag, values = _by_lag(panel.isel(step=row), name)
        axes.plot(lag, _finite(values), **style)


def _quantile_band(axes: Axes, panel: xarray.Dataset, colour: Any) -> None:
    if "adj_h_log10_q" not in panel:
        return
    last = panel.isel(step=-1)
    lag, values = _by_lag(last, "adj_h_log10_q")
    values = _finite(values)
    axes.fill_between(lag, values[0], values[-1], color=colour, alpha=0.2, linewidth=0)


def _mark_horizon(axes: Axes, panel: xarray.Dataset) -> str:
    """A vertical line at the memory horizon of the last step; its length in words."""
    if "memory_horizon" not in panel:
        return ""
    if not _horizon_reached(panel):
        return ""
    horizon = float(panel["memory_horizon"].isel(step=-1))
    axes.axvline(horizon, color=GREY, linestyle=":", zorder=1)
    digits = 1 if horizon < 100 else 0
    return f": memory horizon {horizon:.{digits}f} timesteps"


def _horizon_reached(curves: xarray.Dataset) -> bool:
    """Whether any layer's gradient falls by e within the sequence, at the last step."""
    last = curves["memory_horizon"].isel(step=-1)
    return bool((last <= float(curves["lag"].max())).any())


def _mark_zeros(panel: xarray.Dataset) -> str:
    lag, values = _by_lag(panel.isel(step=-1), "adj_h_log10")
    zero = np.isneginf(values)
    if not zero.any():
        return ""
    return f"exactly zero at {zero.sum()} timesteps, first at lag {lag[zero].min()}"


def _mark_float32(panels: list[Axes]) -> list[Any]:
    """A line where plain float32 ends in panels that go that deep; its key for the legend."""
    deep = [axes for axes in panels if axes.get_ylim()[0] < FLOAT32_ZERO]
    label = "plain float32\nreads 0 below"
    style = {"color": ORANGE, "linestyle": "-.", "linewidth": 1.4, "zorder": 1}
    return [axes.axhline(FLOAT32_ZERO, label=label, **style) for axes in deep][:1]


def _style_keys(curves: xarray.Dataset) -> list[Any]:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    keys: list[Any] = []
    if "adj_c_log10" in curves:
        keys.append(Line2D([], [], color=GREY, label="solid: ∂ℓ/∂h"))
        keys.append(Line2D([], [], color=GREY, ls=(0, (4, 2)), lw=1.4, label="dashed: ∂ℓ/∂c"))
    if "adj_h_log10_q" in curves:
        keys.append(Patch(color=GREY, alpha=0.2, label="90 % of examples,\nlast step"))
    if "memory_horizon" in curves and _horizon_reached(curves):
        label = "memory horizon:\ndown to 1/e, last step"
        keys.append(Line2D([], [], color=GREY, linestyle=":", label=label))
    return keys


def _heatmap(axes: Axes, values: xarray.DataArray, low: float, high: float) -> Any:
    """Colour ``values`` (step, t); exact zeros go below the scale."""
    array = np.where(np.isneginf(values.values), low - 1.0, values.values)
    mesh = axes.pcolormesh(
        _edges(values["step"].values),
        _edges(values["t"].values),
        np.ma.masked_invalid(array.T),
        cmap=heat_colours(),
        vmin=low,
        vmax=high,
        rasterized=True,
    )
    axes.grid(False)
    return mesh


# --- numbers -------------------------------------------------------------------------------------


def _measured(curves: xarray.Dataset, name: str) -> np.ndarray:
    """Positions along ``step`` at which ``name`` was measured."""
    if name not in curves or not curves.sizes.get("t"):
        return np.array([], int)
    ends = curves[name].isel(t=[0, -1]).notnull()
    return np.flatnonzero(ends.any([dim for dim in ends.dims if dim != "step"]).values)


def _by_lag(panel: xarray.Dataset, name: str) -> tuple[np.ndarray, np.ndarray]:
    """``lag`` ascending ``(T,)`` and the values along it ``(..., T)``."""
    return panel["lag"].values[::-1], panel[name].values[..., ::-1]


def _finite(values: np.ndarray) -> np.ndarray:
    """NaN, which is not drawn, in place of infinities."""
    return np.where(np.isfinite(values), values, np.nan)


def _first(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite[0]) if finite.size else 0.0


def _edges(centres: np.ndarray) -> np.ndarray:
    """Borders of the cells around ``centres``, one more than there are centres."""
    if len(centres) == 1:
        return np.array([centres[0] - 0.5, centres[0] + 0.5])
    middle = (centres[1:] + centres[:-1]) / 2
    first, last = 2 * centres[0] - middle[0], 2 * centres[-1] - middle[-1]
    return np.concatenate([[first], middle, [last]])


def _spread(length: int, most: int) -> np.ndarray:
    return np.unique(np.linspace(0, length - 1, min(length, most)).round().astype(int))


def _early_and_late(length: int, most: int) -> np.ndarray:
    """Positions denser at the start, where training changes most; both ends included."""
    fractions = np.linspace(0, 1, min(length, most)) ** 2
    return np.unique((fractions * (length - 1)).round().astype(int))


def _step_colours(count: int) -> list[Any]:
    """Dark for early, bright for late; the brightest yellow is left out, it fades on white."""
    import matplotlib

    return list(matplotlib.colormaps["viridis"](np.linspace(0.0, 0.88, count)))


def _subject(info: Mapping[str, Any]) -> str:
    facts = info.get("facts", {})
    parts = [str(facts[key]) for key in ("model", "task") if facts.get(key)]
    if facts.get("T"):
        parts.append(f"T = {facts['T']}")
    return f"  {', '.join(parts)}" if parts else ""


def _baseline(info: Mapping[str, Any]) -> Mapping[str, Any] | None:
    for split in ("val", "train"):
        found = (info.get("baseline") or {}).get(split)
        if found and found.get("loss") is not None:
            return found
    return None
