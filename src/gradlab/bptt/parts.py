"""A module taken apart: what is fixed, its parameters by name, and whatever else it holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
from flax import nnx

Params = Mapping[str, jax.Array]
"""Parameters, or their gradients, by name."""


class Parts(NamedTuple):
    """A module in three parts.

    Attributes:
      graph: what a compiled program depends on.
      params: its parameters, an ``nnx.State``.
      rest: its other arrays, likewise.
    """

    graph: Any
    params: Any
    rest: Any

    @classmethod
    def of(cls, module: nnx.Module) -> Parts:
        """The parts of a module."""
        return cls(*nnx.split(module, nnx.Param, ...))

    def leaves(self) -> list[jax.Array]:
        """Its arrays, the parameters first."""
        return jax.tree.leaves(self[1:])

    def with_leaves(self, leaves: Sequence[Any]) -> Parts:
        """The same with other arrays."""
        return Parts(self.graph, *jax.tree.unflatten(jax.tree.structure(self[1:]), leaves))

    def module(self) -> Any:
        """The module; a copy of its own, so that a trace cannot leak into it."""
        return nnx.merge(*self, copy=True)

    def with_params(self, params: Params, prefix: str = "") -> Any:
        """The module with the parameters of these names in place of its own."""
        leaves = [params[prefix + name] for name in names_of(self.params)]
        own = jax.tree.unflatten(jax.tree.structure(self.params), leaves)
        return self._replace(params=own).module()


def names_of(params: nnx.State) -> list[str]:
    """Names like ``layers/0/0/dense_h/kernel`` of parameters, in the order of the leaves."""
    return ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(params)]


def by_name(params: Any, prefix: str = "") -> dict[str, jax.Array]:
    """The leaves of parameters, gradients or updates by :func:`names_of`, after a prefix."""
    names = [prefix + name for name in names_of(params)]
    return dict(zip(names, jax.tree.leaves(params), strict=True))
