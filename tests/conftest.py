import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # before the first import of jax
