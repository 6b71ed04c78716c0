"""The matrix products of a step alone, in a scan forward and one back: what is left to a kernel.

Forward: the inputs and h by their kernels. Back: the adjoint by the recurrent kernel, and the
gradients of both kernels. No activation function, no bias, no update. ``-split``: over devices.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from benchmarks import problem
from benchmarks.contestants import share
from benchmarks.problem import BLOCKS, Size


class Floor:
    """See above."""

    def __init__(self, name: str, cell: str, size: Size):
        own, blocks = problem.weights(cell, size), BLOCKS[cell]
        inputs, _ = problem.batch(size)

        def products(kernel, recurrent, inputs):
            def forward(h, x):
                wide = x @ kernel + h @ recurrent
                return wide[:, : size.H], h

            def back(carry, went):
                (x, h), (adjoint, by_kernel, by_recurrent) = went, carry
                wide = jnp.concatenate([adjoint] * blocks, axis=-1)
                by_kernel, by_recurrent = by_kernel + x.T @ wide, by_recurrent + h.T @ wide
                return (wide @ recurrent.T, by_kernel, by_recurrent), None

            start = jnp.zeros((inputs.shape[1], size.H))
            last, before = jax.lax.scan(forward, start, inputs)
            carry = (last, jnp.zeros_like(kernel), jnp.zeros_like(recurrent))
            (_, *grads), _ = jax.lax.scan(back, carry, (inputs, before), reverse=True)
            return jax.lax.pmean(grads, "data") if split else grads

        split = name.endswith("-split")
        if split:
            devices = np.array(jax.devices()[: share(size.B, jax.device_count())])
            specs = (P(), P(), P(None, "data"))
            mesh = Mesh(devices, ("data",))
            keys = {"mesh": mesh, "in_specs": specs, "out_specs": P(), "check_vma": False}
            products = jax.shard_map(products, **keys)
        small = [0.1 * jnp.asarray(own[key]) for key in ("kernel", "recurrent")]
        self.arrays = (*small, jnp.asarray(inputs))
        self.step = jax.jit(products).lower(*self.arrays).compile()
        if split:
            self.arrays = jax.device_put(self.arrays, self.step.input_shardings[0])

    def first(self) -> None:
        """It computes neither loss nor gradient."""
        self.run(1)

    def run(self, steps: int) -> None:
        """See :class:`benchmarks.contestants.Contestant`."""
        for _ in range(steps):
            jax.block_until_ready(self.step(*self.arrays))

    def temporaries(self) -> int:
        """See there."""
        return self.step.memory_analysis().temp_size_in_bytes


make = Floor
