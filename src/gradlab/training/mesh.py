"""One run over several devices, of one process or of several: each batch is split between them.

Everything but the examples of a batch is the same on every device: parameters, optimizer, random
key. Each device takes the gradient of its own rows, and the mean over devices is formed once a
step, so that both the update and what is recorded are those of the whole batch. (Left to the
compiler, the gradient would be summed over devices once a timestep, inside the backward scan.)

A cell that looks at its batch sees the rows of its device alone: a batch normalisation takes their
statistics, of which the mean over devices is kept, and each device draws random numbers of its own.
Both are the same at every repetition, and other than on one device.

A process can read an array that is whole on its devices; so whatever a compiled function hands
out is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.flatten_util import ravel_pytree
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from gradlab.errors import BadInput
from gradlab.tasks.base import Batch

AXIS = "data"
_log = logging.getLogger(__name__)


class DataMesh:
    """The devices that a run is spread over.

    Args:
      mesh: of one axis, named ``AXIS``; None for a run on the default device, where every method
        gives back what it is given.
      reason: why ``trainer.mesh=auto`` splits no batch; empty where it does, or was not asked.
    """

    def __init__(self, mesh: Mesh | None = None, reason: str = ""):
        self.mesh, self.reason = mesh, reason
        self.devices = 1 if mesh is None else mesh.size
        self.processes = 1 if mesh is None else len({d.process_index for d in mesh.devices.flat})

    def jit(self, function: Callable[..., Any], **options: Any) -> Any:
        """``jax.jit`` with ``options``, and with results that are whole on every device."""
        sharding = self._whole()
        if sharding is not None:
            options["out_shardings"] = sharding
        return jax.jit(function, **options)

    def _whole(self) -> NamedSharding | None:
        return None if self.mesh is None else NamedSharding(self.mesh, P())

    def replicate(self, tree: Any) -> Any:
        """Arrays that every process has, as arrays that are whole on every device."""
        sharding = self._whole()
        if sharding is None:
            return tree

        def everywhere(leaf: Any) -> jax.Array:
            if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
                data = everywhere(jax.random.key_data(leaf))
                return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
            host = np.asarray(leaf)
            return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])

        return jax.tree.map(everywhere, tree)

    def place(self, tree: Any) -> Any:
        """Arrays of the host, the same in every process, on the device or whole on every one."""
        return jax.device_put(tree) if self.mesh is None else self.replicate(tree)

    def of_first(self, tree: Any) -> Any:
        """Arrays that are whole on every device, as those of the first alone; nothing is copied.

        Of several processes each keeps to all: they go through every call together.
        """
        if self.mesh is None or self.processes > 1:
            return tree
        return jax.tree.map(lambda leaf: leaf.addressable_data(0), tree)

    def whole(self, tree: Any) -> Any:
        """Within a compiled function: what is computed from ``tree`` is computed on each device."""
        sharding = self._whole()
        return tree if sharding is None else lax.with_sharding_constraint(tree, sharding)

    def over_batch(
        self, function: Callable[[Any, Batch], tuple[Any, Any]], rows: Any = ()
    ) -> Callable[[Any, Batch], tuple[Any, Any]]:
        """The same function, with each device at its own rows of the batch.

        Args:
          function: ``(params, batch) -> (means, each)``: means over the examples of the batch, and
            arrays with a row for each example. Of whole numbers among the means, such as a count,
            the first device's hold.
          rows: the axis of the examples in ``each``, a tree of numbers that is a prefix of it; -1
            for what has none, of which the first device's hold.

        Returns:
          A function of the whole batch: the means over it, and the rows of all of its examples. The
          batch must divide by :attr:`devices`.
        """
        mesh = self.mesh
        if mesh is None:
            return function

        def own_rows(params: Any, batch: Batch) -> tuple[Any, Any]:
            means, each = function(params, batch)
            return _mean(means), each

        def split(params: Any, batch: Batch) -> tuple[Any, Any]:
            # Without check_vma: with it, every use of the parameters within the scan would count
            # as one that the devices share, and its gradient be summed there.
            return jax.shard_map(
                own_rows,
                mesh=mesh,
                in_specs=(P(), jax.tree.map(_at, _axes(batch))),
                out_specs=(P(), jax.tree.map(_at, rows)),
                check_vma=False,
            )(params, batch)

        return split

    def own_key(self, key: jax.Array) -> jax.Array:
        """Within :meth:`over_batch`: a random key that is this device's own, made from ``key``."""
        return key if self.mesh is None else jax.random.fold_in(key, lax.axis_index(AXIS))

    def agree(self, number: int) -> int:
        """The largest of the numbers that the processes bring, the same for all of them.

        Every process must call it at the same point; it waits for the others.
        """
        if self.processes == 1:
            return number
        from jax.experimental.multihost_utils import process_allgather

        return int(np.max(process_allgather(np.int32(number))))


