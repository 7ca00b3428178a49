# SPDX-License-Identifier: Apache-2.0
"""A trained model as one ONNX file that maps a history to the best items and to all scores.

The graph is `ranking.item_scores` in translation. Nodes before it take the newest part of the
history and append [MASK]; nodes after it remove seen items and select the best. Weights above 1.5
GB go to a second file, because protobuf ends at 2 GB.
"""

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from jax import export
from onnx import ModelProto, TensorProto, helper

from bert4rec_jax.config import ModelConfig
from bert4rec_jax.export.jaxpr_to_onnx import OPSET, Graph, translate
from bert4rec_jax.export.model_function import score_histories, weight_names
from bert4rec_jax.files import replacing
from bert4rec_jax.model import mask_token
from bert4rec_jax.ranking.score_results import CANDIDATE_THRESHOLD, REMOVED_SCORE

_INLINE_BYTES = 1_500_000_000
_TO_THE_END = np.iinfo(np.int64).max
# The oldest version of the format with these operations: runtimes reject files newer than
# themselves.
_IR_VERSION = 9


def write(
    path: str,
    config: ModelConfig,
    num_items: int,
    params: Any,
    table_dtype: str = "float32",
    inline_bytes: int = _INLINE_BYTES,
) -> list[str]:
    """Writes the model; the README that `readme` writes describes its inputs and outputs.

    Args:
      path: the file, `model.onnx`.
      config: the model's configuration; the exported model always computes in float32.
      num_items: size of the catalogue.
      params: as in a checkpoint.
      table_dtype: storage of the item table: `float32`, `float16`, or `int8` with one scale per
        row.
      inline_bytes: weights larger than this in total are written to `path` + `.data`.

    Returns:
      The files written.
    """
    config = dataclasses.replace(config, dtype="float32")
    graph = Graph({"b": "batch_size", "l": "length"})
    names = weight_names(params)
    leaves = [np.asarray(leaf, np.float32) for leaf in jax.tree.leaves(params)]
    weights = dict(zip(names, leaves, strict=True))
    table_name = next(name for name in names if name.endswith("items.embedding"))
    stored_table, table = _store_table(graph, table_name, weights.pop(table_name), table_dtype)

    history = _checked_history(graph, num_items)
    _add_tokens(graph, history, config, num_items)
    batch, length = export.symbolic_shape("b, l")
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, jnp.float32), params)
    (scores,) = translate(
        graph,
        lambda params, tokens: score_histories(config, num_items, params, tokens),
        (shapes, jax.ShapeDtypeStruct((batch, length), jnp.int32)),
        [*(table if name == table_name else name for name in names), "tokens"],
    )
    _add_outputs(graph, history, scores, num_items)
    return _save(path, graph, weights | stored_table, inline_bytes)


def _store_table(
    graph: Graph, name: str, table_VD: np.ndarray, dtype: str
) -> tuple[dict[str, np.ndarray], str]:
    """Returns the tensors to store, and the name of the float32 table computed from them."""
    if dtype == "float32":
        return {name: table_VD}, name
    if dtype == "float16":
        return {name: table_VD.astype(np.float16)}, graph.add("Cast", name, to=TensorProto.FLOAT)
    largest_V = np.abs(table_VD).max(axis=1)
    scale_V = np.maximum(largest_V / 127, np.finfo(np.float32).tiny).astype(np.float32)
    rounded_VD = np.clip(np.rint(table_VD / scale_V[:, None]), -127, 127).astype(np.int8)
    scale = f"{name}.scale"
    table = graph.add("DequantizeLinear", name, scale, axis=0)
    return {name: rounded_VD, scale: scale_V}, table


def _checked_history(graph: Graph, num_items: int) -> str:
    """Returns `history` int32[B, N] with an invalid index for ids outside the catalogue.

    ONNX cannot raise errors, but the table lookup then fails instead of reading another row.
    """
    below = graph.add("Less", "history", graph.constant(0, np.int32))
    above = graph.add("Greater", "history", graph.constant(num_items, np.int32))
    outside = graph.add("Or", below, above)
    invalid = graph.constant(np.iinfo(np.int32).max, np.int32)
    return graph.add("Where", outside, invalid, "history")


