import jax


def draw(task, seed, batch):
    """``batch`` training examples, drawn as a training step draws them: compiled."""
    sample = jax.jit(task.sample, static_argnames="batch")
    return sample(task.data, jax.random.key(seed), batch=batch)