ONE_DEVICE = DataMesh()


def mesh_of(kind: str | None, batch: int) -> DataMesh:
    """The mesh that ``trainer.mesh`` names.

    Args:
      kind: ``"data"``: over all devices of all processes; None: one device.
      batch: ``B``, examples per update.

    Raises:
      BadInput: if the batch cannot be split evenly.
    """
    if kind is None:
        return ONE_DEVICE
    devices = jax.device_count()
    if devices == 1:
        _log.warning("trainer.mesh=%s: there is one device, so the run is as without", kind)
        return ONE_DEVICE
    if batch % devices:
        below = batch // devices * devices
        near = [size for size in (below, below + devices) if size]
        hint = " or ".join(f"trainer.batch={size}" for size in near)
        allowed = f"a multiple of {devices}, the devices that trainer.mesh={kind} splits it over"
        raise BadInput("trainer.batch", batch, allowed, hint)
    return DataMesh(jax.make_mesh((devices,), (AXIS,), axis_types=(AxisType.Auto,)))


PAYS = 2e6
"""Multiply-adds of a device's own rows, forward, from which it is worth a device of its own."""


def best_mesh(batch: int, work: float, kept: int | None = None) -> DataMesh:
    """The mesh of ``trainer.mesh=auto``: never an error.

    On a CPU it is the largest number of the process's devices that divides the batch and leaves
    each of them :data:`PAYS` multiply-adds a step; where there is none, one device. Below that the
    message between devices, some 0.2 ms a step, costs more than the second core gains. On an
    accelerator it is one device, since nobody has measured yet what a network of this kind gains by
    several, and the others may be somebody else's.

    Args:
      batch: ``B``, examples per update.
      work: multiply-adds of the forward pass of one example; 0 for what must not be split.
      kept: over how many devices a run was split that is resumed: so it is again, if it can be.
    """
    devices = jax.local_devices()
    if devices[0].platform != "cpu" or jax.process_count() > 1:
        return ONE_DEVICE
    fitting = [n for n in range(1, len(devices) + 1) if batch % n == 0]
    if kept in fitting:
        many, reason = kept, "as in the run that is resumed"
    elif len(devices) == 1:
        many, reason = 1, "there is one core for it"
    elif len(fitting) == 1:
        many, reason = 1, f"a batch of {batch} does not divide over {len(devices)} cores or fewer"
    else:
        many = max((n for n in fitting if batch // n * work >= PAYS), default=1)
        reason = (
            "one core is faster" if work else "it would not train in the same way, or no faster"
        )
    if many == 1:
        return DataMesh(reason=reason)
    axis = (AxisType.Auto,)
    return DataMesh(jax.make_mesh((many,), (AXIS,), axis_types=axis, devices=devices[:many]))


def _mean(tree: Any) -> Any:
    """The mean over devices: of each type of number one message, however many arrays."""
    leaves, structure = jax.tree.flatten(tree)
    for dtype in dict.fromkeys(leaf.dtype for leaf in leaves):
        places = [i for i, leaf in enumerate(leaves) if leaf.dtype == dtype]
        flat, restore = ravel_pytree([leaves[i] for i in places])
        if jnp.issubdtype(dtype, jnp.inexact):
            flat = lax.pmean(flat, AXIS)
        else:
            flat = lax.all_gather(flat, AXIS)[0]
        for i, leaf in zip(places, restore(flat), strict=True):
            leaves[i] = leaf
    return structure.unflatten(leaves)


def _axes(batch: Batch) -> Batch:
    """Where the examples are in each part of a batch."""
    every_step = batch.weights is not None
    axes: list[Any] = [
        1,
        1 if every_step else 0,
        1 if every_step else None,
        None if batch.mask is None else 1,
    ]
    return Batch(*axes)


def _at(axis: int) -> P:
    return P() if axis < 0 else P(*[None] * axis, AXIS)
