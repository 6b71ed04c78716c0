"""Where measurements go: the run directory, W&B, the terminal, the figures."""
