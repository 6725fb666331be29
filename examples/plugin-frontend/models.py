"""Models to try the frontends with."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

RNG = np.random.default_rng(0)
WEIGHTS = {name: jnp.asarray(RNG.normal(0, 0.2, (32, 32)), jnp.float32) for name in ("query", "key", "value")}


def attention(x):
    """One head of self-attention over `x` [batch, length, 32]."""
    query, key, value = (x @ WEIGHTS[name] for name in ("query", "key", "value"))
    scores = jax.nn.softmax(query @ jnp.swapaxes(key, 1, 2) / jnp.sqrt(jnp.float32(32)), axis=-1)
    return x + scores @ value
