"""A training step's sightings, made up: for the oracles of the probes."""

import jax.numpy as jnp
import numpy as np

from gradlab.probes.base import Seen, Setting

L, T, B, H = 2, 7, 5, 3
SETTING = Setting("LSTM", ("c", "h"), ("i", "f", "o"), "f")


def make_seen(*, masked: bool = False, zeros: bool = False) -> Seen:
    rng = np.random.default_rng(0)
    adjoints = {name: rng.normal(-200, 150, (L, T, B)) for name in ("c", "h")}
    if zeros:
        adjoints["h"][0, 2] = -np.inf
        adjoints["h"][1, :, 0] = -np.inf
    mask = np.ones((L, T, B), bool)
    if masked:
        mask = np.broadcast_to(np.arange(T)[:, None] < np.array([7, 5, 3, 6, 1]), (L, T, B))
    gates = {name: rng.uniform(0, 1, (L, T, B, H)) for name in ("i", "f", "o")}
    arrays = {"w": rng.normal(size=(4, 3)), "b": np.zeros(3)}
    to_jax = lambda d: {k: jnp.asarray(v, jnp.float32) for k, v in d.items()}  # noqa: E731
    return Seen(
        adjoints=to_jax(adjoints),
        mask=jnp.asarray(mask),
        gates=to_jax(gates),
        retention=jnp.asarray(gates["f"], jnp.float32),
        params=to_jax(arrays),
        grads=to_jax({k: rng.normal(size=v.shape) * 1e-25 for k, v in arrays.items()}),
        clipped=to_jax({k: rng.normal(size=v.shape) for k, v in arrays.items()}),
        updates=to_jax({k: rng.normal(size=v.shape) * 1e-3 for k, v in arrays.items()}),
    )
