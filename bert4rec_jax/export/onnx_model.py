# SPDX-License-Identifier: Apache-2.0
"""A trained model as one ONNX file: a history in, the best items or all scores out.

The graph is `ranking.item_scores` itself, translated, with a few nodes before it (the newest part of the history and
its [MASK]) and after it (what was seen is removed, the best are picked). Weights are stored by name; above 1.5 GB,
what protobuf can hold being 2, they are written to a file beside it.
"""

import dataclasses
import os
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import onnx
from jax import export
from onnx import TensorProto, helper

from bert4rec_jax.config import ModelConfig
from bert4rec_jax.export.jaxpr_to_onnx import OPSET, Graph, translate
from bert4rec_jax.export.stablehlo import room_of, scores_of, weight_names
from bert4rec_jax.files import replacing
from bert4rec_jax.model import mask_token

TABLES = ("float32", "float16", "int8")
_REMOVED = np.float32(-2e9)
_INLINE_BYTES = 1_500_000_000


def write(
    path: str,
    config: ModelConfig,
    num_items: int,
    params: Any,
    table: str = "float32",
    inline_bytes: int = _INLINE_BYTES,
) -> list[str]:
    """Writes the model; see the README that `beside` writes for its inputs and outputs.

    Args:
      path: the file, `model.onnx`.
      config: the model's configuration; computed in float32 whatever its dtype.
      num_items: size of the catalogue.
      params: as in a checkpoint.
      table: how the item table is stored: `float32`, `float16`, or `int8` with one scale a row.
      inline_bytes: weights beyond this size are written to `path` + `.data`.

    Returns:
      The files written.
    """
    config = dataclasses.replace(config, dtype="float32")
    batch, length = export.symbolic_shape("b, l")
    graph = Graph({"b": "batch_size", "l": "length"})
    leaves, names = jax.tree.leaves(params), weight_names(params)
    weights = {name: np.asarray(leaf, np.float32) for name, leaf in zip(names, leaves, strict=True)}
    embedding = next(name for name, leaf in weights.items() if name.endswith("items.embedding"))
    tensors, stored = _stored(graph, embedding, weights[embedding], table)
    weights = {name: leaf for name, leaf in weights.items() if name != embedding} | tensors
    _before(graph, config, num_items)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.float32), params)
    (scores,) = translate(
        graph,
        lambda p, tokens: scores_of(config, num_items, p, tokens),
        (abstract, jax.ShapeDtypeStruct((batch, length), jnp.int32)),
        [*(stored if name == embedding else name for name in names), "tokens"],
    )
    _after(graph, scores, num_items)
    return _save(path, graph, weights, inline_bytes)


def _stored(
    graph: Graph, name: str, table_VD: np.ndarray, kind: str
) -> tuple[dict[str, np.ndarray], str]:
    """Returns the tensors that hold the table, and the name of the float32 tensor that is made of them."""
    if kind == "float32":
        return {name: table_VD}, name
    if kind == "float16":
        return {name: table_VD.astype(np.float16)}, graph.add("Cast", name, to=TensorProto.FLOAT)
    scale_V = np.maximum(np.abs(table_VD).max(axis=1) / 127, np.finfo(np.float32).tiny).astype(
        np.float32
    )
    rounded = np.clip(np.rint(table_VD / scale_V[:, None]), -127, 127).astype(np.int8)
    whole = graph.add("DequantizeLinear", name, f"{name}.scale", axis=0)
    return {name: rounded, f"{name}.scale": scale_V}, whole


