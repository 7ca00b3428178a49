# SPDX-License-Identifier: Apache-2.0
"""Comparison of an exported ONNX file with the model that it was made from."""

from typing import NamedTuple

import numpy as np

from bert4rec_jax.serving.recommender import Recommender

TOP = 10
_BATCH = 32


class Comparison(NamedTuple):
    """Differences between an exported file and its model.

    Attributes:
      histories: number of histories compared.
      same_top: share of histories with the same `TOP` items in the same order.
      same_items: share of the best `TOP` items that both lists contain, in any order.
      largest: largest difference between two scores at the same place of a list.
    """

    histories: int
    same_top: float
    same_items: float
    largest: float


def random_histories(recommender: Recommender, count: int) -> list[list[int]]:
    """Returns reproducible histories, from one item to more than the model reads."""
    generator = np.random.Generator(np.random.Philox(key=[0, 0]))
    longest = min(recommender.config.model.max_history + 5, recommender.num_items - 1)
    lengths = generator.integers(1, longest + 1, count)
    shuffled = (generator.permutation(recommender.num_items) + 1 for _ in lengths)
    return [items[:length].tolist() for items, length in zip(shuffled, lengths)]


def pad_left(histories: list[list[int]]) -> np.ndarray:
    """Returns int32[histories, longest], with zeros before shorter histories."""
    longest = max(len(history) for history in histories)
    padded = np.zeros((len(histories), longest), np.int32)
    for row, history in zip(padded, histories):
        row[longest - len(history) :] = history
    return padded


def compare(path: str, recommender: Recommender, count: int) -> Comparison:
    """Runs an exported file with onnxruntime, and the model itself, on random histories.

    Args:
      path: the ONNX file.
      recommender: the run that was exported.
      count: number of histories.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    histories = random_histories(recommender, count)
    k = min(TOP, recommender.num_items)
    same_top = 0
    same_items = 0
    places = 0
    largest = 0.0
    for first in range(0, count, _BATCH):
        batch = histories[first : first + _BATCH]
        feed = {"history": pad_left(batch), "k": np.array([k])}
        items, scores = session.run(["items", "scores"], feed)
        for row, expected in enumerate(recommender.recommend_numbers(batch, k, include_seen=False)):
            numbers = [entry.number for entry in expected]
            found = items[row, : len(numbers)].tolist()
            differences = scores[row, : len(numbers)] - [entry.score for entry in expected]
            same_top += numbers == found
            same_items += len(set(numbers) & set(found))
            places += len(numbers)
            largest = max(largest, float(np.abs(differences).max()))
    return Comparison(count, same_top / count, same_items / places, largest)
