"""The verdict: what it says is measured, and nothing else is said."""

import math

import numpy as np
import pytest

from gradlab.record.base import Description, Outcome, Row
from gradlab.record.verdict import Network, against_baseline, kind_of, verdict

T = 100
LAG = np.arange(T)
RNN = Network(["0"], T)
LSTM = Network(["0"], T, gate="f", memory="c")
GRU = Network(["0"], T, gate="z")


def a_row(curve, **more):
    """One layer whose whole state has this curve, log10 over lag, as its probes measure it."""
    fitted = np.isfinite(curve)
    slope, intercept = np.polyfit(LAG[fitted], curve[fitted], 1)
    missed = np.var(curve[fitted] - slope * LAG[fitted] - intercept)
    varied = np.var(curve[fitted])
    fallen = np.flatnonzero(curve <= curve[0] - math.log10(math.e))
    found = {
        "adj_h_log10": curve[::-1],
        "adj_h_over_lag_log10": curve,
        "adjoint_slope": slope * math.log(10),
        "decades_lost": curve[0] - curve[-1],
        "decades_per_100": -100 * slope,
        "adjoint_line_r2": 1 - missed / varied if varied else math.nan,
        "memory_horizon": fallen[0] if fallen.size else T,
    }
    return Row(40, {}, {name: np.array([value]) for name, value in (found | more).items()})


def line(rate):
    """A straight curve of ``rate`` nats per step."""
    return rate * LAG / math.log(10)


def lstm_row(c=-0.1, product=-0.1, **more):
    """An LSTM's: at lag 0 all of the gradient is in h, and a step back it is in c."""
    memory = line(c) - 1.0
    h = memory - 2.0
    memory[0], h[0] = -np.inf, 0.0
    rms = line(product)
    forget = {"forget_product_rms_over_lag_log10": rms, "forget_product_rms_log10": rms[::-1]}
    forget |= {"forget_product_log10": 100 * rms[::-1], "adj_c_log10": memory[::-1]}
    whole = np.logaddexp(h * np.log(10), memory * np.log(10)) / np.log(10)
    curves = {"adj_c_over_lag_log10": memory, "adj_h_over_lag_log10": h, **forget}
    return a_row(whole, **(curves | more))


def looked(forget, residual, step=40):
    """A row of the close look, log10 over lag."""
    names = {"forget_path": forget, "residual_path": residual}
    curves = {f"{name}_over_lag_log10": [curve] for name, curve in names.items()}
    over_t = {f"{name}_log10": np.full((1, T), 77.0) for name in names}  # not to be looked at
    return Row(step, {}, {name: np.array(curve) for name, curve in (curves | over_t).items()})


@pytest.mark.parametrize(
    ("rate", "kind", "decades"),
    [
        (-0.1, "vanishing", "loses 4.3 decades over 99 steps back, 4.34 per 100 steps"),
        (0.1, "exploding", "gains 4.3 decades over 99 steps back, 4.34 per 100 steps"),
        (0.0, "stable", "loses 0 decades over 99 steps back"),
        (-0.005, "stable", "loses 0.215 decades over 99 steps back, 0.217 per 100 steps"),
    ],
)
def test_it_begins_with_the_decades_lost_and_the_line(rate, kind, decades):
    (told,) = verdict(a_row(line(rate)), RNN)
    assert told.startswith(f"layer 0: {kind}. At step 40 the gradient {decades}")
    assert f"slope {rate:+.4f} nats per step" in told
    assert ("r² 1.00" in told) == (rate != 0)


def test_the_horizon_comes_with_its_definition():
    (told,) = verdict(a_row(line(-0.1), memory_horizon=10.0), RNN)
    definition = "the norm of the whole state's gradient is first 1/e of that at lag 0"
    assert f"Memory horizon 10.0 steps, where {definition}." in told
    (told,) = verdict(a_row(line(0.0)), RNN)
    assert "No memory horizon" in told
    assert "nowhere down to 1/e of that at lag 0" in told


def test_a_horizon_of_the_first_step_is_told_as_such():
    """As an LSTM's: the first step moves the gradient from h to c; then it takes 6 to lose e."""
    (told,) = verdict(lstm_row(-1 / 6, -1 / 6, memory_horizon=0.9), LSTM)
    assert told.startswith("layer 0: vanishing.")
    assert "0.9 steps" in told
    assert "the first step takes it there, moving it from h to c, while the line would" in told
    (told,) = verdict(a_row(line(-1.2), memory_horizon=0.83), RNN)
    assert "first step" not in told  # the line says the same


