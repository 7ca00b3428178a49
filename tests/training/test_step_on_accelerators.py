# SPDX-License-Identifier: Apache-2.0
"""The training step as it is traced for accelerators: arrays and collectives that it must not contain.

The equations inside a kernel are ignored, because its arrays never leave the chip.
"""

import collections
import functools
import itertools

import jax
import jax.numpy as jnp
import pytest

from bert4rec_jax import config as config_lib
from bert4rec_jax.data import Packed
from bert4rec_jax.devices import Layout, Placement
from bert4rec_jax.training import StepSpec, init_state, train_step

# No two are equal, nor is one a sum, product or rounded value of others.
ROWS, LENGTH, SLOTS, ITEMS, WIDTH, FFN = 4, 136, 29, 1000, 24, 56
TABLE = 1024  # rows: padding, items, [MASK], rounded up


def step_config(layers: int = 2, changes: dict | None = None):
    config = config_lib.recommended()
    with config.unlocked():
        config.update_from_flattened_dict(
            {
                "model.width": WIDTH,
                "model.ffn_width": FFN,
                "model.layers": layers,
                "model.heads": 2,
                "model.max_length": LENGTH,
                "model.dropout": 0.1,
                "model.attention_dropout": 0.1,
                "masking.next_item_share": 0.5,
                "train.batch_rows": ROWS,
                **(changes or {}),
            }
        )
    return config_lib.resolve(config)


@functools.cache
def equations(platform: str, layers: int = 2) -> list:
    """Returns all equations of a step on one of eight devices, except those inside kernels.

    A GPU would use dense attention and one chunk of logits for arrays as small as these.
    """
    large = {"model.attention": "blockwise", "loss.chunk_items": 100}
    config = step_config(layers, large if platform == "gpu" else None)
    state = jax.eval_shape(functools.partial(init_state, config, ITEMS))
    packed = Packed(*[jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)] * 4)
    spec = StepSpec(config, ITEMS, SLOTS)
    step = functools.partial(train_step, spec, placement=Placement(platform, "data"))
    traced = jax.make_jaxpr(step, axis_env=[("data", 8)])(
        state, packed, jax.eval_shape(lambda: jax.random.key(0))
    )
    return list(inside(traced.jaxpr))


def inside(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        if equation.primitive.name != "pallas_call":
            for value in equation.params.values():
                for each in value if isinstance(value, (tuple, list)) else [value]:
                    if hasattr(getattr(each, "jaxpr", each), "eqns"):
                        yield from inside(getattr(each, "jaxpr", each))


def shapes(platform: str) -> set:
    return {
        tuple(x.aval.shape)
        for equation in equations(platform)
        for x in equation.outvars
        if hasattr(x.aval, "shape")
    }


def pairs(platform: str) -> set:
    """Returns the pairs of dimensions that occur in the same array."""
    # The slots of rows with masks, the columns of rows that learn the next item, or both are
    # compared with the table.
    kinds = {
        LENGTH: "column",
        SLOTS: "slot",
        TABLE: "item",
        ITEMS: "item",
        ROWS // 2 * (LENGTH + SLOTS): "slot",
        ROWS // 2 * LENGTH: "slot",
        ROWS // 2 * SLOTS: "slot",
    }
    return {
        tuple(sorted(pair))
        for shape in shapes(platform)
        for pair in itertools.combinations([kinds[size] for size in shape if size in kinds], 2)
    }


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_no_array_has_all_pairs_of_columns_or_of_slots_and_items(platform):
    """No array holds all attention weights, logits, or one-hot vectors of slots, positions or items."""
    assert pairs("cpu") >= {
        ("column", "column"),
        ("column", "slot"),
        ("item", "slot"),
    }  # the CPU has all of them
    assert not pairs(platform)


def kernels(platform: str, layers: int) -> collections.Counter:
    calls = [
        each.params for each in equations(platform, layers) if each.primitive.name == "pallas_call"
    ]
    return collections.Counter(
        call.get("name") or str(call["name_and_src_info"]).split()[0] for call in calls
    )


def test_rows_of_both_tasks_go_through_the_layers_together():
    """A pass per task would read the weights of each layer twice and compute two products for their gradients."""
    assert kernels("tpu", 2)["attention"] == kernels("tpu", 2)["attention_gradient"] == 2


def test_a_tpu_compiles_one_layer_for_all_layers():
    assert kernels("tpu", 3) == kernels("tpu", 8)
    assert kernels("tpu", 8)["attention_gradient"] == 1


@pytest.mark.parametrize("platform", ["tpu", "gpu"])
def test_dropout_draws_two_numbers_per_row_and_masking_one_per_column(platform):
    sizes = [
        x.aval.size
        for equation in equations(platform)
        if equation.primitive.name == "random_bits"
        for x in equation.outvars
    ]
    assert sizes and max(sizes) <= ROWS * LENGTH


@pytest.mark.parametrize("platform", ["tpu", "gpu", "cpu"])
def test_each_gradient_is_summed_over_devices_once(platform):
    state = jax.eval_shape(functools.partial(init_state, step_config(), ITEMS))
    sums = [
        x.aval
        for equation in equations(platform)
        if equation.primitive.name.startswith("psum")
        for x in equation.outvars
    ]
    numbers = (
        sum(x.size for x in jax.tree.leaves(state.params)) + 2
    )  # plus the loss and the number of targets
    assert sum(x.size for x in sums) == numbers
    assert all(x.dtype == jnp.float32 for x in sums)


@pytest.mark.parametrize(
    "platform, transposed", [("tpu", [(TABLE, WIDTH)]), ("gpu", []), ("cpu", [])]
)
def test_the_gradient_of_a_narrow_table_has_the_layout_in_which_a_tpu_stores_the_table(
    platform, transposed
):
    """The layout changes before the sum over devices, so that no padding is sent."""
    laid_out = [each for each in equations(platform) if each.primitive.name == "layout_constraint"]
    assert [each.invars[0].aval.shape for each in laid_out] == transposed
    summed = {
        x
        for each in equations(platform)
        if each.primitive.name.startswith("psum")
        for x in each.invars
    }
    assert all(
        each.params["layout"].major_to_minor == (1, 0) and each.outvars[0] in summed
        for each in laid_out
    )


def test_the_state_is_donated():
    """Every array of the state is replaced in place, so that a device never stores two copies."""
    config = step_config()
    layout = Layout(config.parallel)
    state = jax.eval_shape(functools.partial(init_state, config, ITEMS))
    packed = Packed(*[jax.ShapeDtypeStruct((ROWS, LENGTH), jnp.int32)] * 4)
    step = layout.compile_update(
        functools.partial(train_step, StepSpec(config, ITEMS, SLOTS)), state
    )
    arguments = step.lower(state, packed, jax.eval_shape(lambda: jax.random.key(0))).args_info[0]
    given = jax.tree.map(lambda x: x.donated, arguments)
    assert all(jax.tree.leaves(given[0])) and not any(jax.tree.leaves(given[1:]))
