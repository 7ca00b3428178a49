# SPDX-License-Identifier: Apache-2.0
"""The training step and the loop around it.

A batch is a function of (seed, step) and so is every random number, so a run that is stopped and started again
continues exactly as it would have: the checkpoint holds parameters, optimizer moments and the step.
"""

import functools
import os
import time
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bert4rec_jax.config import Config
from bert4rec_jax.data import Dataset, load_dataset, split_dataset
from bert4rec_jax.data.batching import Packed, TrainingBatches
from bert4rec_jax.data.prefetch import prefetch
from bert4rec_jax.data.splits import Split
from bert4rec_jax.devices.errors import explained
from bert4rec_jax.devices.layout import Axes, Layout
from bert4rec_jax.errors import UserError
from bert4rec_jax.model import encoder as model
from bert4rec_jax.model import losses
from bert4rec_jax.model.item_table import lookup
from bert4rec_jax.model.tasks import learns_next_item, mask_items, masks_per_history, next_items
from bert4rec_jax.ranking import baselines
from bert4rec_jax.ranking.metrics import beyond_accuracy, from_ranks
from bert4rec_jax.ranking.ranker import Cases, Ranker
from bert4rec_jax.training.checkpoint import Checkpoints
from bert4rec_jax.training.metric_writers import MetricWriter, write_test_line
from bert4rec_jax.training.optimizer import make_optimizer
from bert4rec_jax.training.run_directory import RunDirectory, StopSignal

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
      num_slots: slots of a row with masks, K.
      params: as `TrainState.params`.
      packed: this device's rows.
      root: the run's root key.
      step: int32, updates done.
      first_row: number of the first of these rows in the whole batch.
      axes: see `parallel.Axes`.
    """
    numbers = first_row + np.arange(packed.tokens.shape[0])
    learns_next = learns_next_item(config.next_item_share, len(numbers))
    parts = []
    for next_item in (False, True):
        chosen = np.flatnonzero(learns_next == next_item)
        if len(chosen) == 0:
            continue
        rows = jax.tree.map(lambda x: x[chosen], packed)
        task = next_items(rows) if next_item else mask_items(
            config.masking, rows, num_slots, num_items, stream_key(root, "masking", step), numbers[chosen])
        inputs = model.encoder_inputs(config.model, rows, task.tokens, task.slots)
        x_BLD = lookup(params["items"]["embedding"], task.tokens, axes.catalogue)
        dropout_key = jax.random.fold_in(jax.random.fold_in(stream_key(root, "dropout", step), first_row), next_item)
        h_BKD = model.encode(config.model, params["encoder"], x_BLD, inputs, dropout_key, causal=next_item)
        parts.append((h_BKD.reshape(-1, h_BKD.shape[-1]), task.labels.reshape(-1), task.weights.reshape(-1)))
    h_MD, labels_M, weights_M = (jnp.concatenate(arrays) for arrays in zip(*parts))
    total = losses.loss_sum(config.loss, params["items"], h_MD, labels_M, weights_M, num_items,
                            stream_key(root, "negatives", step), axes.catalogue)
    return total, weights_M.sum()


def train_step(config: Config, num_items: int, num_slots: int, state: TrainState, packed: Packed, root: jax.Array,
               axes: Axes) -> tuple[TrainState, dict[str, jax.Array]]:
    """One update, written for one device's rows; sums go over the devices of `axes`.

    Args:
      config: the run's configuration.
      num_items: size of the catalogue.
      num_slots: slots of a row with masks, K.
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
      validation_due: a signal came between this step and its validation.
    """

    seconds: float = 0.0
    best_step: int | None = None
    best_value: float = float("-inf")
    waited: int = 0
    losses: list[float] | None = None
    validation_due: bool = False


class Experiment:
    """A configuration with its data, batches, rankers and compiled step."""

    def __init__(self, config: Config):
        """Loads the data and lays everything out; nothing is compiled yet."""
        self.config = c = config
        self.layout = Layout(c.parallel)
        self.layout.check_rows(c.train.batch_rows, "config.train.batch_rows")
        rows = c.train.batch_rows // self.layout.num_devices
        if rows % c.train.accumulate:
            raise UserError(f"config.train.accumulate = {c.train.accumulate} must divide the {rows} rows of a device.")
        rows //= c.train.accumulate
        learning_next = rows * c.next_item_share
        if abs(learning_next - round(learning_next)) > 1e-3:
            raise UserError(
                f"config.masking.next_item = {c.masking.next_item} of {rows} rows is no whole number: so many of the "
                f"{c.train.batch_rows} rows of a batch a device takes at once ({self.layout.num_devices} devices, "
                f"config.train.accumulate = {c.train.accumulate}). Raise config.train.batch_rows.")
        self.dataset: Dataset = load_dataset(c.data)
        self.split: Split = split_dataset(self.dataset, c.data)
        self.num_items = self.dataset.num_items
        self.batches = TrainingBatches(
            self.dataset, self.split, c.model.max_length, c.train.batch_rows, c.train.windows, c.seed)
        self.num_slots = self.batches.most_in_a_row(masks_per_history(c.masking, c.model.max_length))
        self.tokens_per_step = self.batches.tokens_per_epoch / self.batches.steps_per_epoch()
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
        with Checkpoints(run.path("checkpoints")) as checkpoints, explained(experiment):
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
    finished = lambda: step >= c.steps or (c.patience and progress.waited >= c.patience)  # noqa: E731
    validator = None
    under_way = []  # (step, device scalars) of steps that may still be running
    with (MetricWriter(run, c, step, progress.seconds, progress.validation_due) as writer,
          prefetch(experiment.batch, step, c.steps) as batches):
        if progress.validation_due:
            validator = experiment.ranker("valid")
            if not _validate(experiment, validator, state.params, step, progress, writer, stop):
                return None
            checkpoints.save(step, state, vars(progress), progress.best_step, replace=True)
        begin = time.perf_counter()
        while not finished():
            state, metrics = experiment.step(state, next(batches), experiment.root)
            step += 1
            under_way.append((step, metrics))
            stopping = stop.requested(step)
            progress.validation_due = step % c.eval_every == 0 or step == c.steps
            validating = progress.validation_due and not stopping
            saving = stopping or validating or step % c.checkpoint_every == 0
            logging_now = step % c.log_every == 0 or step == c.steps
            # The device works on this step while the host looks at the one before it.
            while len(under_way) > (0 if saving or logging_now else 1):
                progress.losses.append(_checked_loss(*under_way.pop(0), c.on_nan, checkpoints))
            progress.seconds += time.perf_counter() - begin
            if logging_now:
                writer.write(step, "train", progress.seconds, {
                    "loss": _finite_mean(progress.losses), "grad_norm": float(metrics["grad_norm"]),
                    "targets": float(metrics["targets"]), "skipped": int(state.skipped)})
                progress.losses = []
            writer.show_progress(step, c.steps, experiment.tokens_per_step)
            if validating:
                validator = validator or experiment.ranker("valid")
                stopping = not _validate(experiment, validator, state.params, step, progress, writer, stop)
            if saving:
                checkpoints.save(step, state, vars(progress), progress.best_step)
            if stopping:
                checkpoints.wait()
                return None
            begin = time.perf_counter()
    checkpoints.wait()
    return progress


def _finite_mean(losses: list[float]) -> float:
    """Returns the mean of those that are finite, NaN where none is."""
    finite = [loss for loss in losses if np.isfinite(loss)]
    return sum(finite) / len(finite) if finite else float("nan")


def _checked_loss(step: int, metrics: dict, on_nan: str, checkpoints: Checkpoints) -> float:
    """Waits for a step and returns its loss; a loss that is not finite ends the run unless it is to be skipped."""
    loss, norm = float(metrics["loss"]), float(metrics["grad_norm"])
    if on_nan == "stop" and not np.isfinite(loss + norm):
        checkpoints.wait()
        last = max(checkpoints.steps(), default=None)
        where = f"the last good checkpoint is that of step {last}" if last else "there is no checkpoint yet"
        raise UserError(f"step {step}: the loss is {loss} and the gradient's norm {norm}; {where}. Lower "
                        "config.optimizer.learning_rate, set config.optimizer.clip_norm, or leave such steps out with "
                        "config.train.on_nan=skip.")
    return loss


def _validate(experiment: Experiment, validator: Ranker, params: Any, step: int, progress: Progress,
              writer: MetricWriter, stop: StopSignal) -> bool:
    """Ranks the validation users and notes whether this is the best step; False when a signal came in between."""
    ranking = validator.rank(params, should_stop=lambda: stop.requested(0))
    if ranking is None:
        return False
    e = experiment.config.eval
    metrics = from_ranks(ranking.ranks(e.ties))
    writer.write(step, "valid", progress.seconds, metrics)
    progress.validation_due = False
    if metrics[e.metric] > progress.best_value:
        progress.best_step, progress.best_value, progress.waited = step, metrics[e.metric], 0
    else:
        progress.waited += 1
    return True


def _test(experiment: Experiment, run: RunDirectory, checkpoints: Checkpoints, progress: Progress,
          stop: StopSignal) -> dict | None:
    """Ranks validation and test users with the best checkpoint and writes results.json and ranks_test.npz."""
    config, dataset = experiment.config, experiment.dataset
    best_step, params = checkpoints.restore_params(progress.best_step, experiment.template)
    begin = time.perf_counter()
    rankings = {}
    for part in ("valid", "test"):
        rankings[part] = experiment.ranker(part).rank(params, part == "test", lambda: stop.requested(0))
        if rankings[part] is None:
            return None
    eval_seconds = time.perf_counter() - begin
    cases = experiment.cases("test")
    metrics = {part: from_ranks(ranking.ranks(config.eval.ties)) for part, ranking in rankings.items()}
    metrics["test"] |= beyond_accuracy(rankings["test"].top, experiment.popularity)
    simple = baselines.rank_all(config, dataset, experiment.split, cases)
    results = {
        **metrics, "best_step": best_step, "steps": max(checkpoints.steps()), "train_seconds": progress.seconds,
        "eval_seconds": eval_seconds,
        "users_per_second": (len(cases.users) + len(experiment.cases("valid").users)) / eval_seconds,
        "protocol": experiment.protocol(), "dataset": dataset.statistics(), "seed": config.seed,
        "parameters": sum(x.size for x in jax.tree.leaves(params)),
        "model": {"masked": "BERT4Rec", "next": "SASRec"}[config.model.objective],
        "baselines": {name: {"test": from_ranks(r.ranks(config.eval.ties))} for name, r in simple.items()},
    }
    targets = np.asarray(dataset.items[cases.targets])
    ranking = rankings["test"]
    run.write_results(results, {
        "user": cases.users, "item": targets, "rank": ranking.ranks(config.eval.ties),
        "candidates": ranking.candidates, "history_length": (cases.targets - cases.starts).astype(np.int32),
        "item_popularity": experiment.popularity[targets],
        **{f"{name}_rank": r.ranks(config.eval.ties) for name, r in simple.items()}})
    if run.writes:
        write_test_line(run.path("metrics.jsonl"), best_step, progress.seconds, results["test"])
    return results


def summary(results: dict) -> str:
    """Returns the test metrics beside the baselines, with their protocol, as text."""
    names = ("ndcg@10", "hr@10", "mrr", "ndcg@100", "hr@100")
    rows = [(results["model"], results["test"])] + [(k, v["test"]) for k, v in results["baselines"].items()]
    lines = ["", f"{'test':16s}" + "".join(f"{name:>10s}" for name in names)]
    lines += [f"{model:16s}" + "".join(f"{metrics[name]:10.4f}" for name in names) for model, metrics in rows]
    data = results["dataset"]
    return "\n".join(lines + [
        "", f"data:     {data['name']}, {data['users']:,} users, {data['items']:,} items, "
        f"{data['interactions']:,} interactions, fingerprint {data['fingerprint']}",
        f"protocol: {results['protocol']}",
        f"run:      best step {results['best_step']} of {results['steps']} by validation, seed {results['seed']}, "
        f"{results['parameters']:,} parameters, {results['train_seconds']:.0f} s of training, "
        f"{results['users_per_second']:,.0f} users ranked a second"])


def evaluate(config: Config, workdir: str, trained: str = "") -> dict | None:
    """Ranks with the best checkpoint of a run that has been trained.

    Args:
      config: that of the run; where `trained` is given, protocol, ties and filter_seen of `config.eval` may differ.
      workdir: results go here.
      trained: directory of the run; empty: `workdir` itself.

    Raises:
      UserError: there is no checkpoint, or it is that of another configuration or other data.
    """
    with RunDirectory(workdir, config) as run, StopSignal() as stop:
        experiment = Experiment(config)
        if trained:
            RunDirectory(trained, config).check_trained(experiment.dataset)
        run.claim(experiment.dataset)
        folder = os.path.join(trained or workdir, "checkpoints")
        with Checkpoints(folder, read_only=bool(trained)) as checkpoints, explained(experiment):
            restored = checkpoints.restore_latest(experiment.template)
            if restored is None or restored[1]["best_step"] is None:
                raise UserError(f"{trained or workdir} holds no checkpoint that has been validated; train first "
                                "(--mode train).")
            return _test(experiment, run, checkpoints, Progress(**restored[1]), stop)