def _before(graph: Graph, config: ModelConfig, num_items: int) -> None:
    """From `history` int32[B, N] to `tokens` int32[B, L] and the sizes B and L."""
    room = room_of(config)
    everything = graph.constant([np.iinfo(np.int64).max])
    recent = graph.add(
        "Slice",
        "history",
        graph.constant([-room], np.int64),
        everything,
        graph.constant([1], np.int64),
    )
    both = graph.add("Shape", "history")
    graph.nodes.append(
        helper.make_node(
            "Slice",
            [both, graph.constant([0], np.int64), graph.constant([1], np.int64)],
            ["batch_size"],
        )
    )
    if config.appends_mask:
        column = graph.add("Concat", "batch_size", graph.constant([1], np.int64), axis=0)
        mask = graph.add("Expand", graph.constant([[mask_token(num_items)]], np.int32), column)
        graph.nodes.append(helper.make_node("Concat", [recent, mask], ["tokens"], axis=1))
    else:
        graph.nodes.append(helper.make_node("Identity", [recent], ["tokens"]))
    shape = graph.add("Shape", "tokens")
    graph.nodes.append(
        helper.make_node(
            "Slice",
            [shape, graph.constant([1], np.int64), graph.constant([2], np.int64)],
            ["length"],
        )
    )


def _after(graph: Graph, scores: str, num_items: int) -> None:
    """From scores float32[B, V] to the outputs."""
    total = graph.add("ReduceLogSumExp", scores, graph.constant([1], np.int64), keepdims=1)
    # Of padding, row 0 is removed, which is no item.
    seen = graph.add("Cast", "history", to=TensorProto.INT64)
    low = graph.add("Expand", graph.constant(_REMOVED), graph.add("Shape", "history"))
    left = graph.add("ScatterElements", scores, seen, low, axis=1)
    graph.nodes += [
        helper.make_node(
            "Slice",
            [
                left,
                graph.constant([0], np.int64),
                graph.constant([num_items + 1], np.int64),
                graph.constant([1], np.int64),
            ],
            ["all_scores"],
        ),
        helper.make_node(
            "TopK", ["all_scores", "k"], ["scores", "best"], axis=1, largest=1, sorted=1
        ),
    ]
    there = graph.add("Greater", "scores", graph.constant(-1e8, np.float32))
    graph.nodes.append(
        helper.make_node("Where", [there, "best", graph.constant(0, np.int64)], ["items"])
    )
    graph.nodes.append(
        helper.make_node("Exp", [graph.add("Sub", "scores", total)], ["probabilities"])
    )


def _save(path: str, graph: Graph, weights: dict[str, np.ndarray], inline_bytes: int) -> list[str]:
    beside = sum(array.nbytes for array in weights.values()) > inline_bytes
    files, offset, tensors = [path], 0, []
    for name, array in weights.items():
        tensor = TensorProto(
            name=name, dims=array.shape, data_type=helper.np_dtype_to_tensor_dtype(array.dtype)
        )
        if beside:
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (
                ("location", os.path.basename(path) + ".data"),
                ("offset", offset),
                ("length", array.nbytes),
            ):
                tensor.external_data.add(key=key, value=str(value))
            offset += array.nbytes
        else:
            tensor.raw_data = np.ascontiguousarray(array).tobytes()
        tensors.append(tensor)
    made = helper.make_graph(
        graph.nodes,
        "bert4rec",
        [
            helper.make_tensor_value_info("history", TensorProto.INT32, ["batch", "length"]),
            helper.make_tensor_value_info("k", TensorProto.INT64, [1]),
        ],
        [
            helper.make_tensor_value_info("items", TensorProto.INT64, ["batch", "k"]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["batch", "k"]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", "k"]),
            helper.make_tensor_value_info("all_scores", TensorProto.FLOAT, ["batch", "items"]),
        ],
        [*graph.constants.values(), *tensors],
    )
    model = helper.make_model(
        made, opset_imports=[helper.make_opsetid("", OPSET)], producer_name="bert4rec_jax"
    )
    # The oldest version of the format that has these operations: runtimes refuse files newer than themselves.
    model.ir_version = 9
    if beside:
        with replacing(path + ".data", "wb") as file:
            for array in weights.values():
                file.write(np.ascontiguousarray(array).data)
        files.append(path + ".data")
    else:
        onnx.checker.check_model(model)
    with replacing(path, "wb") as file:
        file.write(model.SerializeToString())
    return files
