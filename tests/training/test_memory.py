import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from gradlab.analysis import probe_class, probe_names
from gradlab.cells import LSTM
from gradlab.experiment import build_steps
from gradlab.model import SequenceModel
from gradlab.recording import describe
from gradlab.tasks import Adding
from gradlab.training.loop import Trainer
from gradlab.training.memory import free
from gradlab.training.optimizer import Optimizer
from gradlab.training.step import Steps
from tests.experiments import experiment


@pytest.mark.skipif(
    jax.default_backend() == "cpu", reason="needs a GPU, which has memory of its own"
)
def test_free_memory_of_a_gpu_is_its_own():
    device = jax.local_devices()[0]
    before = free(device)
    assert 2**30 < before < device.memory_stats()["bytes_limit"] + 1
    held = jax.block_until_ready(jnp.zeros(2**28, jnp.float32))
    assert before - free(device) >= held.nbytes


def test_time_is_cut_where_the_states_would_take_a_quarter_of_the_memory(monkeypatch, caplog):
    def segments(there, asked="auto", **earlier):
        monkeypatch.setattr("gradlab.experiment.free", lambda device: there)
        parts = experiment(trainer=Trainer(steps=1, batch=4, segments=asked))
        steps = build_steps(parts, **earlier)
        assert describe(parts, steps).facts.get("segments") == steps.segments
        return steps.segments

    states = 4 * 8 * 4 * 2 * 5  # bytes: float32, T, B, c and h
    assert segments(4 * states) is None
    assert not caplog.messages
    assert segments(4 * states - 4) == 2  # about the root of 8
    assert "cut into 2 segments" in caplog.text
    assert segments(1, None) is None
    assert segments(2**60, 4) == 4
    assert segments(2**60, segments=4) == 4  # resumed, as it was
    assert segments(1, segments=None) is None


def temporaries(steps, batch, hidden, segments=None):
    """Bytes that a training step takes besides, plain and with all standard probes."""
    task, sizes = Adding(length=steps, held_out_examples=2), {"features": 2, "hidden": hidden}
    sizes |= {"layers": 1, "outputs": 1, "readout": "last"}
    model = SequenceModel(LSTM, **sizes, rngs=nnx.Rngs(0))
    probes = {name: probe_class(name)() for name in probe_names()}
    probes = {name: probe for name, probe in probes.items() if probe.preset == "standard"}
    optimizer = Optimizer(optax.adam, steps=9, learning_rate=0.1, clip_norm=1.0)
    own = Steps(model, task, optimizer, probes, batch, segments=segments)
    state = own.start(jax.random.key(0))
    programs = (
        jax.jit(own.advance).lower(state, (), np.int32(1)),
        jax.jit(own.probe).lower(state, ()),
    )
    return [program.compile().memory_analysis().temp_size_in_bytes for program in programs]


@pytest.mark.slow
def test_measuring_takes_memory_of_order_t_times_b_whatever_the_width():
    def extra(*sizes):
        plain, measured = temporaries(*sizes)
        return measured - plain

    base, number = extra(400, 64, 32), 4 * 400 * 64  # of one array (T, B)
    assert 0 < base < 12 * number
    # By the unit there are a few arrays (T, H), and none (T, B, H), which would be 32 of these.
    assert abs(extra(400, 64, 64) - base) < 4 * number
    assert extra(800, 64, 32) == pytest.approx(2 * base, rel=0.2)
    assert extra(400, 128, 32) == pytest.approx(2 * base, rel=0.4)


@pytest.mark.slow
def test_a_hundred_thousand_steps_are_measured_within_six_gibibytes():
    _, measured = temporaries(100_000, 256, 128, segments=320)
    assert measured < 6 * 2**30
