# SPDX-License-Identifier: Apache-2.0
"""Translates a JAX computation into nodes of an ONNX graph; sizes may be symbols such as `b`.

It knows the operations that this project's models are made of, and refuses the rest by name. A change of the encoder
is exported without a change here as long as it keeps to them; nothing but the package `onnx` is needed.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core
from onnx import NodeProto, TensorProto, helper, numpy_helper

from bert4rec_jax.errors import UserError

OPSET = 20

_SAME = {
    "add": "Add",
    "sub": "Sub",
    "mul": "Mul",
    "div": "Div",
    "neg": "Neg",
    "exp": "Exp",
    "log": "Log",
    "erf": "Erf",
    "cos": "Cos",
    "sin": "Sin",
    "tanh": "Tanh",
    "sqrt": "Sqrt",
    "logistic": "Sigmoid",
    "abs": "Abs",
    "max": "Max",
    "min": "Min",
    "pow": "Pow",
    "gt": "Greater",
    "ge": "GreaterOrEqual",
    "lt": "Less",
    "le": "LessOrEqual",
    "eq": "Equal",
    "and": "And",
    "or": "Or",
    "not": "Not",
}
_IDENTITY = ("stop_gradient", "copy", "copy_p", "optimization_barrier")
_INLINED = (
    "jit",
    "pjit",
    "closed_call",
    "custom_jvp_call",
    "custom_vjp_call",
    "custom_vjp_call_jaxpr",
    "remat2",
    "checkpoint",
    "remat",
)


class Graph:
    """An ONNX graph in the making: values are names of tensors.

    Attributes:
      nodes: in order of execution.
      constants: small tensors by name; the model's weights are inputs of the translation and not among them.
    """

    def __init__(self, sizes: dict[str, str] | None = None):
        """Begins a graph.

        Args:
          sizes: for each symbolic size the name of an int64[1] tensor that holds it.
        """
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self._sizes = sizes or {}
        self._known: dict[Any, str] = {}
        self._count = 0

    def name(self, hint: str) -> str:
        """Returns a name that no other tensor has."""
        self._count += 1
        return f"{hint}_{self._count}"

    def add(self, operation: str, *inputs: str, outputs: int = 1, **attributes) -> Any:
        """Appends a node; returns the name of its output, or a list of names where there are several."""
        names = [self.name(operation.lower()) for _ in range(outputs)]
        self.nodes.append(helper.make_node(operation, list(inputs), names, **attributes))
        return names[0] if outputs == 1 else names

    def constant(self, value: Any, dtype: Any = None) -> str:
        """Returns the name of a constant; equal constants are stored once."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            name = self._known[key] = self.name("constant")
            self.constants[name] = numpy_helper.from_array(array, name)
        return self._known[key]

    def shape(self, sizes: Sequence[Any]) -> str:
        """Returns the name of an int64[rank] tensor with the sizes, symbols included.

        One size that is an expression of symbols may be left to be inferred by a Reshape.
        """
        key = ("shape", *map(str, sizes))
        if key not in self._known:
            if all(isinstance(size, int) for size in sizes):
                return self.constant(list(sizes), np.int64)
            parts = [
                self.constant([size], np.int64)
                if isinstance(size, int)
                else self._sizes.get(str(size)) or self.constant([-1], np.int64)
                for size in sizes
            ]
            self._known[key] = parts[0] if len(parts) == 1 else self.add("Concat", *parts, axis=0)
        return self._known[key]


class _Value:
    """A tensor of the graph, its shape in JAX, and whether axes of it are still 1 that JAX has spread (`thin`)."""

    def __init__(self, name: str, shape: tuple, thin: bool = False):
        self.name, self.shape, self.thin = name, shape, thin


