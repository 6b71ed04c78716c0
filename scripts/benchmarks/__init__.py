"""What ``scripts/benchmark.py`` is made of.

- ``problem``: the training step that all contestants make: its sizes, first weights and batch.
- ``reference``: its loss and gradient in numpy, in float64, written out by hand.
- ``contestants``: who makes it, a small file each.
- ``process``: a contestant's own process, told by pipe to make so many steps.
- a table each, with ``measure(options) -> found`` and ``show(found) -> Markdown``: ``steps``,
  ``growth``, ``memory``, ``runs``, ``cold_start``, ``population``, ``probes``, ``watch``,
  ``compare_page``.
- ``machine``: what it ran on, and what else ran beside.
- ``flax_loop``: a plain loop in Flax and optax, as a command.

Nothing here imports JAX, PyTorch or Keras before it is needed.
"""
