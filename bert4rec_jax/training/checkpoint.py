# SPDX-License-Identifier: Apache-2.0
"""Checkpoints: asynchronous Orbax saves of which the latest and the best are kept, verified when they are read."""

import copy
import json
import os
import shutil
import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from bert4rec_jax.devices.errors import lost_process
from bert4rec_jax.devices.layout import agreed
from bert4rec_jax.errors import UserError

_LATEST = 2  # a damaged newest one leaves another to fall back to


def fingerprint(tree: Any) -> jax.Array:
    """Returns uint32[leaves], a digest of every leaf's bits; independent of how the leaf is spread over devices.

    Sums, modulo 2^32, of the bits times a hash of their position: a changed, swapped or missing value shows.
    """
    def leaf_digest(x):
        if x.dtype.itemsize != 4:
            x = x.astype(jnp.float32 if jnp.issubdtype(x.dtype, jnp.floating) else jnp.uint32)
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32).reshape(-1)
        place = jnp.arange(bits.size, dtype=jnp.uint32) * jnp.uint32(2654435761) | jnp.uint32(1)
        return jnp.sum((bits ^ (bits >> 15)) * place, dtype=jnp.uint32)

    return jnp.stack([leaf_digest(x) for x in jax.tree.leaves(tree)])


class _KeepLatestAndBest:
    """Orbax's preservation policy: the newest `_LATEST` and the best."""

    def __init__(self):
        self.best_step: int | None = None

    def should_preserve(self, checkpoints, *, context):
        newest = sorted(c.step for c in checkpoints)[-_LATEST:]
        return [c.step in newest or c.step == self.best_step for c in checkpoints]


class Checkpoints:
    """The checkpoints of one run directory; use as a context manager, so that saves are finished on leaving."""

    def __init__(self, folder: str, read_only: bool = False):
        """Opens (or makes) `folder`."""
        self._folder = os.path.abspath(folder)
        self._read_only = read_only
        self._policy = _KeepLatestAndBest()
        self._digest = jax.jit(fingerprint)
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        return ocp.CheckpointManager(self._folder, options=ocp.CheckpointManagerOptions(
            preservation_policy=self._policy, read_only=self._read_only, create=not self._read_only,
            cleanup_tmp_directories=not self._read_only))

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind, *_) -> None:
        # Closing waits for the other processes, which after an error may wait for ever.
        if kind is None or jax.process_count() == 1:
            self._manager.close()

    def steps(self) -> list[int]:
        """Returns the steps of complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, state: Any, progress: dict, best_step: int | None, replace: bool = False) -> None:
        """Starts saving in the background; waits for the save before it.

        Args:
          step: updates done.
          state: a tree of arrays.
          progress: JSON values that go with it.
          best_step: the step whose checkpoint is to outlive newer ones.
          replace: whether to put it in the place of a checkpoint of the same step, rather than keep that one.

        Raises:
          UserError: the disk is full or not writable; complete checkpoints stay as they are.
        """
        if step in self._manager.all_steps():
            if not replace:
                return
            self._manager.delete(step)
        self._policy.best_step = best_step
        # A copy: it is written while training goes on and changes the original.
        progress = copy.deepcopy(progress) | {"digest": np.asarray(self._digest(state)).tolist()}
        try:
            self._manager.save(step, args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                progress=ocp.args.JsonSave({**progress, "checksum": _checksum(progress)})))
        except (OSError, ValueError) as error:
            raise self._failed(f"step {step}", error) from error

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
          UserError: as `save`.
        """
        try:
            self._manager.wait_until_finished()
        except (OSError, ValueError) as error:
            raise self._failed("the last step", error) from error

    def _failed(self, step: str, error: Exception) -> UserError:
        if jax.process_count() > 1 and not isinstance(error, OSError):
            # Saving waits for the other processes in several places, each with an error of its own.
            return lost_process(f"{type(error).__name__} while saving {step}")
        free = shutil.disk_usage(self._folder).free / 2**20
        full = "No space left" in str(error) or "RESOURCE_EXHAUSTED" in str(error)
        reason = "no space is left on the disk" if full else " ".join(str(error).split())[:120]
        return UserError(
            f"saving checkpoints in {self._folder} failed by {step}: {reason} ({free:.0f} MiB are free); earlier "
            "checkpoints are intact: put that right and start again to go on.")

    def restore_latest(self, template: Any) -> tuple[Any, dict] | None:
        """Returns (state, progress) of the newest checkpoint that reads back as it was saved, or None.

        A damaged checkpoint is reported, set aside as `<step>.damaged` and the one before it is tried.

        Args:
          template: the state's shapes, dtypes and shardings (`jax.ShapeDtypeStruct` leaves).

        Raises:
          UserError: there are checkpoints and none can be read.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self.restore(step, template)
            except _Damaged as error:
                logging.warning("checkpoint %d is damaged (%s); going back to the one before it", step, error)
                if not self._read_only:
                    self._set_aside(step)
        if steps:
            raise UserError(f"none of the checkpoints in {self._folder} can be read; move that folder away to start "
                            "again from step 0.")
        return None

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            path = os.path.join(self._folder, str(step))
            aside = os.path.join(os.path.dirname(self._folder), f"checkpoint-{step}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(path, aside)
        agreed(True)  # the others wait until it is gone
        self._manager.reload()

    def restore(self, step: int, template: Any) -> tuple[Any, dict]:
        """Returns (state, progress) of one checkpoint.

        Raises:
          _Damaged: it cannot be read, or reads back different from what was saved, by this process or another.
        """
        read, damage = None, None
        try:
            read = self._read(step, template)
        except _Damaged as error:
            damage = error
        if not agreed(damage is None):
            raise damage or _Damaged("another process cannot read it")
        state, progress = read
        if np.asarray(self._digest(state)).tolist() != progress.pop("digest"):
            raise _Damaged("its contents differ from what was saved")
        return state, progress

    def _read(self, step: int, template: Any) -> tuple[Any, dict]:
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(
                state=ocp.args.StandardRestore(template), progress=ocp.args.JsonRestore()))
            progress = dict(restored["progress"])
            intact = progress.pop("checksum") == _checksum(progress)
        except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file.
            reason = " ".join(str(error).split())[:120]
            raise _Damaged(f"{type(error).__name__}: {reason}") from error
        if not intact:
            raise _Damaged("its progress differs from what was saved")
        return restored["state"], progress

    def restore_params(self, step: int, template: Any) -> tuple[int, Any]:
        """Returns the step and `state.params` of the checkpoint of `step`, or of the nearest older one that reads back.

        Raises:
          UserError: there is none.
        """
        for candidate in [s for s in reversed(self.steps()) if s <= step]:
            try:
                return candidate, self.restore(candidate, template)[0].params
            except _Damaged as error:
                logging.warning("checkpoint %d is damaged (%s); going back to an older one", candidate, error)
        raise UserError(f"the checkpoint of step {step} in {self._folder} cannot be read; move that folder away to "
                        "start again from step 0.")


def _checksum(progress: dict) -> int:
    return zlib.crc32(json.dumps(progress, sort_keys=True).encode())


class _Damaged(Exception):
    pass


def write_json(path: str, value: Any) -> None:
    """Writes JSON so that `path` is either the old file or the whole new one."""
    temporary = f"{path}.tmp"
    with open(temporary, "w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
