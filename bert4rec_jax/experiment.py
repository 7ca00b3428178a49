# SPDX-License-Identifier: Apache-2.0
"""Training and evaluating a model in a run directory."""

import functools
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from bert4rec_jax.config import Config
from bert4rec_jax.data import (
    Dataset,
    ItemFeatures,
    Packed,
    Split,
    TrainingBatches,
    feature_count,
    load_dataset,
    split_dataset,
    training_counts,
)
from bert4rec_jax.devices import Layout, StopSignal, check_memory, step_memory, translate_errors
from bert4rec_jax.errors import UserError
from bert4rec_jax.model import fold_features, masks_per_history
from bert4rec_jax.progress import waiting
from bert4rec_jax.ranking import Cases, Ranker, Ranking, baselines, from_ranks
from bert4rec_jax.run_files import RunFiles
from bert4rec_jax.terminal import say
from bert4rec_jax.training import (
    Checkpoints,
    CheckpointState,
    Loop,
    MetricWriter,
    Progress,
    RankedData,
    RunDirectory,
    RunFacts,
    StepSpec,
    TrainingTask,
    TrainState,
    add_baselines,
    init_state,
    make_ranks,
    make_results,
    state_template,
    train_step,
    warmup_steps,
    write_test_line,
)


class Example(NamedTuple):
    """A test user with the items that the model recommends.

    Attributes:
      user: original id.
      history: item numbers, oldest first.
      recommended: item numbers, best first.
      target: number of the item that came next.
      rank: its rank, from 1.
      candidates: number of items that were ranked.
    """

    user: str
    history: list[int]
    recommended: list[int]
    target: int
    rank: float
    candidates: int


class Evaluation(NamedTuple):
    """The outcome of a run.

    Attributes:
      results: the content of results.json.
      example: a test user with a history of median length.
    """

    results: dict
    example: Example


