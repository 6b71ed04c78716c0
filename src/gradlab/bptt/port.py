"""A way for a cotangent of any size from one layer to the one below, through somebody else's code.

Between two calls of :func:`gradlab.bptt.unroll.unroll` JAX adds up cotangents as plain numbers,
which end at 10^-38 in float32. A :class:`Port` goes along with the outputs of the lower one: the
upper one, which reads these outputs, hands their cotangent to the port.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from gradlab.bptt.scaling import Scaled


class Port(NamedTuple):
    """Zeros, whose cotangent is that of some outputs as a number with an exponent.

    What moves the entries of the outputs about may move these likewise.

    Attributes:
      mantissa: of the form of the outputs.
      exponent: one for each step and example; whole numbers, as floats.
    """

    mantissa: Any
    exponent: Any

    @classmethod
    def of(cls, outputs: jax.Array, dtype: Any) -> Port:
        """The port of outputs ``(T, B, ...)``; ``dtype`` is that of their cotangents."""
        return cls(jnp.zeros(outputs.shape, dtype), jnp.zeros(outputs.shape[:2]))

    @classmethod
    def holding(cls, number: Scaled) -> Port:
        """The cotangent of a port that was handed this number."""
        return cls(number.mantissa, number.exponent.astype(jnp.float32))

    def number(self) -> Scaled:
        """The number in the cotangent of a port, normalised."""
        return Scaled(self.mantissa, self.exponent.astype(jnp.int32)).normalise()


def is_nothing(cotangent: Any) -> bool:
    """Whether no gradient comes back there: JAX's own zeros, which take no calculation."""
    leaves = jax.tree.leaves(cotangent)
    return all(isinstance(leaf, jax.custom_derivatives.SymbolicZero) for leaf in leaves)


@jax.custom_vjp
def fork(port: Port) -> tuple[Port, Port]:
    """Two ports in place of one, for two readers: their cotangents are added as numbers."""
    return port, port


def _forked(port: Port) -> tuple[tuple[Port, Port], None]:
    port = jax.custom_derivatives.custom_vjp_primal_tree_values(port)
    return (port, port), None


def _joined(_: None, cotangents: tuple[Port, Port]) -> tuple[Port | None]:
    handed = [one for one in cotangents if not is_nothing(one)]
    if len(handed) == 2:
        handed = [Port.holding(handed[0].number().add(handed[1].number()))]
    return (handed[0] if handed else None,)


fork.defvjp(_forked, _joined, symbolic_zeros=True)
