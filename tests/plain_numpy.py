# SPDX-License-Identifier: Apache-2.0
"""The model written a second time, from the papers, in plain NumPy: what the fast one must agree with."""

import jax
import numpy as np


def naive_encoder(c, params, x_LD, causal):
    """One unpadded history, [L, D] -> [L, D], written from the papers with NumPy in float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    dense = lambda x, q: x @ q["kernel"] + q["bias"]  # noqa: E731

    def norm(x, q):
        centred = x - x.mean(-1, keepdims=True)
        return (
            centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12) * q["scale"] + q["bias"]
        )

    def gelu(x):
        from scipy.special import erf

        return 0.5 * x * (1 + erf(x / np.sqrt(2)))

    def turned(x):
        """RoFormer's equation 14, with complex numbers for its pairs."""
        half = x.shape[1] // 2
        angles = np.outer(np.arange(len(x)), 1000.0 ** (-np.arange(half) / half))
        pairs = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angles)
        return np.concatenate([pairs.real, pairs.imag], axis=1)

    def attention(x, q):
        heads = []
        size = c.width // c.heads
        for head in range(c.heads):
            part = slice(head * size, (head + 1) * size)
            key, value = np.split(dense(x, q["key_value"]), 2, axis=-1)
            query, key, value = dense(x, q["query"])[:, part], key[:, part], value[:, part]
            if c.positions == "rotary":
                query, key = turned(query), turned(key)
            scores = query @ key.T / np.sqrt(size)
            if causal:
                scores[np.triu_indices(len(x), 1)] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            heads.append(weights / weights.sum(-1, keepdims=True) @ value)
        return dense(np.concatenate(heads, -1), q["out"])

    def feed_forward(x, q):
        return dense(gelu(dense(x, q["ffn_in"])), q["ffn_out"])

    x = np.asarray(x_LD, np.float64) * (c.width**0.5 if c.scale_embeddings else 1)
    if c.positions != "rotary":
        places = np.arange(len(x)) if c.positions == "left" else np.arange(len(x))[::-1]
        x = x + p["position_embedding"][places]
    if c.norm == "post":
        x = norm(x, p["embedding_norm"])
    for layer in range(c.layers):
        q = p[f"block_{layer}"]
        if c.norm == "post":
            x = norm(x + attention(x, q["attention"]), q["attention_norm"])
            x = norm(x + feed_forward(x, q), q["ffn_norm"])
        else:
            x = x + attention(norm(x, q["attention_norm"]), q["attention"])
            x = x + feed_forward(norm(x, q["ffn_norm"]), q)
    if c.norm == "pre":
        x = norm(x, p["final_norm"])
    return norm(gelu(dense(x, p["head_dense"])), p["head_norm"]) if c.head == "transform" else x
