import jax
import jax.numpy as jnp
import pytest

from gradlab.experiment import build_steps
from gradlab.recording import describe
from gradlab.training.loop import Trainer
from gradlab.training.memory import free
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
    def segments(there, asked="auto", *earlier):
        monkeypatch.setattr("gradlab.experiment.free", lambda device: there)
        parts = experiment(trainer=Trainer(steps=1, batch=4, segments=asked))
        steps = build_steps(parts, *earlier)
        assert describe(parts, steps).facts.get("segments") == steps.segments
        return steps.segments

    states = 4 * 8 * 4 * 2 * 5  # bytes: float32, T, B, c and h
    assert segments(4 * states) is None
    assert not caplog.messages
    assert segments(4 * states - 4) == 2  # about the root of 8
    assert "cut into 2 segments" in caplog.text
    assert segments(1, None) is None
    assert segments(2**60, 4) == 4
    assert segments(2**60, "auto", 4) == 4  # resumed, as it was
    assert segments(1, "auto", None) is None
