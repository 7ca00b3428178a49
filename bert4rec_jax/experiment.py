# SPDX-License-Identifier: Apache-2.0
"""A configuration with its data, layout and compiled step; training and evaluating it in a run directory."""

import contextlib
import functools
import time
from collections.abc import Callable
from typing import Any

import jax

from bert4rec_jax.config import Config
from bert4rec_jax.data import (
    Dataset,
    Packed,
    Split,
    TrainingBatches,
    feature_count,
    load_dataset,
    split_dataset,
    training_counts,
)
from bert4rec_jax.devices import Layout, StopSignal, check_memory, step_memory, translate_errors
from bert4rec_jax.errors import Stopped, UserError
from bert4rec_jax.model import fold_features, masks_per_history
from bert4rec_jax.progress import waiting
from bert4rec_jax.ranking import Cases, Ranker, baselines, from_ranks, protocol, repeated_targets
from bert4rec_jax.run_files import RunFiles
from bert4rec_jax.terminal import say
from bert4rec_jax.training import (
    Checkpoints,
    Loop,
    MetricWriter,
    Progress,
    RunDirectory,
    StepSpec,
    TrainState,
    add_baselines,
    collect,
    init_state,
    state_template,
    train_step,
    write_test_line,
)


class Experiment:
    """A configuration with its data, batches, rankers and compiled step."""

    def __init__(self, config: Config, layout: Layout | None = None):
        """Loads the data and lays everything out; nothing is compiled yet.

        Args:
          config: the run's configuration.
          layout: the devices; None for those that `config.parallel` asks for.
        """
        self.config = c = config
        self.layout = layout or Layout(c.parallel)
        _check_rows(c, self.layout)
        self.dataset: Dataset = load_dataset(c.data, c.filter)
        self.split: Split = split_dataset(self.dataset, c.split)
        self.num_items = self.dataset.num_items
        if (self.split.train_stop - self.dataset.offsets[:-1]).max() < 2:
            raise UserError(
                f"no user has two training events ({self.split.description}), and one alone teaches "
                "nothing of what comes next; use more data."
            )
        self.batches = TrainingBatches(
            self.dataset,
            self.split,
            c.model.max_length,
            c.train.batch_rows,
            c.train.windows,
            c.seed,
        )
        self.num_slots = self.batches.most_in_a_row(
            masks_per_history(c.masking, c.model.max_length)
        )
        self.tokens_per_step = self.batches.tokens_per_epoch / self.batches.steps_per_epoch()
        self.popularity = training_counts(self.dataset, self.split)
        self.root = jax.random.key(c.seed)
        self._rankers: dict[str, Ranker] = {}
        self.features = self.dataset.features
        self._num_features = feature_count(self.features)
        self.template = state_template(c, self.num_items, self.layout, self._num_features)
        check_memory(c, self.template)
        spec = StepSpec(c, self.num_items, self.num_slots, self.features)
        self.step = self.layout.compile_update(functools.partial(train_step, spec), self.template)
        shardings = self.layout.shardings(
            {name: self.template.params[name] for name in ("items", "encoder")}
        )
        self._fold = jax.jit(
            functools.partial(fold_features, features=self.features), out_shardings=shardings
        )

    def initial_state(self) -> TrainState:
        """Returns the state of step 0, placed on the devices."""
        init = functools.partial(init_state, self.config, self.num_items, self._num_features)
        return jax.jit(init, out_shardings=self.layout.shardings(self.template))()

    def folded(self, params: Any) -> Any:
        """Returns parameters as rankers take them, with the features of items in the item table."""
        return params if self.features is None else self._fold(params)

    def batch(self, step: int) -> Packed:
        """Returns this process's part of the batch of `step`, placed on its devices."""
        return self.layout.put_batch(
            self.batches.batch(step, self.layout.process, self.layout.processes)
        )

    def cases(self, part: str) -> Cases:
        """Returns the cases of `valid` or `test`."""
        users, targets = (
            getattr(self.split, f"{part}_users"),
            getattr(self.split, f"{part}_targets"),
        )
        return Cases(users, self.dataset.offsets[users], targets)

    def ranker(self, part: str) -> Ranker:
        """Returns the ranker of `valid` or `test`, which is laid out once."""
        if part not in self._rankers:
            with waiting(f"packing the histories of {part} users", self.layout.process == 0):
                self._rankers[part] = Ranker(
                    self.config, self.dataset, self.cases(part), self.layout, self.popularity
                )
        return self._rankers[part]

    def step_bytes(self) -> int:
        """Returns the memory that a training step takes on each device: state, batch, activations, gradients."""
        compiled = self.step.lower(self.template, self.batch(0), self.root).compile()
        return step_memory(compiled)

    def validator(self, stop: StopSignal) -> Callable[[Any], dict[str, float] | None]:
        """Returns a function from parameters to validation metrics, or to None when a signal came in between."""

        def validate(params: Any) -> dict[str, float] | None:
            ranking = self.ranker("valid").rank(
                self.folded(params), should_stop=stop.requested, title="ranking validation users"
            )
            return None if ranking is None else from_ranks(ranking.ranks(self.config.eval.ties))

        return validate

    def train(
        self, run: RunDirectory, checkpoints: Checkpoints, stop: StopSignal
    ) -> Progress | None:
        """Trains from the latest checkpoint, or from the start; None when stopped by a signal."""
        c = self.config
        restored = checkpoints.restore_latest(self.template)
        state, progress = (
            (restored[0], Progress(**restored[1]))
            if restored
            else (self.initial_state(), Progress())
        )
        with MetricWriter(
            run, c.train, self.tokens_per_step, int(state.step), progress.validation_due
        ) as writer:
            loop = Loop(
                c.train,
                lambda state, batch: self.step(state, batch, self.root),
                self.batch,
                self.validator(stop),
                c.eval.metric,
                checkpoints,
                writer,
                stop,
            )
            return progress if loop.run(state, progress) else None

    def test(
        self, run: RunDirectory, checkpoints: Checkpoints, progress: Progress, stop: StopSignal
    ) -> dict | None:
        """Ranks validation and test users with the best checkpoint and writes results.json and ranks_test.npz."""
        best_step, params = checkpoints.restore_params(progress.best_step, self.template.params)
        begin = time.perf_counter()
        cases, rankings, folded = {}, {}, self.folded(params)
        for part, name in (("valid", "validation"), ("test", "test")):
            cases[part] = self.cases(part)
            rankings[part] = self.ranker(part).rank(
                folded,
                part == "test",
                stop.requested,
                f"ranking {name} users with the best checkpoint",
            )
            if rankings[part] is None:
                return None
        seconds = time.perf_counter() - begin
        results, ranks = collect(
            self.config,
            self.dataset,
            self.popularity,
            cases,
            rankings,
            {
                "best_step": best_step,
                "steps": max(checkpoints.steps()),
                "train_seconds": progress.seconds,
                "eval_seconds": seconds,
                "users_per_second": sum(len(x.users) for x in cases.values()) / seconds,
                "protocol": protocol(
                    self.config.eval,
                    self.split,
                    int(repeated_targets(self.dataset, cases["test"]).sum()),
                ),
                "parameters": sum(x.size for x in jax.tree.leaves(params)),
            },
        )
        # The model's own numbers are safe before the baselines begin, which may take long and much memory.
        run.write_results(results, ranks)
        if run.writes:
            write_test_line(
                str(run.files.metrics_path), best_step, progress.seconds, results["test"]
            )
        with waiting("ranking by the baselines", run.writes):
            counting, left_out = baselines.rank_all(
                self.config, self.dataset, self.split, cases["test"], self.popularity
            )
        for name, reason in left_out.items() if run.writes else ():
            say(f"note: the baseline {name} is left out: {reason}.")
        add_baselines(self.config, results, ranks, counting, left_out)
        run.write_results(results, ranks)
        return results


