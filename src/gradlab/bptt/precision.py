"""Matrix products in all the digits of float32, on an accelerator too."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import jax

P = ParamSpec("P")
R = TypeVar("R")


def in_all_digits(function: Callable[P, R]) -> Callable[P, R]:
    """The same function; what it multiplies while it is traced keeps the digits of its type.

    Left to itself JAX multiplies float32 with 10 bits behind the point (TF32) on a recent GPU, and
    with 8 (bfloat16) on a TPU. Products that say themselves how they are made, and a setting of
    ``jax_default_matmul_precision``, are left as they are.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        config: Any = jax.config  # whose type does not know its settings
        with jax.default_matmul_precision(config.jax_default_matmul_precision or "highest"):
            return function(*args, **kwargs)

    return call
