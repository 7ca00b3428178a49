# SPDX-License-Identifier: Apache-2.0
"""The training step and the loop around it.

A batch is a function of (seed, step) and so is every random number, so a run that is stopped and started again
continues exactly as it would have: the checkpoint holds parameters, optimizer moments and the step.
"""

import functools
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bert4rec_jax import baselines, losses, model
from bert4rec_jax.checkpoint import Checkpoints
from bert4rec_jax.config import Config
from bert4rec_jax.data import Dataset, load_dataset, split_dataset
from bert4rec_jax.data.batching import TrainingBatches
from bert4rec_jax.data.prefetch import prefetch
from bert4rec_jax.data.splits import Split
from bert4rec_jax.errors import UserError
from bert4rec_jax.evaluate import Cases, Ranker
from bert4rec_jax.item_table import lookup
from bert4rec_jax.masking import Packed, mask_items, masks_per_history, next_items
from bert4rec_jax.metric_writers import MetricWriter
from bert4rec_jax.metrics import beyond_accuracy, from_ranks
from bert4rec_jax.optimizer import make_optimizer
from bert4rec_jax.parallel import Axes, Layout
from bert4rec_jax.run_directory import RunDirectory, StopSignal

STREAMS = ("params", "masking", "dropout", "negatives")


class TrainState(NamedTuple):
    """What a checkpoint holds.

    Attributes:
      step: int32, updates done.
      params: `items` and `encoder`, see `model.init_params`.
      opt_state: optax state of the same structure.
      skipped: int32, updates left out because they were not finite (`train.on_nan = "skip"`).
    """

    step: jax.Array
    params: Any
    opt_state: Any
    skipped: jax.Array


def stream_key(root: jax.Array, name: str, step: jax.Array | int = 0) -> jax.Array:
    """Returns the key of a named stream at a step; keys of other names and steps are independent of it."""
    return jax.random.fold_in(jax.random.fold_in(root, STREAMS.index(name)), step)


def init_state(config: Config, num_items: int) -> TrainState:
    """Returns the state before the first step; a function of the configuration alone."""
    params = model.init_params(config.model, num_items, stream_key(jax.random.key(config.seed), "params"))
    opt_state = make_optimizer(config.optimizer, config.train.steps).init(params)
    # Two arrays, as a donated buffer must not be donated twice.
    return TrainState(jnp.zeros((), jnp.int32), params, opt_state, jnp.zeros((), jnp.int32))


def batch_loss(config: Config, num_items: int, num_slots: int, params: Any, packed: Packed, root: jax.Array,
               step: jax.Array, first_row: jax.Array | int, axes: Axes) -> tuple[jax.Array, jax.Array]:
    """Returns the loss summed over a device's slots, and the number of them that hold a target.

    Args:
      config: the run's configuration.
      num_items: size of the catalogue.
      num_slots: slots of a row, K.
      params: as `TrainState.params`.
      packed: this device's rows.
      root: the run's root key.
      step: int32, updates done.
      first_row: number of the first of these rows in the whole batch.
      axes: see `parallel.Axes`.
    """
    if config.model.objective == "masked":
        task = mask_items(config.masking, packed, num_slots, num_items, stream_key(root, "masking", step), first_row)
    else:
        task = next_items(packed)
    positions = packed.from_left if config.model.positions == "left" else packed.from_right
    inputs = model.Inputs(task.tokens, packed.segments, positions, task.slots)
    x_BLD = lookup(params["items"]["embedding"], task.tokens, axes.catalogue)
    dropout_key = jax.random.fold_in(stream_key(root, "dropout", step), first_row)
    h_BKD = model.encode(config.model, params["encoder"], x_BLD, inputs, dropout_key)
    total = losses.loss_sum(
        config.loss, params["items"], h_BKD.reshape(-1, h_BKD.shape[-1]), task.labels.reshape(-1),
        task.weights.reshape(-1), num_items, stream_key(root, "negatives", step), axes.catalogue)
    return total, task.weights.sum()