def _check_rows(c: Config, layout: Layout) -> None:
    """Raises a UserError unless the rows of a batch can be dealt out to devices, parts and tasks."""
    layout.check_rows(c.train.batch_rows, "config.train.batch_rows")
    layout.check_rows(c.eval.batch_rows, "config.eval.batch_rows")
    rows = c.train.batch_rows // layout.num_devices
    if rows % c.train.accumulate:
        raise UserError(
            f"config.train.accumulate = {c.train.accumulate} must divide the {rows} rows of a device."
        )
    rows //= c.train.accumulate
    learning_next = rows * c.masking.next_item_share
    if abs(learning_next - round(learning_next)) > 1e-3:
        raise UserError(
            f"config.masking.next_item_share = {c.masking.next_item_share} of {rows} rows is no whole number: so many of the "
            f"{c.train.batch_rows} rows of a batch a device takes at once ({layout.num_devices} devices, "
            f"config.train.accumulate = {c.train.accumulate}). Raise config.train.batch_rows."
        )


def train_and_evaluate(config: Config, workdir: str) -> dict | None:
    """Trains (or goes on training) in `workdir` and ranks the test users with the best checkpoint.

    Returns:
      What results.json holds, or None when a signal stopped the run; starting it again goes on.

    Raises:
      UserError: for anything the user can put right.
    """
    with RunDirectory(workdir, config) as run, StopSignal() as stop, contextlib.suppress(Stopped):
        experiment = Experiment(config)
        if stop.requested():
            return None
        run.claim(experiment.dataset, experiment.popularity, "train")
        with (
            Checkpoints(run.files.checkpoints_path) as checkpoints,
            translate_errors(config, experiment.step_bytes),
        ):
            progress = experiment.train(run, checkpoints, stop)
            return None if progress is None else experiment.test(run, checkpoints, progress, stop)


def evaluate(config: Config, workdir: str, trained: str = "") -> dict | None:
    """Ranks with the best checkpoint of a run that has been trained.

    Args:
      config: that of the run; where `trained` is given, the fields of `config.eval` that say how to rank may differ.
      workdir: results go here.
      trained: directory of the run; empty: `workdir` itself.

    Returns:
      What results.json holds, or None when a signal stopped it.

    Raises:
      UserError: there is no checkpoint, or it is that of another configuration or other data.
    """
    with RunDirectory(workdir, config) as run, StopSignal() as stop, contextlib.suppress(Stopped):
        experiment = Experiment(config)
        if stop.requested():
            return None
        if trained:
            RunDirectory(trained, config).check_trained(experiment.dataset, experiment.popularity)
        run.claim(experiment.dataset, experiment.popularity, "evaluate", trained)
        folder = RunFiles(trained or workdir).checkpoints_path
        with (
            Checkpoints(folder, read_only=bool(trained)) as checkpoints,
            translate_errors(config, experiment.step_bytes),
        ):
            progress = checkpoints.latest_progress()
            if progress is None or progress["best_step"] is None:
                raise UserError(
                    f"{trained or workdir} holds no checkpoint that has been validated; train first "
                    "(--mode train)."
                )
            return experiment.test(run, checkpoints, Progress(**progress), stop)
