import jax
import jax.numpy as jnp
import pytest

from gradlab.training.memory import free


@pytest.mark.skipif(
    jax.default_backend() == "cpu", reason="needs a GPU, which has memory of its own"
)
def test_free_memory_of_a_gpu_is_its_own():
    device = jax.local_devices()[0]
    before = free(device)
    assert 2**30 < before < device.memory_stats()["bytes_limit"] + 1
    held = jax.block_until_ready(jnp.zeros(2**28, jnp.float32))
    assert before - free(device) >= held.nbytes