def test_a_gradient_that_the_first_step_takes_is_not_called_vanishing_along_a_line():
    curve = np.where(LAG > 0, -3.0, 0.0) + line(-0.001)
    (told,) = verdict(a_row(curve, memory_horizon=0.2), RNN)
    assert told.startswith("layer 0: uneven. At step 40 the gradient loses 3.04 decades")
    assert "but not along a line" in told
    assert "the first step takes it there" in told
    assert "h to c" not in told  # not measured


def test_a_gradient_that_ends_before_the_sequence_does():
    curve = np.where(LAG < 30, line(-0.2), -np.inf)
    (told,) = verdict(a_row(curve), RNN)
    assert told.startswith("layer 0: vanishing. At step 40 the gradient does not reach 99 steps")
    assert "exactly zero" in told
    assert "inf" not in told


def test_the_longest_lag_is_that_of_the_longest_example():
    curve = line(-0.1)
    shorter = np.where(LAG < 60, curve, np.nan)
    (told,) = verdict(a_row(curve, adj_h_over_lag_log10=shorter), RNN)
    assert "over 59 steps back" in told


def test_what_is_beside_a_norm_is_a_root_mean_square():
    """The mean of logs of the same units is a hundred times as low, and is not in it."""
    (told,) = verdict(lstm_row(-0.1, -0.2), LSTM)
    beside = "From lag 1 to 99 the norm of ∂ℓ/∂c falls by 10^-4.3, the product of the f gate falls "
    assert beside + "by 10^-8.5 (root mean square over units)." in told
    (told,) = verdict(a_row(line(-0.1), forget_product_log10=line(-0.2)), GRU)
    assert "product" not in told


@pytest.mark.parametrize(("network", "way"), [(LSTM, "h"), (GRU, "the recurrent weights")])
def test_without_the_paths_the_way_is_said_to_be_unknown(network, way):
    """However far the product lies below the norm."""
    (told,) = verdict(lstm_row(-0.01, -2), network)
    unknown = f"How much of it goes through {way} is not known: probe=full or "
    assert told.endswith(unknown + "probe=[standard,forget_path] measures it.")
    for cause in ("Through", "came through", "explains", "because"):
        assert cause not in told


def test_one_step_back_does_not_tell_what_goes_through_h():
    """∂c_t/∂c_{t-1} of an LSTM is the gate, whatever goes through h."""
    lone = np.full(T, np.nan)
    lone[:2] = 0.0, -0.1
    rest = np.where(np.isnan(lone), np.nan, -np.inf)
    (told,) = verdict(lstm_row(-0.05, -0.2), LSTM, looked(lone, rest))
    assert told.endswith("What goes through h shows in ∂c_T/∂c_t from two steps back on.")


def test_where_nothing_can_go_through_h_it_says_so():
    """As with model.cell.recurrent_gain=0, also where the norm falls less than the product."""
    paths = looked(line(-0.1), np.full(T, -np.inf))
    (told,) = verdict(lstm_row(-0.05, -0.2), LSTM, paths)
    assert told.endswith(
        "Nothing of ∂c_T/∂c_t goes through h: all is through the f gate (in the close look at "
        "step 40)."
    )


@pytest.mark.parametrize(
    ("residual", "share"),
    [
        (0.5, "90.9 %"),
        (0.0, "50 %"),
        (-0.5, "9.09 %"),
        (-4, "less than 0.1 %"),
        (3, "more than 99.9 %"),
    ],
)
def test_the_share_through_h_is_of_the_measured_paths(residual, share):
    """R²/(F² + R²) of the squared norms, by hand: 10 to 1, 1 to 1, 1 to 10."""
    forget = line(-0.1)
    rest = np.where(LAG == 0, -np.inf, forget + residual)
    (told,) = verdict(lstm_row(), LSTM, looked(forget, rest, step=30))
    assert told.endswith(
        f"Through h goes {share} of the squared norm of ∂c_T/∂c_t at lag 99, the rest through the "
        "f gate (in the close look at step 30)."
    )


def test_the_share_of_a_gated_recurrent_unit():
    forget = line(-0.1)
    paths = looked(forget, np.where(LAG == 0, -np.inf, forget))
    (told,) = verdict(a_row(line(-0.1)), GRU, paths)
    assert "Through the recurrent weights goes 50 % of the squared norm of ∂h_T/∂h_t" in told
    assert "the rest through the z gate" in told