class Experiment:
    """A configuration with its data, batches, rankers and compiled training step.

    Attributes:
      config: the run's configuration.
      layout: the devices.
      dataset: the data.
      split: the split of the data.
      batches: the training batches.
      num_slots: target slots of a row.
      popularity: int64[num_items + 1], training interactions of each item id.
      root: key of all random numbers of training.
      template: shapes, dtypes and shardings of the training state.
      step: (state, batch, key) -> (new state, metrics); it consumes the state.
    """

    def __init__(self, config: Config, layout: Layout | None = None):
        """Loads the data and prepares the training step; nothing is compiled yet.

        Args:
          config: the run's configuration.
          layout: the devices; None: as `config.parallel` requires.

        Raises:
          UserError: the data are too small, or the batch size does not fit the devices.
        """
        self.config = c = config
        self.layout = layout or Layout(c.parallel)
        _check_rows(c, self.layout)
        self.dataset: Dataset = load_dataset(c.data, c.filter)
        self.split: Split = split_dataset(self.dataset, c.split)
        if (self.split.train_stop - self.dataset.offsets[:-1]).max() < 2:
            raise UserError(
                f"no user has at least two training events ({self.split.description}), so there is "
                "no next item to learn; use more data."
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
        self.popularity = training_counts(self.dataset, self.split)
        self.root = jax.random.key(c.seed)
        self._rankers: dict[str, Ranker] = {}
        num_features = feature_count(self.features)
        self.template = state_template(c, self.num_items, self.layout, num_features)
        check_memory(c, self.template)
        spec = StepSpec(c, self.num_items, self.num_slots, self.features)
        self.step = self.layout.compile_update(functools.partial(train_step, spec), self.template)
        shardings = self.layout.shardings(
            {name: self.template.params[name] for name in ("items", "encoder")}
        )
        self._fold = jax.jit(
            functools.partial(fold_features, features=self.features), out_shardings=shardings
        )

    @property
    def num_items(self) -> int:
        """Number of items in the catalogue."""
        return self.dataset.num_items

    @property
    def features(self) -> ItemFeatures | None:
        """Features of the items, or None if the configuration uses none."""
        return self.dataset.features

    def initial_state(self) -> TrainState:
        """Returns the state of step 0, placed on the devices."""
        num_features = feature_count(self.features)
        init = functools.partial(init_state, self.config, self.num_items, num_features)
        return jax.jit(init, out_shardings=self.layout.shardings(self.template))()

    def folded(self, params: Any) -> Any:
        """Returns the parameters for ranking, with item features added to the item table."""
        return params if self.features is None else self._fold(params)

    def batch(self, step: int) -> Packed:
        """Returns this process's part of the batch of `step`, placed on its devices."""
        batch = self.batches.batch(step, self.layout.process, self.layout.processes)
        return self.layout.put_batch(batch)

    def cases(self, part: str) -> Cases:
        """Returns the cases of `valid` or `test`."""
        users = getattr(self.split, f"{part}_users")
        targets = getattr(self.split, f"{part}_targets")
        return Cases(users, self.dataset.offsets[users], targets)

    def ranker(self, part: str) -> Ranker:
        """Returns the ranker of `valid` or `test`; it is created once."""
        if part not in self._rankers:
            with waiting(f"packing the histories of {part} users", self.layout.process == 0):
                self._rankers[part] = Ranker(
                    self.config, self.dataset, self.cases(part), self.layout, self.popularity
                )
        return self._rankers[part]

    def step_bytes(self) -> int:
        """Returns the bytes that a training step needs on each device.

        They include the state, the batch, activations and gradients.
        """
        compiled = self.step.lower(self.template, self.batch(0), self.root).compile()
        return step_memory(compiled)

    def validate(self, stop: StopSignal, params: Any) -> dict[str, float]:
        """Returns the validation metrics of parameters.

        Raises:
          Stopped: a stop signal came.
        """
        ranking = self._rank("valid", self.folded(params), stop, "ranking validation users")
        return from_ranks(ranking.ranks(self.config.eval.ties))

    def train(self, run: RunDirectory, checkpoints: Checkpoints, stop: StopSignal) -> Progress:
        """Trains from the newest checkpoint, or from scratch without one.

        Raises:
          Stopped: a stop signal came; the state is saved.
        """
        c = self.config
        start = checkpoints.restore_latest(self.template)
        if start is None:
            run.check_fresh_start()
            start = CheckpointState(self.initial_state(), Progress())
        task = TrainingTask(
            update=self._update,
            batch=self.batch,
            validate=functools.partial(self.validate, stop),
            metric=c.eval.metric,
        )
        tokens_per_step = self.batches.tokens_per_epoch / self.batches.steps_per_epoch()
        step = int(start.state.step)
        validation_due = start.progress.validation_due
        with MetricWriter(run, c.train, tokens_per_step, step, validation_due) as writer:
            return Loop(c.train, task, checkpoints, writer, stop).run(start)

    def test(
        self, run: RunDirectory, checkpoints: Checkpoints, progress: Progress, stop: StopSignal
    ) -> Evaluation:
        """Ranks validation and test users with the best checkpoint and writes the results.

        Raises:
          Stopped: a stop signal came.
          UserError: no checkpoint can be read.
        """
        # Without a validation, the newest checkpoint is evaluated.
        best = progress.best_step or max(checkpoints.steps())
        best_step, params = checkpoints.restore_params(best, self.template.params)
        begin = time.perf_counter()
        folded = self.folded(params)
        rankings = {}
        for part, name in (("valid", "validation"), ("test", "test")):
            title = f"ranking {name} users with the best checkpoint"
            rankings[part] = self._rank(part, folded, stop, title, with_top=part == "test")
        facts = RunFacts(
            best_step=best_step,
            steps=max(checkpoints.steps()),
            train_seconds=progress.seconds,
            eval_seconds=time.perf_counter() - begin,
            parameters=sum(x.size for x in jax.tree.leaves(params)),
        )
        cases = {part: self.cases(part) for part in rankings}
        data = RankedData(self.dataset, self.split, self.popularity, cases, rankings)
        results = self._write_results(run, data, facts)
        return Evaluation(results, self._example(cases["test"], rankings["test"]))

    def _update(self, state: TrainState, batch: Packed) -> tuple[TrainState, dict]:
        return self.step(state, batch, self.root)

    def _rank(
        self, part: str, folded: Any, stop: StopSignal, title: str, with_top: bool = False
    ) -> Ranking:
        return self.ranker(part).rank(folded, with_top, stop.check, title)

    def _write_results(self, run: RunDirectory, data: RankedData, facts: RunFacts) -> dict:
        results = make_results(self.config, data, facts)
        ranks = make_ranks(self.config, data)
        # Save the model's results first: the baselines may take long and use much memory.
        run.write_results(results, ranks)
        if run.writes:
            write_test_line(
                run.files.metrics_path, facts.best_step, facts.train_seconds, results["test"]
            )
        with waiting("ranking by the baselines", run.writes):
            rankings, left_out = baselines.rank_all(
                self.config, self.dataset, self.split, data.cases["test"], self.popularity
            )
        if run.writes:
            for name, reason in left_out.items():
                say(f"note: the baseline {name} is left out: {reason}.")
        add_baselines(self.config, results, ranks, rankings, left_out)
        run.write_results(results, ranks)
        return results

    def _example(self, cases: Cases, ranking: Ranking) -> Example:
        """Returns the test user with the median length of history, as a typical example."""
        lengths = cases.targets - cases.starts
        case = int(np.argsort(lengths, kind="stable")[len(lengths) // 2])
        items = self.dataset.items
        start = cases.starts[case]
        target = cases.targets[case]
        assert ranking.top is not None
        return Example(
            user=str(self.dataset.user_table().loc[cases.users[case], "user"]),
            history=np.asarray(items[start:target]).tolist(),
            recommended=[int(item) for item in ranking.top[case] if item],
            target=int(items[target]),
            rank=float(ranking.ranks(self.config.eval.ties)[case]),
            candidates=int(ranking.candidates[case]),
        )


def train_and_evaluate(config: Config, workdir: str) -> dict:
    """Trains in `workdir` and ranks the test users with the best checkpoint.

    If `workdir` contains checkpoints of this run, training continues from the newest one.

    Returns:
      The content of results.json.

    Raises:
      Stopped: a stop signal came; the same call continues.
      UserError: an error that the user can fix.
    """
    return train_run(config, workdir).results


def evaluate(config: Config, workdir: str, trained_from: str = "") -> dict:
    """Ranks the test users with the best checkpoint of a trained run.

    Args:
      config: the run's configuration; with `trained_from`, the evaluation protocol may differ.
      workdir: where to write the results.
      trained_from: directory of the trained run; "": `workdir`.

    Returns:
      The content of results.json.

    Raises:
      Stopped: a stop signal came.
      UserError: the checkpoint is missing, or it belongs to another configuration or other data.
    """
    return evaluate_run(config, workdir, trained_from).results


def train_run(config: Config, workdir: str) -> Evaluation:
    """Like `train_and_evaluate`, but also returns an example."""
    warmup = warmup_steps(config.optimizer, config.train.steps)
    if warmup != config.optimizer.warmup_steps:
        say(
            f"note: the warm-up takes {warmup} steps, half of config.train.steps, because "
            f"config.optimizer.warmup_steps = {config.optimizer.warmup_steps} is too long."
        )
    with RunDirectory(workdir, config) as run, StopSignal() as stop:
        experiment = Experiment(config)
        stop.check()
        run.claim(experiment.dataset, experiment.popularity, "train")
        with (
            Checkpoints(run.files.checkpoints_path) as checkpoints,
            translate_errors(config, experiment.step_bytes),
        ):
            progress = experiment.train(run, checkpoints, stop)
            return experiment.test(run, checkpoints, progress, stop)


def evaluate_run(config: Config, workdir: str, trained_from: str = "") -> Evaluation:
    """Like `evaluate`, but also returns an example."""
    with RunDirectory(workdir, config) as run, StopSignal() as stop:
        experiment = Experiment(config)
        stop.check()
        if trained_from:
            trained = RunDirectory(trained_from, config)
            trained.check_trained(experiment.dataset, experiment.popularity)
        run.claim(experiment.dataset, experiment.popularity, "evaluate", trained_from)
        folder = RunFiles(trained_from or workdir).checkpoints_path
        with (
            Checkpoints(folder, read_only=bool(trained_from)) as checkpoints,
            translate_errors(config, experiment.step_bytes),
        ):
            progress = checkpoints.latest_progress()
            if progress is None or progress.best_step is None:
                raise UserError(
                    f"{trained_from or workdir} contains no validated checkpoint; train first "
                    "(--mode train)."
                )
            return experiment.test(run, checkpoints, progress, stop)


def _check_rows(config: Config, layout: Layout) -> None:
    """Raises a UserError unless the rows of a batch can be divided among devices and tasks."""
    layout.check_rows(config.train.batch_rows, "config.train.batch_rows")
    layout.check_rows(config.eval.batch_rows, "config.eval.batch_rows")
    rows = config.train.batch_rows // layout.num_devices
    accumulate = config.train.accumulate
    if rows % accumulate:
        raise UserError(
            f"config.train.accumulate = {accumulate} must divide the {rows} rows of a device."
        )
    rows //= accumulate
    share = config.masking.next_item_share
    next_item_rows = rows * share
    if abs(next_item_rows - round(next_item_rows)) > 1e-3:
        raise UserError(
            f"config.masking.next_item_share = {share} of {rows} rows is not a whole number. A "
            f"device processes {rows} of the {config.train.batch_rows} rows of a batch at once "
            f"({layout.num_devices} devices, config.train.accumulate = {accumulate}). Raise "
            "config.train.batch_rows."
        )