def train_step(config: Config, num_items: int, num_slots: int, state: TrainState, packed: Packed, root: jax.Array,
               axes: Axes) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update, written for one device's rows; sums go over the devices of `axes`.

    Args:
      config: the run's configuration.
      num_items: size of the catalogue.
      num_slots: slots of a row, K.
      state: before the update.
      packed: this device's rows.
      root: the run's root key.
      axes: see `parallel.Axes`.

    Returns:
      The new state, and `loss` (mean over the batch's targets), `targets`, `grad_norm`.
    """
    rows = packed.tokens.shape[0]
    parts = config.train.accumulate

    def part_gradient(part, rows_of_part):
        first_row = axes.index() * rows + part * (rows // parts)
        loss = lambda params: batch_loss(  # noqa: E731
            config, num_items, num_slots, params, rows_of_part, root, state.step, first_row, axes)
        (loss_sum, targets), gradient = jax.value_and_grad(loss, has_aux=True)(state.params)
        return loss_sum, targets, gradient

    if parts == 1:
        loss_sum, targets, gradient = part_gradient(0, packed)
    else:
        split = jax.tree.map(lambda x: x.reshape(parts, rows // parts, *x.shape[1:]), packed)
        zero = jax.tree.map(jnp.zeros_like, jax.eval_shape(part_gradient, 0, jax.tree.map(lambda x: x[0], split)))
        (loss_sum, targets, gradient), _ = jax.lax.scan(
            lambda total, part: (jax.tree.map(jnp.add, total, part_gradient(*part)), None),
            zero, (jnp.arange(parts), split))

    # Sums of numerators and denominators: shards hold different numbers of targets.
    loss_sum, targets = axes.sum((loss_sum, targets))
    gradient = {"items": axes.sum(gradient["items"], over_catalogue=False),
                "encoder": axes.sum(gradient["encoder"])}
    gradient = jax.tree.map(lambda g: g / targets, gradient)
    square = Axes(None, axes.catalogue).sum(_square_sum(gradient["items"])) + _square_sum(gradient["encoder"])
    norm = jnp.sqrt(square)
    if config.optimizer.clip_norm:
        shrink = jnp.minimum(1.0, config.optimizer.clip_norm / norm)
        gradient = jax.tree.map(lambda g: g * shrink, gradient)
    optimizer = make_optimizer(config.optimizer, config.train.steps)
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params, skipped = optax.apply_updates(state.params, updates), state.skipped
    if config.train.on_nan == "skip":
        finite = jnp.isfinite(norm) & jnp.isfinite(loss_sum)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(finite, new, old), (params, opt_state), (state.params, state.opt_state))
        skipped += ~finite
    metrics = {"loss": loss_sum / targets, "targets": targets, "grad_norm": norm}
    return TrainState(state.step + 1, params, opt_state, skipped), metrics


def _square_sum(tree):
    return sum(jnp.vdot(x, x) for x in jax.tree.leaves(tree))


@dataclass
class Progress:
    """What the loop remembers beside the state; JSON in the checkpoint.

    Attributes:
      seconds: spent training, validation left out.
      best_step: with the best validation so far, or None.
      best_value: its metric.
      waited: validations since.
      losses: of the steps since the last line of metrics.jsonl.
    """

    seconds: float = 0.0
    best_step: int | None = None
    best_value: float = float("-inf")
    waited: int = 0
    losses: list[float] | None = None


class Experiment:
    """A configuration with its data, batches, rankers and compiled step."""

    def __init__(self, config: Config):
        """Loads the data and lays everything out; nothing is compiled yet."""
        self.config = config
        self.dataset: Dataset = load_dataset(config.data)
        self.split: Split = split_dataset(self.dataset, config.data)
        self.layout = Layout(config.parallel)
        self.num_items = self.dataset.num_items
        c = config
        self.layout.check_rows(c.train.batch_rows, "config.train.batch_rows")
        if (c.train.batch_rows // self.layout.num_devices) % c.train.accumulate:
            raise UserError(f"config.train.accumulate = {c.train.accumulate} must divide the "
                            f"{c.train.batch_rows // self.layout.num_devices} rows of a device.")
        self.batches = TrainingBatches(
            self.dataset, self.split, c.model.max_length, c.train.batch_rows, c.train.windows, c.seed)
        self.num_slots = c.model.max_length
        if c.model.objective == "masked":
            self.num_slots = self.batches.most_in_a_row(masks_per_history(c.masking, c.model.max_length))
        self.popularity = baselines.training_counts(self.dataset, self.split)
        self.root = jax.random.key(c.seed)
        self.template = jax.eval_shape(functools.partial(init_state, c, self.num_items))
        self.template = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s),
            self.template, self.layout.shardings(self.template))
        self.step = self.layout.map(
            functools.partial(train_step, c, self.num_items, self.num_slots), self.template, donate=True)

    def initial_state(self) -> TrainState:
        """Returns the state of step 0, placed on the devices."""
        init = functools.partial(init_state, self.config, self.num_items)
        return jax.jit(init, out_shardings=self.layout.shardings(self.template))()

    def batch(self, step: int) -> Packed:
        """Returns this process's part of the batch of `step`, placed on its devices."""
        return self.layout.put_batch(self.batches.batch(step, self.layout.process, self.layout.processes))

    def cases(self, part: str) -> Cases:
        """Returns the cases of `valid` or `test`."""
        users, targets = getattr(self.split, f"{part}_users"), getattr(self.split, f"{part}_targets")
        if part == "valid" and 0 < self.config.eval.valid_users < len(users):
            chosen = np.random.Generator(np.random.Philox(key=[0, 0])).permutation(len(users))
            chosen = np.sort(chosen[:self.config.eval.valid_users])
            users, targets = users[chosen], targets[chosen]
        if len(users) == 0:
            raise UserError(f"no user has a {part} item under config.data.split = {self.config.data.split!r}; users "
                            "need at least three interactions.")
        return Cases(users, self.dataset.offsets[users], targets)

    def ranker(self, part: str) -> Ranker:
        """Returns the ranker of `valid` or `test`."""
        return Ranker(self.config, self.dataset, self.cases(part), self.layout, self.popularity)

    def protocol(self) -> str:
        """Returns the sentence that goes with every number."""
        e = self.config.eval
        candidates = {"full": "ranked against the whole catalogue",
                      "pop100": "ranked against 100 negatives drawn by training popularity, never interacted with",
                      "uni100": "ranked against 100 negatives drawn uniformly, never interacted with"}[e.protocol]
        seen = "seen items removed" if e.filter_seen or e.protocol != "full" else "seen items kept"
        ties = {"pessimistic": "the target ranks behind all ties", "expected": "the target ranks in the middle of ties"}
        return f"{self.split.description}; {candidates}, {seen}; {ties[e.ties]}; one target a user"


def train_and_evaluate(config: Config, workdir: str) -> dict | None:
    """Trains (or goes on training) in `workdir` and ranks the test users with the best checkpoint.

    Returns:
      What results.json holds, or None when a signal stopped the run; starting it again goes on.

    Raises:
      UserError: for anything the user can put right.
    """
    with RunDirectory(workdir, config) as run, StopSignal() as stop:
        experiment = Experiment(config)
        run.claim(experiment.dataset)
        with Checkpoints(run.path("checkpoints")) as checkpoints:
            progress = _train(experiment, run, checkpoints, stop)
            if progress is None:
                return None
            return _test(experiment, run, checkpoints, progress, stop)


def _train(experiment: Experiment, run: RunDirectory, checkpoints: Checkpoints, stop: StopSignal) -> Progress | None:
    """Takes steps until the configured number or the patience is used up; None when stopped by a signal."""
    c = experiment.config.train
    restored = checkpoints.restore_latest(experiment.template)
    state, progress = (restored[0], Progress(**restored[1])) if restored else (
        experiment.initial_state(), Progress(losses=[]))
    step = int(state.step)
    writer = MetricWriter(run, c, step, experiment)
    validator = None
    finished = lambda: step >= c.steps or (c.patience and progress.waited >= c.patience)  # noqa: E731
    pending = []  # device scalars of steps under way
    begin = time.perf_counter()
    with writer, prefetch(experiment.batch, step, c.steps) as batches:
        while not finished():
            state, metrics = experiment.step(state, next(batches), experiment.root)
            step += 1
            pending.append((step, metrics))
            stopping = stop.requested(step)
            due = step % c.eval_every == 0 or step == c.steps
            saving = due or stopping or step % c.checkpoint_every == 0
            logging_now = step % c.log_every == 0 or step == c.steps
            # One step stays under way while the one before it is looked at.
            while pending and (len(pending) > 1 or saving or logging_now):
                done, values = pending.pop(0)
                progress.losses.append(_checked_loss(done, values, c.on_nan, checkpoints))
            writer.tick(step, progress)
            progress.seconds += time.perf_counter() - begin
            if logging_now:
                writer.train(step, progress, values)
            if due and not stopping:
                validator = validator or experiment.ranker("valid")
                stopping = not _validate(experiment, validator, state.params, step, progress, writer, stop)
            if saving:
                checkpoints.save(step, state, vars(progress), progress.best_step)
            begin = time.perf_counter()
            if stopping:
                checkpoints.wait()
                return None
    checkpoints.wait()
    return progress