def _add_tokens(graph: Graph, history: str, config: ModelConfig, num_items: int) -> None:
    """Computes `tokens` int32[B, L], `batch_size` and `length` from the history."""
    zero = graph.integers(0)
    one = graph.integers(1)
    start = graph.integers(-config.max_history)
    recent = graph.add("Slice", history, start, graph.integers(_TO_THE_END), one)
    graph.add("Slice", graph.add("Shape", history), zero, one, output="batch_size")
    if config.appends_mask:
        column_shape = graph.add("Concat", "batch_size", one, axis=0)
        token = graph.constant([[mask_token(num_items)]], np.int32)
        mask_column = graph.add("Expand", token, column_shape)
        graph.add("Concat", recent, mask_column, axis=1, output="tokens")
    else:
        graph.add("Identity", recent, output="tokens")
    graph.add("Slice", graph.add("Shape", "tokens"), one, graph.integers(2), output="length")


def _add_outputs(graph: Graph, history: str, scores: str, num_items: int) -> None:
    """Computes the outputs from the history and the scores float32[B, V]."""
    zero = graph.constant(0, np.int64)
    one = graph.integers(1)
    log_total = graph.add("ReduceLogSumExp", scores, one, keepdims=1)
    # Zeros in front of a history remove row 0, which is padding.
    seen = graph.add("Cast", history, to=TensorProto.INT64)
    removed = graph.constant(np.float32(REMOVED_SCORE))
    updates = graph.add("Expand", removed, graph.add("Shape", history))
    left = graph.add("ScatterElements", scores, seen, updates, axis=1)
    graph.add(
        "Slice", left, graph.integers(0), graph.integers(num_items + 1), one, output="all_scores"
    )
    # TopK fails if k exceeds the number of columns.
    lacking = graph.add("Sub", "k", graph.integers(num_items + 1))
    padding = graph.add("Max", lacking, graph.integers(0))
    pads = graph.add("Concat", graph.integers(0, 0, 0), padding, axis=0)
    padded = graph.add("Pad", "all_scores", pads, removed)
    graph.nodes.append(helper.make_node("TopK", [padded, "k"], ["scores", "best"], axis=1))
    exists = graph.add("Greater", "scores", graph.constant(np.float32(CANDIDATE_THRESHOLD)))
    graph.add("Where", exists, "best", zero, output="items")
    graph.add("Exp", graph.add("Sub", "scores", log_total), output="probabilities")


def _save(path: str, graph: Graph, weights: dict[str, np.ndarray], inline_bytes: int) -> list[str]:
    """Writes the graph and its weights; returns the files."""
    total_bytes = sum(array.nbytes for array in weights.values())
    if total_bytes <= inline_bytes:
        tensors = [_tensor(name, array) for name, array in weights.items()]
        for tensor, array in zip(tensors, weights.values()):
            tensor.raw_data = np.ascontiguousarray(array).tobytes()
        model = _model(graph, tensors)
        onnx.checker.check_model(model)
        with replacing(path, "wb") as file:
            file.write(model.SerializeToString())
        return [path]

    data_path = path + ".data"
    tensors = []
    with replacing(data_path, "wb") as file:
        for name, array in weights.items():
            tensor = _tensor(name, array)
            tensor.data_location = TensorProto.EXTERNAL
            tensor.external_data.add(key="location", value=os.path.basename(data_path))
            tensor.external_data.add(key="offset", value=str(file.tell()))
            tensor.external_data.add(key="length", value=str(array.nbytes))
            tensors.append(tensor)
            file.write(np.ascontiguousarray(array).data)
    with replacing(path, "wb") as file:
        file.write(_model(graph, tensors).SerializeToString())
    return [path, data_path]


def _tensor(name: str, array: np.ndarray) -> TensorProto:
    dtype = helper.np_dtype_to_tensor_dtype(array.dtype)
    return TensorProto(name=name, dims=array.shape, data_type=dtype)


def _model(graph: Graph, weights: list[TensorProto]) -> ModelProto:
    describe = helper.make_tensor_value_info
    body = helper.make_graph(
        graph.nodes,
        "bert4rec",
        [
            describe("history", TensorProto.INT32, ["batch", "length"]),
            describe("k", TensorProto.INT64, [1]),
        ],
        [
            describe("items", TensorProto.INT64, ["batch", "k"]),
            describe("scores", TensorProto.FLOAT, ["batch", "k"]),
            describe("probabilities", TensorProto.FLOAT, ["batch", "k"]),
            describe("all_scores", TensorProto.FLOAT, ["batch", "items"]),
        ],
        [*graph.constants.values(), *weights],
    )
    opsets = [helper.make_opsetid("", OPSET)]
    model = helper.make_model(body, opset_imports=opsets, producer_name="bert4rec_jax")
    model.ir_version = _IR_VERSION
    return model
