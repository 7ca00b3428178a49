# SPDX-License-Identifier: Apache-2.0
"""Translates a JAX computation into nodes of an ONNX graph; sizes may be symbols such as `b`.

It covers the operations of this project's models and rejects all others by name. The encoder can
therefore change without a change here if it keeps to these operations. The only package needed is
`onnx`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend import core
from onnx import NodeProto, TensorProto, helper, numpy_helper

from bert4rec_jax.errors import UserError

OPSET = 20

# Operations with the same meaning in JAX and in ONNX.
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
# Operations without effect in inference.
_IDENTITY = ("stop_gradient", "copy", "optimization_barrier")
# Operations that call another computation, with the parameter that contains it.
_CALLS = {
    "jit": "jaxpr",
    "remat2": "jaxpr",
    "closed_call": "call_jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}


class Graph:
    """An ONNX graph under construction; values are names of tensors.

    Attributes:
      nodes: in order of execution.
      constants: small tensors by name. The model's weights are inputs of the translation instead.
      sizes: for each symbolic size the name of an int64[1] tensor with its value.
    """

    def __init__(self, sizes: dict[str, str] | None = None) -> None:
        """Creates an empty graph with these symbolic sizes."""
        self.nodes: list[NodeProto] = []
        self.constants: dict[str, TensorProto] = {}
        self.sizes = sizes or {}
        self._cache: dict[Any, str] = {}
        self._count = 0

    def new_name(self, hint: str) -> str:
        """Returns an unused tensor name."""
        self._count += 1
        return f"{hint}_{self._count}"

    def add(self, operation: str, *inputs: str, output: str = "", **attributes: Any) -> str:
        """Appends a node with one output and returns the output's name: `output`, or a new name."""
        name = output or self.new_name(operation.lower())
        self.nodes.append(helper.make_node(operation, list(inputs), [name], **attributes))
        return name

    def constant(self, value: Any, dtype: Any = None) -> str:
        """Returns the name of a constant; equal constants are stored once."""
        array = np.asarray(value, dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._cache:
            name = self.new_name("constant")
            self.constants[name] = numpy_helper.from_array(array, name)
            self._cache[key] = name
        return self._cache[key]

    def integers(self, *values: int) -> str:
        """Returns the name of an int64 vector, the form in which ONNX takes axes and sizes."""
        return self.constant(values, np.int64)

    def shape(self, sizes: Sequence[Any]) -> str:
        """Returns the name of an int64[rank] tensor with the sizes, symbols included.

        At most one size may be an expression of symbols; a Reshape infers it.
        """
        if all(isinstance(size, int) for size in sizes):
            return self.integers(*sizes)
        key = ("shape", *map(str, sizes))
        if key not in self._cache:
            parts = [self._size_or_inferred(size) for size in sizes]
            joined = parts[0] if len(parts) == 1 else self.add("Concat", *parts, axis=0)
            self._cache[key] = joined
        return self._cache[key]

    def size(self, size: Any) -> str:
        """Returns the name of an int64[1] tensor with the size; raises UserError if unknown."""
        if isinstance(size, int):
            return self.integers(size)
        if str(size) not in self.sizes:
            raise _unsupported(f"the size {size}")
        return self.sizes[str(size)]

    def _size_or_inferred(self, size: Any) -> str:
        known = isinstance(size, int) or str(size) in self.sizes
        return self.size(size) if known else self.integers(-1)


class _Value:
    """A tensor of the graph with its shape in JAX.

    JAX broadcasts explicitly and ONNX implicitly, so `compact` tensors still have size 1 on axes
    that JAX expanded.
    """

    def __init__(self, name: str, shape: tuple, compact: bool = False) -> None:
        self.name = name
        self.shape = shape
        self.compact = compact


def translate(graph: Graph, function: Callable, arguments: Any, names: Sequence[str]) -> list[str]:
    """Adds the nodes of `function(*arguments)` to a graph.

    Args:
      graph: the graph to extend.
      function: the JAX function to translate.
      arguments: a tuple of pytrees of `jax.ShapeDtypeStruct`; sizes may be symbols.
      names: the tensors with the leaves of `arguments`, in the order of `jax.tree.leaves`.

    Returns:
      The names of the tensors with the leaves of the result.

    Raises:
      UserError: the computation contains an unsupported operation; the message names it.
    """
    closed = jax.make_jaxpr(function)(*arguments)
    inputs = [
        _Value(name, leaf.shape)
        for name, leaf in zip(names, jax.tree.leaves(arguments), strict=True)
    ]
    outputs = _run(graph, closed.jaxpr, closed.consts, inputs)
    return [_expanded(graph, value) for value in outputs]


def _run(graph: Graph, jaxpr: Any, consts: Sequence[Any], inputs: list[_Value]) -> list[_Value]:
    values: dict[Any, _Value] = dict(zip(jaxpr.invars, inputs, strict=True))
    for variable, const in zip(jaxpr.constvars, consts, strict=True):
        values[variable] = _Value(graph.constant(np.asarray(const)), np.shape(const))

    def read(atom: Any) -> _Value:
        if isinstance(atom, core.Literal):
            aval: Any = atom.aval
            return _Value(graph.constant(atom.val, aval.dtype), np.shape(atom.val))
        return values[atom]

    for equation in jaxpr.eqns:
        arguments = [read(atom) for atom in equation.invars]
        results = _translate_equation(graph, equation, arguments)
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _translate_equation(graph: Graph, equation: Any, inputs: list[_Value]) -> list[_Value]:
    name = equation.primitive.name
    if name in _CALLS:
        inner = equation.params[_CALLS[name]]
        return _run(graph, getattr(inner, "jaxpr", inner), getattr(inner, "consts", ()), inputs)
    if name in _IDENTITY:
        return inputs
    operation = _Operation(graph, equation, inputs)
    if name == "unstack":
        return _unstack(operation)
    on_booleans = name in ("max", "min") and operation.dtype == bool
    if name in _SAME and not on_booleans:
        return [operation.elementwise(_SAME[name], *inputs)]
    if name in _RULES:
        return [_RULES[name](operation)]
    raise _unsupported(f"this model uses the operation {name!r}, which")


def _unsupported(subject: str) -> UserError:
    return UserError(f"{subject} cannot be exported to ONNX yet; use --format stablehlo.")


def _onnx_dtype(dtype: Any) -> int:
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _expanded(graph: Graph, value: _Value) -> str:
    """Returns the tensor of a value with every axis at its size in JAX."""
    if not value.compact:
        return value.name
    return graph.add("Expand", value.name, graph.shape(value.shape))


class _Operation:
    """One equation of a JAX computation.

    Attributes:
      graph: the graph to extend.
      parameters: of the equation.
      inputs: the operands.
      shape: of the first output.
      dtype: of the first output.
      output_shapes: of all outputs.
    """

    def __init__(self, graph: Graph, equation: Any, inputs: list[_Value]) -> None:
        self.graph = graph
        self.parameters = equation.params
        self.inputs = inputs
        outputs: list[Any] = [output.aval for output in equation.outvars]
        self.output_shapes = [output.shape for output in outputs]
        self.shape = outputs[0].shape
        self.dtype = outputs[0].dtype

    def elementwise(self, name: str, *inputs: _Value, **attributes: Any) -> _Value:
        """Adds an elementwise node; its result is compact if all operands are."""
        compact = all(value.compact or not value.shape for value in inputs)
        names = [value.name for value in inputs]
        result = self.graph.add(name, *names, **attributes)
        return _Value(result, self.shape, compact and len(self.shape) > 0)

    def scalar(self, value: float) -> _Value:
        """Returns a constant with the dtype of the output."""
        return _Value(self.graph.constant(value, self.dtype), ())

    def expanded(self, index: int = 0) -> str:
        """Returns the tensor of an operand with every axis at its size in JAX."""
        return _expanded(self.graph, self.inputs[index])

    def result(self, name: str) -> _Value:
        """Returns a tensor as the operation's value."""
        return _Value(name, self.shape)


def _broadcast(op: _Operation) -> _Value:
    value = op.inputs[0]
    axes = op.parameters["broadcast_dimensions"]
    if list(value.shape) == list(op.shape):
        return value
    sizes = [1] * len(op.shape)
    for axis, size in zip(axes, value.shape):
        sizes[axis] = size
    name = value.name
    missing = [axis for axis in range(len(op.shape)) if axis not in axes]
    if missing:
        name = op.graph.add("Unsqueeze", name, op.graph.integers(*missing))
    return _Value(name, op.shape, compact=value.compact or sizes != list(op.shape))


def _reshape(op: _Operation) -> _Value:
    value = op.inputs[0]
    before = [size for size in value.shape if size != 1]
    after = [size for size in op.shape if size != 1]
    if before != after:
        return op.result(op.graph.add("Reshape", op.expanded(), op.graph.shape(op.shape)))
    # Only axes of size 1 are removed or added.
    name = value.name
    if removed := _axes_of_size_one(value.shape):
        name = op.graph.add("Squeeze", name, op.graph.integers(*removed))
    if added := _axes_of_size_one(op.shape):
        name = op.graph.add("Unsqueeze", name, op.graph.integers(*added))
    return _Value(name, op.shape, value.compact)


def _axes_of_size_one(shape: Sequence[Any]) -> list[int]:
    return [axis for axis, size in enumerate(shape) if isinstance(size, int) and size == 1]


def _squeeze(op: _Operation) -> _Value:
    axes = op.graph.integers(*op.parameters["dimensions"])
    value = op.inputs[0]
    return _Value(op.graph.add("Squeeze", value.name, axes), op.shape, value.compact)


def _transpose(op: _Operation) -> _Value:
    order = list(op.parameters["permutation"])
    value = op.inputs[0]
    return _Value(op.graph.add("Transpose", value.name, perm=order), op.shape, value.compact)


def _convert(op: _Operation) -> _Value:
    return op.elementwise("Cast", op.inputs[0], to=_onnx_dtype(op.dtype))


def _select(op: _Operation) -> _Value:
    condition, when_false, when_true = op.inputs
    return op.elementwise("Where", condition, when_true, when_false)


def _square(op: _Operation) -> _Value:
    return op.elementwise("Mul", op.inputs[0], op.inputs[0])


def _power(op: _Operation) -> _Value:
    if op.parameters["y"] == 2:
        return _square(op)
    return op.elementwise("Pow", op.inputs[0], op.scalar(op.parameters["y"]))


def _rsqrt(op: _Operation) -> _Value:
    return op.elementwise("Reciprocal", op.elementwise("Sqrt", op.inputs[0]))


def _erfc(op: _Operation) -> _Value:
    return op.elementwise("Sub", op.scalar(1), op.elementwise("Erf", op.inputs[0]))


def _reduce(name: str) -> "_Rule":
    def rule(op: _Operation) -> _Value:
        axes = op.graph.integers(*op.parameters["axes"])
        return op.result(op.graph.add(name, op.expanded(), axes, keepdims=0))

    return rule


def _cumsum(op: _Operation) -> _Value:
    axis = op.graph.constant(op.parameters["axis"], np.int64)
    backwards = int(op.parameters["reverse"])
    return op.result(op.graph.add("CumSum", op.expanded(), axis, reverse=backwards))


def _iota(op: _Operation) -> _Value:
    axis = op.parameters["dimension"]
    zero = op.graph.constant(0, np.int64)
    one = op.graph.constant(1, np.int64)
    stop = op.graph.add("Squeeze", op.graph.size(op.shape[axis]))
    name = op.graph.add("Range", zero, stop, one)
    name = op.graph.add("Cast", name, to=_onnx_dtype(op.dtype))
    others = [other for other in range(len(op.shape)) if other != axis]
    if not others:
        return op.result(name)
    name = op.graph.add("Unsqueeze", name, op.graph.integers(*others))
    return _Value(name, op.shape, compact=True)


def _dimension(op: _Operation) -> _Value:
    """The value of a symbolic size, or of a symbolic size plus or minus a small number."""
    size = op.parameters["dim"]
    for shift in range(-4, 5):
        name = op.graph.sizes.get(str(size - shift))
        if name:
            number = op.graph.add("Squeeze", name)
            total = op.graph.add("Add", number, op.graph.constant(shift, np.int64))
            return op.result(op.graph.add("Cast", total, to=_onnx_dtype(op.dtype)))
    raise _unsupported(f"the size {size}")


def _slice(op: _Operation) -> _Value:
    graph = op.graph
    starts = op.parameters["start_indices"]
    limits = op.parameters["limit_indices"]
    strides = op.parameters["strides"] or (1,) * len(starts)
    name = op.expanded()
    for axis, size in enumerate(op.inputs[0].shape):
        to_the_end = str(limits[axis]) == str(size)
        if to_the_end and (starts[axis], strides[axis]) == (0, 1):
            continue
        start = graph.integers(starts[axis])
        stop = graph.integers(np.iinfo(np.int64).max) if to_the_end else graph.size(limits[axis])
        stride = graph.integers(strides[axis])
        name = graph.add("Slice", name, start, stop, graph.integers(axis), stride)
    return op.result(name)


def _unstack(op: _Operation) -> list[_Value]:
    array = op.expanded()
    axis = op.parameters["axis"]
    results = []
    for position, shape in enumerate(op.output_shapes):
        index = op.graph.constant(position, np.int64)
        results.append(_Value(op.graph.add("Gather", array, index, axis=axis), shape))
    return results


def _concatenate(op: _Operation) -> _Value:
    names = [op.expanded(index) for index in range(len(op.inputs))]
    return op.result(op.graph.add("Concat", *names, axis=op.parameters["dimension"]))


def _gather(op: _Operation) -> _Value:
    """Rows of a table, one element of each row of a batch, or a range of one axis.

    Indices are assumed to be in range.
    """
    graph = op.graph
    numbers = op.parameters["dimension_numbers"]
    sizes = op.parameters["slice_sizes"]
    operand = op.expanded(0)
    indices = op.expanded(1)
    axes = tuple(numbers.start_index_map)
    collapsed = tuple(numbers.collapsed_slice_dims)
    batch = tuple(numbers.operand_batching_dims)
    if axes == collapsed == (0,) and not batch:
        rows = graph.add("Squeeze", indices, graph.integers(-1))
        return op.result(graph.add("Gather", operand, rows, axis=0))
    if axes == collapsed == (1,) and batch == (0,) and len(sizes) == 2:
        columns = graph.add("Squeeze", indices, graph.integers(-1))
        return op.result(graph.add("GatherElements", operand, columns, axis=1))
    if len(axes) == 1 and not collapsed and op.inputs[1].shape == (1,):
        start = graph.add("Cast", indices, to=TensorProto.INT64)
        stop = graph.add("Add", start, graph.size(sizes[axes[0]]))
        return op.result(graph.add("Slice", operand, start, stop, graph.integers(*axes)))
    raise _unsupported(f"this model indexes an array in a way ({numbers}) that")


def _dot_general(op: _Operation) -> _Value:
    """A product over one contracted axis: Gemm for two matrices, MatMul otherwise."""
    graph = op.graph
    contracted, (batch_a, batch_b) = op.parameters["dimension_numbers"]
    contract_a, contract_b = map(list, contracted)
    ranks = [len(value.shape) for value in op.inputs]
    a = op.expanded(0)
    b = op.expanded(1)
    if ranks == [2, 2] and len(contract_a) == 1 and not batch_a:
        # Gemm reads the item table in its stored order; a Transpose would keep a second copy.
        trans_a = int(contract_a == [0])
        trans_b = int(contract_b == [1])
        return op.result(graph.add("Gemm", a, b, transA=trans_a, transB=trans_b))
    free_a = [axis for axis in range(ranks[0]) if axis not in (*contract_a, *batch_a)]
    free_b = [axis for axis in range(ranks[1]) if axis not in (*contract_b, *batch_b)]
    if len(contract_a) != 1 or len(free_b) > 1 or (batch_a and len(free_a) != 1):
        raise _unsupported("this model multiplies arrays in a way that")
    a = _in_order(graph, a, [*batch_a, *free_a, *contract_a])
    b = _in_order(graph, b, [*batch_b, *contract_b, *free_b])
    if free_b:
        return op.result(graph.add("MatMul", a, b))
    column = graph.add("Unsqueeze", b, graph.integers(-1))  # the right operand is a vector
    product = graph.add("MatMul", a, column)
    return op.result(graph.add("Squeeze", product, graph.integers(-1)))


def _in_order(graph: Graph, name: str, order: list[int]) -> str:
    """Returns a tensor with its axes in this order."""
    return name if order == sorted(order) else graph.add("Transpose", name, perm=order)


_Rule = Callable[[_Operation], _Value]
_RULES: dict[str, _Rule] = {
    "broadcast_in_dim": _broadcast,
    "reshape": _reshape,
    "squeeze": _squeeze,
    "transpose": _transpose,
    "convert_element_type": _convert,
    "select_n": _select,
    "square": _square,
    "integer_pow": _power,
    "rsqrt": _rsqrt,
    "erfc": _erfc,
    "reduce_sum": _reduce("ReduceSum"),
    "reduce_max": _reduce("ReduceMax"),
    "cumsum": _cumsum,
    "iota": _iota,
    "dim_as_value": _dimension,
    "slice": _slice,
    "concatenate": _concatenate,
    "gather": _gather,
    "dot_general": _dot_general,
}
