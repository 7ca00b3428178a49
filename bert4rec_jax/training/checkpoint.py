# SPDX-License-Identifier: Apache-2.0
"""Asynchronous Orbax checkpoints, verified when they are read.

The newest two and the best are kept.
"""

import contextlib
import copy
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from bert4rec_jax.devices import all_processes_ok, lost_process
from bert4rec_jax.errors import SaveError, UserError, failure_reason
from bert4rec_jax.progress import waiting
from bert4rec_jax.training.progress import Progress
from bert4rec_jax.training.step import TrainState

_LATEST = 2  # if the newest checkpoint is damaged, training continues from the one before
_Content = TypeVar("_Content")


class CheckpointState(NamedTuple):
    """Everything that a checkpoint contains.

    Attributes:
      state: parameters, optimizer state and step.
      progress: how far training has come.
    """

    state: TrainState
    progress: Progress


def fingerprint(tree: Any) -> jax.Array:
    """Returns uint32[leaves], a digest of the bits of every leaf.

    It is the sum, modulo 2^32, of the bits times a hash of their position. It changes if a value
    changes, moves or is missing, and does not depend on the placement of the leaf on devices.
    """

    def leaf_digest(x: jax.Array) -> jax.Array:
        if x.dtype.itemsize != 4:
            x = x.astype(jnp.float32 if jnp.issubdtype(x.dtype, jnp.floating) else jnp.uint32)
        bits = jax.lax.bitcast_convert_type(x, jnp.uint32).reshape(-1)
        place = jnp.arange(bits.size, dtype=jnp.uint32) * jnp.uint32(2654435761) | jnp.uint32(1)
        return jnp.sum((bits ^ (bits >> 15)) * place, dtype=jnp.uint32)

    return jnp.stack([leaf_digest(x) for x in jax.tree.leaves(tree)])


class _KeepLatestAndBest:
    """Orbax's preservation policy: keep the newest `_LATEST` checkpoints and the best."""

    def __init__(self) -> None:
        self.best_step: int | None = None

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        newest = sorted(c.step for c in checkpoints)[-_LATEST:]
        return [c.step in newest or c.step == self.best_step for c in checkpoints]


