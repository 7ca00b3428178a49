# SPDX-License-Identifier: Apache-2.0
"""Asynchronous Orbax checkpoints: the newest two and the best are kept, and each is verified when read."""

import contextlib
import copy
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from bert4rec_jax.devices import all_processes_ok, lost_process
from bert4rec_jax.errors import SaveError, UserError
from bert4rec_jax.progress import waiting
from bert4rec_jax.training.step import TrainState

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

    def __init__(self, folder: str | os.PathLike, read_only: bool = False):
        """Opens (or makes) `folder`."""
        self._folder = os.path.abspath(folder)
        self._read_only = read_only
        self._damaged: list[int] = []
        self._policy = _KeepLatestAndBest()
        self._digest = jax.jit(fingerprint)
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        with _unwarned():  # that a folder opened to be read is read-only
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

    def __exit__(self, kind, *_) -> None:
        if kind is not None:
            # Closing waits for the other processes, which after an error may wait for ever, and reports a second time
            # what went wrong.
            if jax.process_count() == 1:
                with contextlib.suppress(Exception):
                    self._manager.close()
            return
        with self._explained("the last step"):
            self._manager.close()

    def steps(self) -> list[int]:
        """Returns the steps of complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        step: int,
        state: TrainState,
        progress: dict,
        best_step: int | None,
        replace: bool = False,
    ) -> None:
        """Starts saving in the background; waits for the save before it.

        Args:
          step: updates done.
          state: what is saved; it is copied before this returns.
          progress: JSON values that go with it.
          best_step: the step whose checkpoint is to outlive newer ones.
          replace: whether to put it in the place of a checkpoint of the same step, rather than keep that one.

        Raises:
          SaveError: the disk is full or not writable; complete checkpoints stay as they are.
        """
        with self._explained(f"step {step}"):
            if step in self._manager.all_steps():
                if not replace:
                    return
                self._manager.delete(step)
            self._policy.best_step = best_step
            params, rest = _parts(state)
            # A copy: it is written while training goes on and changes the original.
            progress = copy.deepcopy(progress) | {
                "digest": np.asarray(self._digest((params, rest))).tolist()
            }
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    params=ocp.args.StandardSave(params),
                    rest=ocp.args.StandardSave(rest),
                    progress=ocp.args.JsonSave({**progress, "checksum": _checksum(progress)}),
                ),
            )

    def wait(self) -> None:
        """Returns when everything is on disk.

        Raises:
          UserError: as `save`.
        """
        with self._explained("the last step"):
            self._manager.wait_until_finished()

    @contextlib.contextmanager
    def _explained(self, step: str) -> Iterator[None]:
        """Turns what Orbax raises when a save fails into a SaveError.

        A full disk reaches us in many ways: out of the save, of the wait, of its background threads at the next call
        or on closing, as an OSError, a ValueError of TensorStore, or a RuntimeError about either.
        """
        try:
            with waiting("saving a checkpoint", jax.process_index() == 0):
                yield
        except UserError:
            raise
        except Exception as error:
            if jax.process_count() > 1 and not isinstance(error, OSError):
                # Saving waits for the other processes in several places, each with an error of its own.
                raise lost_process(f"{type(error).__name__} while saving {step}") from error
            free = shutil.disk_usage(self._folder).free / 2**20
            chain = " ".join(str(e) for e in _causes(error))
            full = any(
                word in chain for word in ("No space left", "RESOURCE_EXHAUSTED", "Disk quota")
            )
            reason = "no space is left on the disk" if full else " ".join(str(error).split())[:120]
            raise SaveError(
                f"saving checkpoints in {self._folder} failed by {step}",
                f"{reason} ({free:.0f} MiB are free)",
            ) from error

    def restore_latest(self, template: TrainState) -> tuple[TrainState, dict] | None:
        """Returns (state, progress) of the newest checkpoint that reads back as it was saved, or None.

        A damaged checkpoint is reported and moved out to `checkpoint-<step>.damaged` in the run directory; then the one
        before it is tried.

        Args:
          template: the state's shapes, dtypes and shardings (`jax.ShapeDtypeStruct` leaves).

        Raises:
          UserError: there are checkpoints and none can be read.
        """
        params, rest = _parts(template)

        def read(step: int) -> tuple[TrainState, dict]:
            parts, progress = self._read(step, {"params": params, "rest": rest})
            return TrainState(params=parts["params"], **parts["rest"]), progress

        for step in reversed(self.steps()):
            intact = self._try(step, read)
            if intact is not None:
                return intact
            if not self._read_only:
                self._set_aside(step)
        return self._none_left()

    def restore_params(self, step: int, template: Any) -> tuple[int, Any]:
        """Returns the step and the parameters of the checkpoint of `step`, or of the newest other one that reads back.

        Only parameters are read, not the optimizer's moments.

        Args:
          step: the one that is wanted.
          template: as `TrainState.params` of `restore_latest`.

        Raises:
          UserError: there is none.
        """
        others = [s for s in reversed(self.steps()) if s != step]
        for candidate in [step, *others] if step in self.steps() else others:
            intact = self._try(
                candidate, lambda s: self._read(s, {"params": template})[0]["params"]
            )
            if intact is not None:
                if candidate != step:
                    logging.warning(
                        "the checkpoint of step %d cannot be read; using that of step %d",
                        step,
                        candidate,
                    )
                return candidate, intact
        self._none_left()
        raise UserError(
            f"there is no checkpoint of step {step} in {self._folder}; train again in another --workdir."
        )

    def latest_progress(self) -> dict | None:
        """Returns the progress of the newest checkpoint whose progress reads back, or None."""
        for step in reversed(self.steps()):
            intact = self._try(step, lambda s: self._read(s, {})[1])
            if intact is not None:
                return intact
        return self._none_left()

    def _none_left(self) -> None:
        """Raises where there were checkpoints: all were damaged."""
        if self.steps() or self._damaged:
            damaged = ", ".join(map(str, self._damaged))
            raise UserError(
                f"none of the checkpoints in {self._folder} can be read (damaged: steps {damaged}); move "
                "that folder away to start again from step 0."
            )

    def _try(self, step: int, read: Callable[[int], Any]) -> Any | None:
        """Returns read(step), or None when this process or another finds the checkpoint damaged."""
        result, damage = None, None
        try:
            result = read(step)
        except _Damaged as error:
            damage = error
        if all_processes_ok(damage is None):
            return result
        logging.warning(
            "checkpoint %d is damaged (%s); going on to another",
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
        all_processes_ok(True)  # the others wait until it is gone
        self._manager.reload()

    def _read(self, step: int, templates: dict[str, Any]) -> tuple[dict[str, Any], dict]:
        """Returns the parts named in `templates`, and the progress, of one checkpoint.

        Raises:
          _Damaged: it cannot be read, or reads back different from what was saved.
        """
        try:
            with waiting(f"reading the checkpoint of step {step}", jax.process_index() == 0):
                restored = self._manager.restore(
                    step,
                    args=ocp.args.Composite(
                        progress=ocp.args.JsonRestore(),
                        **{
                            name: ocp.args.StandardRestore(template)
                            for name, template in templates.items()
                        },
                    ),
                )
            progress = dict(restored["progress"])
            intact = progress.pop("checksum") == _checksum(progress)
        except Exception as error:  # Orbax and TensorStore raise many kinds for a damaged file.
            reason = " ".join(str(error).split())[:120]
            raise _Damaged(f"{type(error).__name__}: {reason}") from error
        if not intact:
            raise _Damaged("its progress differs from what was saved")
        digest = progress.pop("digest")
        parts = {name: restored[name] for name in templates}
        if "params" in parts:  # The digest begins with the leaves of the parameters.
            read = np.asarray(self._digest((parts["params"], parts.get("rest", {})))).tolist()
            if read != digest[: len(read)]:
                raise _Damaged("its contents differ from what was saved")
        return parts, progress


def _parts(state: TrainState) -> tuple[Any, dict]:
    """Returns what recommending needs of a state, and the rest; they are stored apart."""
    rest = state._asdict()
    return rest.pop("params"), rest


@contextlib.contextmanager
def _unwarned() -> Iterator[None]:
    """Keeps warnings of Orbax from whoever uses this package as a library; commands never show them."""

    def serious(record) -> bool:
        return "orbax" not in record.pathname or record.levelname in ("ERROR", "CRITICAL")

    logger = logging.get_absl_logger()
    logger.addFilter(serious)
    try:
        yield
    finally:
        logger.removeFilter(serious)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _checksum(progress: dict) -> int:
    return zlib.crc32(json.dumps(progress, sort_keys=True).encode())


class _Damaged(Exception):
    pass
