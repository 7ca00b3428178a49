# SPDX-License-Identifier: Apache-2.0
"""An exported ONNX file beside the model that it was made from."""

from typing import NamedTuple

import numpy as np

from bert4rec_jax.export.stablehlo import room_of
from bert4rec_jax.serving.recommender import Recommender

TOP = 10


class Comparison(NamedTuple):
    """How an exported file differs from its model.

    Attributes:
      histories: how many were compared.
      same_top: share of them with the same best `TOP` items in the same order.
      same_items: share of the best `TOP` items that are the same, whatever their order.
      largest: difference between two scores of a best item, at most.
    """

    histories: int
    same_top: float
    same_items: float
    largest: float


def random_histories(recommender: Recommender, count: int) -> list[list[int]]:
    """Returns histories of item numbers, from a single item to more than the model reads; the same at every call."""
    generator = np.random.Generator(np.random.Philox(key=[0, 0]))
    longest = min(room_of(recommender.config.model) + 5, recommender.num_items - 1)
    lengths = generator.integers(1, longest + 1, count)
    return [
        (generator.permutation(recommender.num_items)[:length] + 1).tolist() for length in lengths
    ]


def compare(path: str, recommender: Recommender, count: int) -> Comparison:
    """Runs an exported file with onnxruntime and the model itself on random histories.

    Args:
      path: of the file.
      recommender: the run that it was made from.
      count: how many histories.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    histories = random_histories(recommender, count)
    k = min(TOP, recommender.num_items)
    expected = recommender.recommend(histories, k)
    same_top, same_items, places, largest = 0, 0, 0, 0.0
    for first in range(0, count, 32):
        part = histories[first : first + 32]
        padded = np.zeros((len(part), max(map(len, part))), np.int32)
        for row, history in zip(padded, part):
            row[len(row) - len(history) :] = history
        items, scores = session.run(["items", "scores"], {"history": padded, "k": np.array([k])})
        for wanted, got, its in zip(expected[first:], items, scores):
            got, its = got[: len(wanted)].tolist(), its[: len(wanted)]
            numbers = [r.number for r in wanted]
            same_top += numbers == got
            same_items += len(set(numbers) & set(got))
            places += len(wanted)
            largest = max(largest, float(np.abs(its - [r.score for r in wanted]).max()))
    return Comparison(count, same_top / count, same_items / places, largest)