@pytest.mark.parametrize(
    ("backward", "says"), [("no_h_path", "through h"), ("no_c_path", "through the f gate")]
)
def test_a_cut_backward_pass_is_told_in_one_clause(backward, says):
    clause = f"The backward pass was cut: nothing goes back {says} (trainer.backward={backward})."
    (told,) = verdict(lstm_row(), LSTM._replace(backward=backward))
    assert told.count("cut") == told.count(clause) == 1
    assert "cut" not in verdict(lstm_row(), LSTM)[0]


def test_a_cell_that_does_not_look_back():
    found = a_row(line(-0.1), adjoint_slope=math.nan, decades_lost=math.inf)
    (told,) = verdict(found, RNN)
    assert told.startswith("layer 0: cut off. At step 40 in most examples or all exactly no")
    (told,) = verdict(found, RNN._replace(length=1))
    assert "one timestep only" in told


def test_a_loss_before_the_last_step_is_not_called_stable():
    forget = line(-0.1)
    paths = looked(forget, np.where(LAG == 0, -np.inf, forget))
    fed = LSTM._replace(earlier_steps_have_loss=True)
    (told,) = verdict(lstm_row(0.0, 0.0), fed, paths)
    assert told.startswith("layer 0: fed along the way.")
    assert "horizon" not in told
    assert "product" not in told  # beside a curve that is fed it says nothing
    assert "Through h goes 50 %" in told  # of the network, whatever the loss


def test_a_layer_below_another_one_is_fed_by_it():
    row = lstm_row()
    both = Row(40, {}, {name: np.repeat(array, 2, 0) for name, array in row.arrays.items()})
    lower, upper = verdict(both, LSTM._replace(layers=["0", "1"]))
    assert "The layer above feeds it at every step" in lower
    assert "The layer above" not in upper
    assert "product" in upper
    assert "product" not in lower
    each = verdict(both, LSTM._replace(layers=["0", "0 backward"]))
    assert not [told for told in each if "The layer above" in told]


@pytest.mark.parametrize(
    ("loss", "others", "who"),
    [
        (None, True, "where the loss or another layer reads it"),
        (None, False, "where the loss reads it"),
        (False, True, "where another layer reads it"),
    ],
)
def test_what_a_loop_does_not_say_is_not_taken_for_granted(loss, others, who):
    network = LSTM._replace(
        layers=["below"], earlier_steps_have_loss=loss, others_read_it=others, measured_by="A look"
    )
    (told,) = verdict(lstm_row(), network)
    assert f"{who} at earlier timesteps too, which is not known" in told
    assert "A look measures it" in told
    first = told.partition(": ")[2].partition(". ")[0]
    assert first.startswith("At step ")
    assert "the gradient loses" in first
    assert "which is not known" in told.split("came through time.")[0]
    assert not any(word in told for word in ("vanishing", "exploding", "stable", "uneven"))
    (told,) = verdict(lstm_row(), network._replace(earlier_steps_have_loss=True))
    assert "which is not known" not in told


def test_nothing_measured_nothing_said():
    assert verdict(Row(0, {}, {}), RNN) == []


def test_the_kind_rests_on_the_ends_and_the_line():
    assert kind_of(math.nan, -0.1, T) == "vanishing"  # nothing at lag 0
    assert kind_of(math.inf, -0.1, T) == "vanishing"
    assert kind_of(math.inf, 0.0, T) == "uneven"
    assert kind_of(4.3, -0.1, T) == "vanishing"
    assert kind_of(4.3, 0.0, T) == "uneven"
    assert kind_of(-4.3, 0.1, T) == "exploding"
    assert kind_of(-4.3, -0.1, T) == "uneven"
    assert kind_of(0.45, -0.008, T) == "stable"  # as far apart as nothing
    assert kind_of(math.inf, math.nan, T) == "cut off"


def test_the_score_names_its_step():
    baseline = {"test": {"name": "always 1", "loss": 0.5, "accuracy": None}}
    outcome = Outcome("finished", summary={"test/loss": 0.25, "best/step": 1200.0})
    description = Description("", {}, {}, {}, baseline)
    assert against_baseline(outcome, description) == [
        "test loss 0.25 of step 1,200 beats the baseline 0.5 (always 1)"
    ]
