# SPDX-License-Identifier: Apache-2.0
"""Floating-point operations of a traced program.

XLA's own cost analysis counts the body of a loop once and is not available for GPUs, so operations
are counted here.
"""

import math
from typing import Any

from jax.extend import core


def count_operations(jaxpr: Any) -> float:
    """Returns the operations of all matrix products in a jaxpr.

    The body of a `shard_map` counts for one device.

    A loop counts as often as it runs and a branch as its most expensive case. A kernel counts its
    own estimate or, without one, its body once per cell of the grid. Equations with unused results
    count nothing, because compilers remove them.
    """
    jaxpr = getattr(jaxpr, "jaxpr", jaxpr)
    used = {id(variable) for variable in jaxpr.outvars}
    for equation in jaxpr.eqns:
        used.update(id(variable) for variable in equation.invars)
    total = 0.0
    for equation in jaxpr.eqns:
        is_used = any(id(variable) in used for variable in equation.outvars)
        if is_used or equation.effects:
            total += _operations_of(equation)
    return total


def _operations_of(equation: core.JaxprEqn) -> float:
    name = equation.primitive.name
    parameters = equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        left: Any = equation.invars[0].aval
        product: Any = equation.outvars[0].aval
        terms = math.prod(left.shape[axis] for axis in contracted)
        return 2 * terms * math.prod(product.shape)
    if name == "pallas_call":
        estimate = parameters.get("cost_estimate")
        if estimate:
            return estimate.flops
        return count_operations(parameters["jaxpr"]) * math.prod(parameters["grid_mapping"].grid)
    if name == "cond":
        return max(count_operations(branch) for branch in parameters["branches"])
    times = parameters["length"] if name == "scan" else 1
    inner = [value for value in parameters.values() if _is_jaxpr(value)]
    return times * sum(count_operations(jaxpr) for jaxpr in inner)


def _is_jaxpr(value: Any) -> bool:
    return hasattr(getattr(value, "jaxpr", value), "eqns")