def translate(graph: Graph, function: Callable, arguments: Any, names: Sequence[str]) -> list[str]:
    """Adds the nodes of `function(*arguments)` to a graph.

    Args:
      graph: where they go.
      function: what to translate.
      arguments: a tuple of pytrees of `jax.ShapeDtypeStruct`; sizes may be symbols.
      names: the tensors that hold the leaves of `arguments`, in the order of `jax.tree.leaves`.

    Returns:
      The names of the tensors that hold the leaves of the result.

    Raises:
      UserError: the computation has an operation that is not known here; says which.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    inputs = [
        _Value(name, leaf.shape)
        for name, leaf in zip(names, jax.tree.leaves(arguments), strict=True)
    ]
    return [_full(graph, value) for value in _run(graph, closed.jaxpr, closed.consts, inputs)]


def _run(graph: Graph, jaxpr: Any, consts: Sequence[Any], inputs: list[_Value]) -> list[_Value]:
    values: dict[Any, _Value] = dict(zip(jaxpr.invars, inputs, strict=True))
    for variable, const in zip(jaxpr.constvars, consts, strict=True):
        values[variable] = _Value(graph.constant(np.asarray(const)), np.shape(const))

    def read(atom: Any) -> _Value:
        if isinstance(atom, core.Literal):
            return _Value(graph.constant(atom.val, atom.aval.dtype), np.shape(atom.val))
        return values[atom]

    for equation in jaxpr.eqns:
        results = _equation(graph, equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _equation(graph: Graph, equation: Any, inputs: list[_Value]) -> list[_Value]:
    operation, parameters = equation.primitive.name, equation.params
    if operation in _INLINED:
        inner = next(
            parameters[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in parameters
        )
        return _run(graph, getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), inputs)
    if operation in _IDENTITY:
        return inputs
    shape = equation.outvars[0].aval.shape
    if operation in _SAME and not (
        operation in ("max", "min") and equation.outvars[0].aval.dtype == bool
    ):
        return [_elementwise(graph, _SAME[operation], inputs, shape)]
    if operation == "unstack":
        return _unstack(graph, equation, inputs)
    rule = _RULES.get(operation)
    if rule is None:
        raise UserError(
            f"this model uses the operation {operation!r}, which cannot be exported to ONNX yet; use "
            "--format stablehlo."
        )
    return [rule(graph, equation, inputs, shape)]


def _elementwise(
    graph: Graph, operation: str, inputs: list[_Value], shape: tuple, **attributes
) -> _Value:
    # ONNX spreads axes of size 1 by itself, so what JAX has spread may stay thin as long as all operands are.
    thin = all(value.thin or not value.shape for value in inputs) and len(shape) > 0
    return _Value(
        graph.add(operation, *(value.name for value in inputs), **attributes), shape, thin
    )


def _full(graph: Graph, value: _Value) -> str:
    """Returns the tensor of a value with all its axes spread."""
    return graph.add("Expand", value.name, graph.shape(value.shape)) if value.thin else value.name


def _broadcast(graph, equation, inputs, shape):
    (value, axes) = inputs[0], equation.params["broadcast_dimensions"]
    sizes = [1] * len(shape)
    for axis, size in zip(axes, value.shape):
        sizes[axis] = size
    if list(value.shape) == list(shape):
        return value
    name = value.name
    if len(axes) < len(shape):
        missing = [axis for axis in range(len(shape)) if axis not in axes]
        name = graph.add("Unsqueeze", name, graph.constant(missing, np.int64))
    return _Value(name, shape, thin=value.thin or sizes != list(shape))


def _reshape(graph, equation, inputs, shape):
    value = inputs[0]
    ones = [size for size in value.shape if size != 1] == [size for size in shape if size != 1]
    if value.thin and not ones:
        value = _Value(_full(graph, value), value.shape)
    if ones:  # only axes of size 1 come and go
        name = (
            graph.add("Squeeze", value.name, graph.constant(_ones(value.shape), np.int64))
            if _ones(value.shape)
            else value.name
        )
        name = (
            graph.add("Unsqueeze", name, graph.constant(_ones(shape), np.int64))
            if _ones(shape)
            else name
        )
        return _Value(name, shape, value.thin)
    return _Value(graph.add("Reshape", value.name, graph.shape(shape)), shape)


def _ones(shape: Sequence[Any]) -> list[int]:
    return [axis for axis, size in enumerate(shape) if isinstance(size, int) and size == 1]


def _squeeze(graph, equation, inputs, shape):
    axes = graph.constant(list(equation.params["dimensions"]), np.int64)
    return _Value(graph.add("Squeeze", inputs[0].name, axes), shape, inputs[0].thin)


def _expand_dims(graph, equation, inputs, shape):
    axes = graph.constant(list(equation.params["dimensions"]), np.int64)
    return _Value(graph.add("Unsqueeze", inputs[0].name, axes), shape, inputs[0].thin)


def _transpose(graph, equation, inputs, shape):
    permutation = list(equation.params["permutation"])
    return _Value(graph.add("Transpose", inputs[0].name, perm=permutation), shape, inputs[0].thin)


def _convert(graph, equation, inputs, shape):
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(equation.params["new_dtype"]))
    return _elementwise(graph, "Cast", inputs, shape, to=kind)


def _select(graph, equation, inputs, shape):
    condition, when_false, when_true = inputs
    return _elementwise(graph, "Where", [condition, when_true, when_false], shape)


def _square(graph, equation, inputs, shape):
    return _elementwise(graph, "Mul", [inputs[0], inputs[0]], shape)


def _power(graph, equation, inputs, shape):
    if equation.params["y"] == 2:
        return _square(graph, equation, inputs, shape)
    exponent = _Value(graph.constant(equation.params["y"], equation.invars[0].aval.dtype), ())
    return _elementwise(graph, "Pow", [inputs[0], exponent], shape)


def _rsqrt(graph, equation, inputs, shape):
    root = _elementwise(graph, "Sqrt", inputs, shape)
    return _elementwise(graph, "Reciprocal", [root], shape)


def _erfc(graph, equation, inputs, shape):
    one = _Value(graph.constant(1, equation.invars[0].aval.dtype), ())
    return _elementwise(graph, "Sub", [one, _elementwise(graph, "Erf", inputs, shape)], shape)


def _clamp(graph, equation, inputs, shape):
    lowest, value, highest = inputs
    raised = _elementwise(graph, "Max", [value, lowest], shape)
    return _elementwise(graph, "Min", [raised, highest], shape)


def _reduce(operation):
    def rule(graph, equation, inputs, shape):
        axes = graph.constant(list(equation.params["axes"]), np.int64)
        return _Value(graph.add(operation, _full(graph, inputs[0]), axes, keepdims=0), shape)

    return rule


def _cumsum(graph, equation, inputs, shape):
    axis = graph.constant(equation.params["axis"], np.int64)
    return _Value(
        graph.add("CumSum", _full(graph, inputs[0]), axis, reverse=int(equation.params["reverse"])),
        shape,
    )


def _iota(graph, equation, inputs, shape):
    axis, aval = equation.params["dimension"], equation.outvars[0].aval
    stop = graph.add("Squeeze", graph.shape((shape[axis],)))
    name = graph.add("Range", graph.constant(0, np.int64), stop, graph.constant(1, np.int64))
    name = graph.add("Cast", name, to=helper.np_dtype_to_tensor_dtype(np.dtype(aval.dtype)))
    if len(shape) == 1:
        return _Value(name, shape)
    others = [a for a in range(len(shape)) if a != axis]
    return _Value(graph.add("Unsqueeze", name, graph.constant(others, np.int64)), shape, thin=True)


def _dimension(graph, equation, inputs, shape):
    """The value of `l` or `l - 1`; of expressions, sums of a symbol and a number are known."""
    size = equation.params["dim"]
    for shift in range(-4, 5):
        name = graph._sizes.get(str(size - shift))
        if name:
            total = graph.add("Add", graph.add("Squeeze", name), graph.constant(shift, np.int64))
            kind = helper.np_dtype_to_tensor_dtype(np.dtype(equation.outvars[0].aval.dtype))
            return _Value(graph.add("Cast", total, to=kind), ())
    raise UserError(f"the size {size} cannot be exported to ONNX yet; use --format stablehlo.")


def _slice(graph, equation, inputs, shape):
    p, value = equation.params, inputs[0]
    name = _full(graph, value)
    for axis, (start, limit, size) in enumerate(
        zip(p["start_indices"], p["limit_indices"], value.shape)
    ):
        step = p["strides"][axis] if p["strides"] else 1
        if (start, step) != (0, 1) or str(limit) != str(size):
            stop = (
                graph.shape((limit,))
                if isinstance(limit, int) or str(limit) != str(size)
                else graph.constant([np.iinfo(np.int64).max])
            )
            name = graph.add(
                "Slice",
                name,
                graph.constant([start], np.int64),
                stop,
                graph.constant([axis], np.int64),
                graph.constant([step], np.int64),
            )
    return _Value(name, shape)


def _unstack(graph: Graph, equation: Any, inputs: list[_Value]) -> list[_Value]:
    array = _full(graph, inputs[0])
    axis = equation.params["axis"]
    return [
        _Value(
            graph.add("Gather", array, graph.constant(index, np.int64), axis=axis),
            output.aval.shape,
        )
        for index, output in enumerate(equation.outvars)
    ]


def _concatenate(graph, equation, inputs, shape):
    return _Value(
        graph.add("Concat", *(_full(graph, v) for v in inputs), axis=equation.params["dimension"]),
        shape,
    )


def _gather(graph, equation, inputs, shape):
    """Rows of a table, one element of each row of a batch, or a run of one axis; ids are taken to be in range."""
    d, sizes = equation.params["dimension_numbers"], equation.params["slice_sizes"]
    operand, indices = _full(graph, inputs[0]), inputs[1]
    if len(d.start_index_map) == 1:
        axis = d.start_index_map[0]
        last = graph.constant([-1], np.int64)
        if d.collapsed_slice_dims == (axis,) and not d.operand_batching_dims and axis == 0:
            rows = graph.add("Squeeze", _full(graph, indices), last)
            return _Value(graph.add("Gather", operand, rows, axis=0), shape)
        if (
            d.collapsed_slice_dims == (axis,)
            and d.operand_batching_dims == (0,)
            and axis == 1
            and len(sizes) == 2
        ):
            columns = graph.add("Squeeze", _full(graph, indices), last)
            return _Value(graph.add("GatherElements", operand, columns, axis=1), shape)
        if not d.collapsed_slice_dims and indices.shape == (1,):
            start = graph.add("Cast", _full(graph, indices), to=TensorProto.INT64)
            stop = graph.add("Add", start, graph.shape((sizes[axis],)))
            return _Value(
                graph.add("Slice", operand, start, stop, graph.constant([axis], np.int64)), shape
            )
    raise UserError(
        f"this model looks up an array in a way ({d}) that cannot be exported to ONNX yet; use --format "
        "stablehlo."
    )


def _dot_general(graph, equation, inputs, shape):
    """A product with one contracted axis: Gemm of two matrices, else MatMul."""
    (contract_a, contract_b), (batch_a, batch_b) = equation.params["dimension_numbers"]
    product = None
    if len(contract_a) == 1:
        if len(inputs[0].shape) == len(inputs[1].shape) == 2 and not batch_a:
            # Gemm reads the item table as it lies; a transposition would hold it twice.
            a, b = (_full(graph, value) for value in inputs)
            turned = {"transA": int(contract_a[0] == 0), "transB": int(contract_b[0] == 1)}
            return _Value(graph.add("Gemm", a, b, **turned), shape)
        product = _matmul(graph, inputs, shape, contract_a[0], contract_b[0], batch_a, batch_b)
    if product is None:
        raise UserError(
            "this model multiplies arrays in a way that cannot be exported to ONNX yet; use --format "
            "stablehlo."
        )
    return product


def _matmul(graph, inputs, shape, contract_a, contract_b, batch_a, batch_b):
    """What MatMul does with at most a transposition of each operand: leading batch axes, one contracted axis."""
    a, b = (_full(graph, value) for value in inputs)
    rank_a, rank_b = len(inputs[0].shape), len(inputs[1].shape)
    free_b = [axis for axis in range(rank_b) if axis != contract_b and axis not in batch_b]
    free_a = [axis for axis in range(rank_a) if axis != contract_a and axis not in batch_a]
    if len(free_b) > 1 or (batch_a and len(free_a) != 1):
        return None
    order_a, order_b = [*batch_a, *free_a, contract_a], [*batch_b, contract_b, *free_b]
    if order_a != list(range(rank_a)):
        a = graph.add("Transpose", a, perm=order_a)
    if order_b != list(range(rank_b)):
        b = graph.add("Transpose", b, perm=order_b)
    if not free_b:  # a vector on the right
        b = graph.add("Unsqueeze", b, graph.constant([-1], np.int64))
        product = graph.add("MatMul", a, b)
        return _Value(graph.add("Squeeze", product, graph.constant([-1], np.int64)), shape)
    return _Value(graph.add("MatMul", a, b), shape)


_RULES = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "expand_dims": _expand_dims,
    "transpose": _transpose,
    "convert_element_type": _convert,
    "select_n": _select,
    "square": _square,
    "integer_pow": _power,
    "rsqrt": _rsqrt,
    "erfc": _erfc,
    "clamp": _clamp,
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_max": _reduce("ReduceMax"),
    "reduce_min": _reduce("ReduceMin"),
    "cumsum": _cumsum,
    "iota": _iota,
    "dim_as_value": _dimension,
    "slice": _slice,
    "concatenate": _concatenate,
    "gather": _gather,
    "dot_general": _dot_general,
}
