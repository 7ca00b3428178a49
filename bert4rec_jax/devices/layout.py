# SPDX-License-Identifier: Apache-2.0
"""One function, laid over devices: `jit` with named shardings over a mesh, or `pmap`.

A step or a ranking is written for one device's part of the batch, with a `Placement` that names
the mesh axes of its sums. `Layout.compile_update` and `Layout.compile_per_row` turn it into a
function of global arrays. Rows of a batch are split over all devices, the item table (and its
optimizer moments) over the devices of the items axis; everything else is replicated.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental.layout import Layout as Order
from jax.experimental.layout import with_layout_constraint
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bert4rec_jax.config import ParallelConfig
from bert4rec_jax.devices.cpu import compiler_options
from bert4rec_jax.devices.placement import Placement, platform_of
from bert4rec_jax.errors import UserError

DATA = "data"
ITEMS = "items"
TPU_LANES = 128


class Layout:
    """The devices of a run and how arrays lie on them.

    Attributes:
      placement: the keyword argument `placement` of every compiled function.
      num_devices: devices over which rows are split.
      process: this process's number among `processes`, each of which feeds an equal share of the
        rows.
      processes: number of processes.
    """

    def __init__(self, config: ParallelConfig, devices: Sequence[jax.Device] | None = None):
        """Makes the mesh.

        Args:
          config: its shape.
          devices: None for all devices of this job. The devices of an `aot.Target` are only
            described; functions compile for them but cannot run.

        Raises:
          UserError: the devices do not fit the configuration.
        """
        # Each process feeds consecutive rows, so its devices must be adjacent in the mesh. TPUs
        # number their devices by position in the machine instead. The slower network of the data
        # center connects TPU slices, so slices follow each other: the data axis spans them, and the
        # items axis stays inside one slice.
        devices = sorted(
            devices or jax.devices(),
            key=lambda d: (getattr(d, "slice_index", 0), d.process_index, d.id),
        )
        if config.mode == "pmap" and jax.process_count() > 1:
            raise UserError(
                "config.parallel.mode = 'pmap' works in one process only, because the arrays of "
                "pmap belong to one process and cannot be saved; use config.parallel.mode = 'jit' "
                f"with the {jax.process_count()} processes of this job."
            )
        data = config.data or max(len(devices) // config.item_shards, 1)
        wanted = data * config.item_shards
        if wanted > len(devices) or (jax.process_count() > 1 and wanted != len(devices)):
            raise UserError(
                f"config.parallel needs {data} x {config.item_shards} devices, and the job has "
                f"{len(devices)}; set config.parallel.data and config.parallel.item_shards to "
                "match."
            )
        self.num_devices, self.processes, self.process = (
            wanted,
            jax.process_count(),
            jax.process_index(),
        )
        self._pmap, self._catalogue = config.mode == "pmap", config.item_shards
        self._devices = devices[:wanted]
        # The mesh of pmap has one axis; an array on another mesh would be compiled for a second
        # time.
        names = (DATA,) if self._pmap else (DATA, ITEMS)
        grid = np.array(self._devices).reshape((data, config.item_shards)[: len(names)])
        self._mesh = Mesh(grid, names, axis_types=(AxisType.Auto,) * len(names))
        one = wanted == 1 and not self._pmap
        self.placement = Placement(
            platform_of(devices[0]),
            None if one else DATA,
            ITEMS if config.item_shards > 1 else None,
        )
        self._rows = P(names)

    def check_rows(self, rows: int, name: str) -> None:
        """Raises a UserError unless `rows`, the value of the field `name`, divides evenly."""
        if rows % self.num_devices:
            raise UserError(
                f"{name} = {rows} must be a multiple of the {self.num_devices} devices in use."
            )

    def check_table(self, rows: int, name: str) -> None:
        """Raises a UserError unless the field `name` divides the `rows` of the item table."""
        if rows % self._catalogue:
            raise UserError(
                f"{name} = {self._catalogue} must divide the {rows} rows of the item table; a "
                "power of two up to 64 always does."
            )

    @property
    def abstract_mesh(self) -> AbstractMesh:
        """The mesh without its devices, to trace functions for devices that are only described."""
        return self._mesh.abstract_mesh

    def row_sharding(self) -> NamedSharding:
        """Returns the sharding of arrays whose first dimension runs over rows or cases."""
        return NamedSharding(self._mesh, self._rows)

    def shardings(self, state: Any) -> Any:
        """Returns the sharding of every leaf of a state or of parameters (arrays or shapes)."""
        return jax.tree.map(
            lambda spec: NamedSharding(self._mesh, spec),
            self._specs(state),
            is_leaf=lambda x: isinstance(x, P),
        )

    def _specs(self, state: Any) -> Any:
        def spec(path: Any, _: Any) -> Any:
            split = self.placement.items and any(
                getattr(key, "key", None) == "items" for key in path
            )
            return P(ITEMS) if split else P()

        return jax.tree_util.tree_map_with_path(spec, state)

    def compile_update(self, update: Callable[..., tuple[Any, Any]], state: Any) -> Any:
        """Compiles update(state, batch, key, placement=placement) -> (new state, sums).

        Args:
          update: written for one device; its sums are equal on all devices.
          state: the first argument or its shapes, for the shardings.

        Returns:
          A function of (state, batch, key) that consumes the state.
        """
        update = functools.partial(update, placement=self.placement)
        if self._pmap:
            return self._compile_pmap(update, (None, 0, None), (None, None), donated=(0,))
        specs = self._specs(state)
        return self._compile_jit(update, (specs, self._rows, P()), (specs, P()), donated=(0,))

    def compile_per_row(
        self, function: Callable[..., Any], params: Any
    ) -> Callable[[Any, Any], Any]:
        """Compiles function(params, batch, placement=placement) -> arrays with one row per case.

        Args:
          function: written for one device's part of the batch.
          params: the first argument or its shapes, for the shardings.

        Returns:
          A function of (params, batch).
        """
        function = functools.partial(function, placement=self.placement)
        if self._pmap:
            mapped = self._compile_pmap(function, (None, 0), 0)
            return lambda params, batch: jax.tree.map(_merge_two_dimensions, mapped(params, batch))
        return self._compile_jit(function, (self._specs(params), self._rows), self._rows)

    def _compile_jit(
        self, function: Callable, in_specs: tuple, out_specs: Any, donated: tuple[int, ...] = ()
    ) -> Callable:
        if self.placement.data is not None:
            function = jax.shard_map(
                function,
                mesh=self._mesh,
                in_specs=in_specs,
                out_specs=out_specs,
                check_vma=False,
            )
        return self._jit(function, donated)

    def _compile_pmap(
        self, function: Callable, in_axes: tuple, out_axes: Any, donated: tuple[int, ...] = ()
    ) -> Callable:
        mapped = jax.pmap(
            function,
            axis_name=DATA,
            in_axes=in_axes,
            out_axes=out_axes,
            devices=self._devices,
            donate_argnums=donated,
        )
        # pmap does not accept compiler options.
        if compiler_options(self.placement.platform):
            mapped = self._jit(mapped, donated)
        return mapped

    def _jit(self, function: Callable, donated: tuple[int, ...]) -> Callable:
        options = compiler_options(self.placement.platform)
        return jax.jit(function, donate_argnums=donated, compiler_options=options)

    def put_state(self, state: Any) -> Any:
        """Places a host or device state on the devices."""
        return jax.tree.map(jax.device_put, state, self.shardings(state))

    def put_batch(self, batch: Any) -> Any:
        """Places this process's part of a batch: NumPy arrays, split over devices by row."""
        if self._pmap:
            local = len([d for d in self._devices if d.process_index == self.process])
            return jax.tree.map(lambda x: x.reshape(local, len(x) // local, *x.shape[1:]), batch)
        if self.placement.data is None:
            return jax.device_put(batch, self._devices[0])
        sharding = NamedSharding(self._mesh, self._rows)
        return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), batch)

    def to_host(self, tree: Any) -> Any:
        """Returns the results of a compiled function as NumPy arrays, complete in every process."""
        if self.processes > 1:
            from jax.experimental import multihost_utils

            return multihost_utils.process_allgather(tree, tiled=True)
        return jax.tree.map(np.asarray, tree)


def _merge_two_dimensions(x: Any) -> Any:
    return x.reshape(x.shape[0] * x.shape[1], *x.shape[2:])


def in_parameter_layout(x: jax.Array, platform: str) -> jax.Array:
    """Returns x in the memory layout of a TPU's parameters; unchanged on other platforms.

    A TPU stores arrays with rows shorter than a register by columns, which avoids padding.
    Otherwise XLA copies and pads the parameters to match row-major gradients, and back.
    """
    if platform == "tpu" and x.ndim == 2 and x.shape[1] < TPU_LANES <= x.shape[0]:
        return with_layout_constraint(x, Order(major_to_minor=(1, 0)))
    return x
