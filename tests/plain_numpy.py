# SPDX-License-Identifier: Apache-2.0
"""A second implementation of the model from the papers, in plain NumPy, for comparison."""

import jax
import numpy as np
from scipy.special import erf


def naive_encoder(config, params, x_LD, causal):
    """One unpadded history, [L, D] -> [L, D], in float64."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    x = np.asarray(x_LD, np.float64)
    if config.scale_embeddings:
        x = x * config.width**0.5
    if config.positions != "rotary":
        places = np.arange(len(x))
        if config.positions == "right":
            places = places[::-1]
        x = x + p["position_embedding"][places]
    if config.norm == "post":
        x = norm(x, p["embedding_norm"])
    for layer in range(config.layers):
        x = block(config, x, p[f"block_{layer}"], causal)
    if config.norm == "pre":
        x = norm(x, p["final_norm"])
    if config.head == "transform":
        x = norm(gelu(dense(x, p["head_dense"])), p["head_norm"])
    return x


def block(config, x, q, causal):
    """Attention and feed-forward network with residuals."""
    if config.norm == "post":
        x = norm(x + attention(config, x, q["attention"], causal), q["attention_norm"])
        return norm(x + feed_forward(x, q), q["ffn_norm"])
    x = x + attention(config, norm(x, q["attention_norm"]), q["attention"], causal)
    return x + feed_forward(norm(x, q["ffn_norm"]), q)


def attention(config, x, q, causal):
    """Softmax attention of each head, followed by a dense layer."""
    heads = []
    size = config.width // config.heads
    queries = dense(x, q["query"])
    keys, values = np.split(dense(x, q["key_value"]), 2, axis=-1)
    for head in range(config.heads):
        part = slice(head * size, (head + 1) * size)
        query = queries[:, part]
        key = keys[:, part]
        if config.positions == "rotary":
            query = rotated(query)
            key = rotated(key)
        scores = query @ key.T / np.sqrt(size)
        if causal:
            scores[np.triu_indices(len(x), 1)] = -np.inf
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        heads.append(weights / weights.sum(-1, keepdims=True) @ values[:, part])
    return dense(np.concatenate(heads, -1), q["out"])


def rotated(x):
    """RoFormer's equation 14, with complex numbers for its pairs."""
    half = x.shape[1] // 2
    angles = np.outer(np.arange(len(x)), 1000.0 ** (-np.arange(half) / half))
    pairs = (x[:, :half] + 1j * x[:, half:]) * np.exp(1j * angles)
    return np.concatenate([pairs.real, pairs.imag], axis=1)


def feed_forward(x, q):
    """Two dense layers with GELU in between."""
    return dense(gelu(dense(x, q["ffn_in"])), q["ffn_out"])


def dense(x, q):
    """An affine map."""
    return x @ q["kernel"] + q["bias"]


def norm(x, q):
    """LayerNorm."""
    centred = x - x.mean(-1, keepdims=True)
    variance = (centred**2).mean(-1, keepdims=True)
    return centred / np.sqrt(variance + 1e-12) * q["scale"] + q["bias"]


def gelu(x):
    """The exact GELU."""
    return 0.5 * x * (1 + erf(x / np.sqrt(2)))
