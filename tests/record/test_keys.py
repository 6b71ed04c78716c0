"""Names for single numbers, against a plain loop."""

import math

import numpy as np

from gradlab.record.base import Description, Row, Variable
from gradlab.record.keys import Keys, flat
from tests.record.synthetic import describe, make_row

T = 40


def description(**variables: tuple[str, ...]) -> Description:
    sizes = {
        "layer": ["0", "1 backward"],
        "t": list(range(T)),
        "back": list(range(T)),
        "index": list(range(40)),
    }
    sizes |= {"unit": list(range(5)), "window": [1, 2], "many": list(range(65))}
    sizes |= {"gate": ["f"], "parameter": ["readout/kernel", "layers.0"]}
    named = {name: Variable(dims, "1", "") for name, dims in variables.items()}
    return Description("", {}, named, sizes, {})


def test_a_curve_has_a_key_for_each_layer_and_power_of_two():
    run = describe(T=T, layers=[0, "0 backward"], steps=9)
    row = make_row(run, 6)
    expected = dict(row.scalars)
    for index, layer in enumerate(("layer_0", "layer_0_backward")):
        for lag in (1, 2, 4, 8, 16, 32):
            value = row.arrays["adj_h_log10"][index, T - 1 - lag]
            expected[f"adj_h/{layer}/lag_{lag:05d}"] = value
    found = Keys(run)(row)
    curves = {key: found[key] for key in found if key.startswith(("adj_h/", "train", "val"))}
    assert curves == expected
    assert not any("_q" in key for key in found)  # quantiles over t stay in the run directory


def test_what_is_recorded_by_lag_too_keeps_its_keys_and_takes_their_values_from_there():
    older, run = describe(T=T, steps=9), describe(T=T, steps=9, by_lag=True)
    row = make_row(run, 6)
    before, found = Keys(older)(make_row(older, 6)), Keys(run)(row)
    new = {key.split("/")[0] for key in found.keys() - before.keys()}
    assert new == {"forget_product_rms", "decades_lost", "decades_per_100", "adjoint_line_r2"}
    assert before.keys() <= found.keys()
    for name in ("adj_h", "adj_c", "forget_product", "forget_product_rms"):
        values = row.arrays[f"{name}_over_lag_log10"][0]
        for lag in (1, 2, 4, 8, 16, 32):
            assert found[f"{name}/layer_0/lag_{lag:05d}"] == values[lag]


def test_the_twin_of_a_norm_of_another_kind_has_its_key():
    twin = "long_jacobian_over_lag_log10_frobenius"
    name = "long_jacobian_log10_frobenius"
    keys = Keys(description(**{name: ("layer", "t"), twin: ("layer", "back")}))
    found = keys(Row(0, {}, {name: np.ones((2, T)), twin: np.arange(2.0 * T).reshape(2, T)}))
    assert found[f"{name}/layer_1_backward/lag_00004"] == T + 4
    assert {key.split("/")[0] for key in found} == {name}


def test_of_a_spectrum_the_largest_get_a_key_and_of_units_none():
    keys = Keys(
        description(
            exponent=("layer", "index"),
            timescale=("layer", "unit"),
            bias=("window",),
            all=("many",),
        )
    )
    spectrum = -np.arange(80.0).reshape(2, 40)
    arrays = {"exponent": spectrum, "timescale": np.ones((2, 5)), "bias": np.array([0.5, 0.25])}
    assert keys(Row(0, {}, arrays | {"all": np.ones(65)})) == {
        **{f"exponent/layer_0/index_{k}": -k for k in range(3)},
        **{f"exponent/layer_1_backward/index_{k}": -40 - k for k in range(3)},
        "bias/window_1": 0.5,
        "bias/window_2": 0.25,
    }


def test_parameters_and_gates_name_themselves_without_dots():
    keys = Keys(description(norm_log10=("parameter", "gate")))
    assert keys(Row(0, {}, {"norm_log10": np.array([[1.0], [2.0]])})) == {
        "norm/readout/kernel/f": 1.0,
        "norm/layers_0/f": 2.0,
    }


def test_values_that_are_not_finite_are_left_out():
    keys = Keys(description(bias=("window",)))
    row = Row(0, {"train/loss": math.nan, "x": 1.0}, {"bias": np.array([np.inf, 2.0])})
    assert keys(row) == {"x": 1.0, "bias/window_2": 2.0}


def test_an_array_without_a_dimension_keeps_its_name():
    keys = Keys(description(hessian_top=(), loss=()))
    row = Row(0, {"loss": 0.5}, {"hessian_top": np.array(4.25)})
    assert keys(row) == {"loss": 0.5, "hessian_top": 4.25}


def test_a_nest_of_dicts_by_dotted_key():
    nest = {"a": {"b": {"c": 1}, "d": []}, "e": {}, "f": [{"g": 2}]}
    assert flat(nest) == {"a.b.c": 1, "a.d": [], "e": {}, "f": [{"g": 2}]}