class Checkpoints:
    """The checkpoints of one run directory; a context manager that finishes all saves on exit."""

    def __init__(self, folder: str | os.PathLike, read_only: bool = False):
        """Opens the folder, and creates it unless `read_only`."""
        self._folder = os.path.abspath(folder)
        self._read_only = read_only
        self._damaged: list[int] = []
        self._policy = _KeepLatestAndBest()
        self._digest = jax.jit(fingerprint)
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        with _without_warnings():  # Orbax warns that a read-only folder is read-only
            return ocp.CheckpointManager(
                self._folder,
                options=ocp.CheckpointManagerOptions(
                    preservation_policy=self._policy,
                    read_only=self._read_only,
                    create=not self._read_only,
                    cleanup_tmp_directories=not self._read_only,
                ),
            )

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            # After an error, closing may wait forever for the other processes, and it reports the
            # error a second time.
            if jax.process_count() == 1:
                with contextlib.suppress(Exception):
                    self._manager.close()
            return
        with self._translating("the last step"):
            self._manager.close()

    def steps(self) -> list[int]:
        """Returns the steps of complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, content: CheckpointState, replace: bool = False) -> None:
        """Starts saving in the background, after waiting for the previous save.

        Args:
          step: number of finished steps.
          content: copied before this function returns. The checkpoint of `progress.best_step` is
            kept when newer ones are saved.
          replace: whether to replace a checkpoint of the same step; otherwise that one is kept.

        Raises:
          SaveError: the disk is full or not writable; complete checkpoints are unchanged.
        """
        with self._translating(f"step {step}"):
            if step in self._manager.all_steps():
                if not replace:
                    return
                self._manager.delete(step)
            self._policy.best_step = content.progress.best_step
            params, rest = _parts(content.state)
            # A copy, because training changes the original while it is written.
            progress = copy.deepcopy(vars(content.progress))
            progress["digest"] = np.asarray(self._digest((params, rest))).tolist()
            progress["checksum"] = _checksum(progress)
            parts = ocp.args.Composite(
                params=ocp.args.StandardSave(params),
                rest=ocp.args.StandardSave(rest),
                progress=ocp.args.JsonSave(progress),
            )
            self._manager.save(step, args=parts)

    def wait(self) -> None:
        """Waits until all saves are on disk.

        Raises:
          SaveError: as in `save`.
        """
        with self._translating("the last step"):
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _translating(self, step: str) -> Iterator[None]:
        """Turns the errors of Orbax after a failed save into a SaveError.

        A full disk may be reported by the save, by the wait, at the next call or on closing, as an
        OSError, a ValueError of TensorStore, or a RuntimeError.
        """
        try:
            with waiting("saving a checkpoint", jax.process_index() == 0):
                yield
        except UserError:
            raise
        except Exception as error:
            if jax.process_count() > 1 and not isinstance(error, OSError):
                # Saving waits for the other processes in several places, with different errors.
                raise lost_process(f"{type(error).__name__} while saving {step}") from error
            free = shutil.disk_usage(self._folder).free / 2**20
            raise SaveError(
                f"saving checkpoints in {self._folder} failed by {step}",
                f"{failure_reason(error)} ({free:.0f} MiB are free)",
            ) from error

    def restore_latest(self, template: TrainState) -> CheckpointState | None:
        """Returns the newest checkpoint that is intact, or None if no checkpoint was ever saved.

        A damaged checkpoint is reported and moved to `checkpoint-<step>.damaged` in the run
        directory; then the one before it is tried.

        Args:
          template: the state's shapes, dtypes and shardings (`jax.ShapeDtypeStruct` leaves).

        Raises:
          UserError: there are checkpoints, but none can be read.
        """
        params, rest = _parts(template)

        def read(step: int) -> CheckpointState:
            parts, progress = self._read(step, {"params": params, "rest": rest})
            return CheckpointState(TrainState(params=parts["params"], **parts["rest"]), progress)

        for step in reversed(self.steps()):
            intact = self._try(step, read)
            if intact is not None:
                return intact
            if not self._read_only:
                self._set_aside(step)
        self._require_undamaged()
        return None

    def restore_params(self, step: int, template: Any) -> tuple[int, Any]:
        """Returns the step and the parameters of the checkpoint of `step`.

        If that checkpoint is missing or damaged, the newest other one that is intact is used. The
        optimizer state is not read.

        Args:
          step: the preferred step.
          template: shapes, dtypes and shardings of the parameters.

        Raises:
          UserError: no checkpoint can be read.
        """

        def read(step: int) -> Any:
            parts, _ = self._read(step, {"params": template})
            return parts["params"]

        candidates = sorted(self.steps(), key=lambda other: (other != step, -other))
        for candidate in candidates:
            intact = self._try(candidate, read)
            if intact is None:
                continue
            if candidate != step:
                logging.warning(
                    "the checkpoint of step %d cannot be read; using the one of step %d",
                    step,
                    candidate,
                )
            return candidate, intact
        self._require_undamaged()
        raise UserError(
            f"the checkpoint of step {step} is missing from {self._folder}; train again in another "
            "--workdir."
        )

    def latest_progress(self) -> Progress | None:
        """Returns the progress in the newest checkpoint where it is intact, or None."""

        def read(step: int) -> Progress:
            _, progress = self._read(step, {})
            return progress

        for step in reversed(self.steps()):
            intact = self._try(step, read)
            if intact is not None:
                return intact
        self._require_undamaged()
        return None

    def _require_undamaged(self) -> None:
        """Raises a UserError if there were checkpoints, because all of them are damaged."""
        if self.steps() or self._damaged:
            damaged = ", ".join(map(str, self._damaged))
            raise UserError(
                f"none of the checkpoints in {self._folder} can be read (damaged: steps "
                f"{damaged}); move that folder away to start again from step 0."
            )

    def _try(self, step: int, read: Callable[[int], _Content]) -> _Content | None:
        """Returns read(step), or None if this process or another finds the checkpoint damaged."""
        result: _Content | None = None
        damage: _Damaged | None = None
        try:
            result = read(step)
        except _Damaged as error:
            damage = error
        if all_processes_ok(damage is None):
            return result
        logging.warning(
            "checkpoint %d is damaged (%s); trying another",
            step,
            damage or "another process cannot read it",
        )
        self._damaged.append(step)
        return None

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            path = os.path.join(self._folder, str(step))
            aside = os.path.join(os.path.dirname(self._folder), f"checkpoint-{step}.damaged")
            shutil.rmtree(aside, ignore_errors=True)
            os.rename(path, aside)
        all_processes_ok(True)  # the other processes wait until it has been moved
        self._manager.reload()

    def _read(self, step: int, templates: dict[str, Any]) -> tuple[dict[str, Any], Progress]:
        """Returns the parts named in `templates`, and the progress, of one checkpoint.

        Raises:
          _Damaged: it cannot be read, or its content differs from the saved content.
        """
        restores = {name: ocp.args.StandardRestore(part) for name, part in templates.items()}
        arguments = ocp.args.Composite(progress=ocp.args.JsonRestore(), **restores)
        try:
            with waiting(f"reading the checkpoint of step {step}", jax.process_index() == 0):
                restored = self._manager.restore(step, args=arguments)
            values = dict(restored["progress"])
            intact = values.pop("checksum") == _checksum(values)
            digest = values.pop("digest")
            progress = Progress(**values)
        except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file.
            raise _Damaged(f"{type(error).__name__}: {failure_reason(error)}") from error
        if not intact:
            raise _Damaged("its progress has changed since it was saved")
        parts = {name: restored[name] for name in templates}
        if "params" in parts:  # the digest begins with the leaves of the parameters
            read = np.asarray(self._digest((parts["params"], parts.get("rest", {})))).tolist()
            if read != digest[: len(read)]:
                raise _Damaged("its content has changed since it was saved")
        return parts, progress


def _parts(state: TrainState) -> tuple[Any, dict]:
    """Returns the parameters and the rest of a state; recommending reads only the parameters."""
    rest = state._asdict()
    return rest.pop("params"), rest


@contextlib.contextmanager
def _without_warnings() -> Iterator[None]:
    """Hides the warnings of Orbax from programs that use this package; commands never show them."""

    def serious(record: Any) -> bool:
        return "orbax" not in record.pathname or record.levelname in ("ERROR", "CRITICAL")

    logger = logging.get_absl_logger()
    logger.addFilter(serious)
    try:
        yield
    finally:
        logger.removeFilter(serious)


def _checksum(progress: dict) -> int:
    return zlib.crc32(json.dumps(progress, sort_keys=True).encode())


class _Damaged(Exception):
    """A checkpoint cannot be read or has changed since it was saved."""
