"""How a network is trained: one step, one run, many together, and when to stop."""
