# SPDX-License-Identifier: Apache-2.0
"""The training loop, with a fake step, validation and checkpoints: no compiler, no disk."""

import copy
from types import SimpleNamespace

import pytest

from bert4rec_jax.config import TrainConfig
from bert4rec_jax.errors import Stopped, UserError
from bert4rec_jax.training import CheckpointState, Loop, Progress, TrainingTask, TrainState, loop


class Saved:
    """Checkpoints that record how they were called."""

    def __init__(self):
        self.saves = {}
        self.waits = 0

    def save(self, step, content, replace=False):
        assert replace == (step in self.saves), f"step {step} saved twice"
        assert content.state.step == step
        self.saves[step] = copy.deepcopy(vars(content.progress))

    def steps(self):
        return list(self.saves)

    def wait(self):
        self.waits += 1


class Written:
    """A metric writer that records its lines."""

    visible = False

    def __init__(self):
        self.lines = []
        self.validations = []

    def write(self, step, split, seconds, values):
        self.lines.append(SimpleNamespace(step=step, split=split, seconds=seconds, **values))

    def show_progress(self, step, seconds):
        pass

    def show_validation(self, step, metrics, is_best):
        self.validations.append((step, is_best))

    def steps(self, split):
        return [line.step for line in self.lines if line.split == split]


def run(
    values,
    losses=None,
    norms=None,
    metric="ndcg@10",
    stop_at=(),
    progress=None,
    start=0,
    stopped_while_validating=(),
    clock=None,
    **fields,
):
    """Runs the loop; values[n] is the metric of validation n, losses[n] the loss of batch n.

    On `clock`, a list of one number, a step takes one second and a validation one hundred.
    """
    clock = clock or [0.0]
    config = TrainConfig(
        **{"steps": 6, "eval_every": 1, "checkpoint_every": 100, "log_every": 100} | fields
    )
    saved = Saved()
    written = Written()
    progress = progress or Progress()
    taken = []
    coming = list(values)
    if start:
        saved.saves[start] = {}

    def update(state, batch):
        assert batch == state.step, "this batch belongs to another step"
        clock[0] += 1
        taken.append(batch)
        return TrainState(state.step + 1, None, None, 0), {
            "loss": losses[batch] if losses else 1.0,
            "grad_norm": norms[batch] if norms else 1.0,
            "targets": 5.0,
        }

    def validate(params):
        clock[0] += 100
        if len(values) - len(coming) in stopped_while_validating:
            raise Stopped(15, "stopped")
        return {"ndcg@10": 0.5, metric: coming.pop(0)}

    stop = SimpleNamespace(
        requested=lambda step: step in stop_at, stopped=lambda: Stopped(15, "stopped")
    )
    task = TrainingTask(update, lambda step: step, validate, metric)
    content = CheckpointState(TrainState(start, None, None, 0), progress)
    finished = True
    try:
        assert Loop(config, task, saved, written, stop).run(content) is progress
    except Stopped:
        finished = False
    assert saved.waits or not saved.saves.keys() - {start}, "the last save may be unfinished"
    return SimpleNamespace(
        finished=finished, progress=progress, saved=saved, written=written, taken=taken
    )


def test_patience_counts_validations_since_the_best_one():
    # The second is the best. An equal one and a worse one after it exhaust the patience.
    values = [0.1, 0.3, 0.3, 0.2, 0.9, 0.9]
    done = run(values, patience=2)
    assert done.finished and len(done.taken) == 4 and done.progress.best_step == 2
    # A better validation resets the count.
    done = run([0.3, 0.1, 0.4, 0.2, 0.5, 0.6], patience=2)
    assert done.finished and len(done.taken) == 6 and done.progress.best_step == 6
    assert len(run(values, patience=0).taken) == 6
    # A run that was out of patience does not train further when it is continued.
    again = run([], patience=2, start=4, progress=Progress(best_step=2, best_value=0.3, waited=2))
    assert again.finished and again.taken == []


def test_the_first_of_equals_is_the_best_and_nothing_is_worse_than_no_validation():
    assert run([0.2, 0.5, 0.5, 0.4, 0.5, 0.1]).progress.best_step == 2
    done = run([0.0] * 6)
    assert done.progress.best_step == 1 and done.progress.waited == 5


def test_the_configured_metric_chooses_the_best_step():
    assert run([0.1, 0.2, 0.6, 0.4, 0.5, 0.3], metric="mrr").progress.best_step == 3


def test_validations_checkpoints_and_lines_come_when_they_are_due_and_at_the_end():
    losses = [float(2**n) for n in range(7)]
    done = run([0.1, 0.2, 0.3], losses, steps=7, eval_every=3, checkpoint_every=2, log_every=4)
    assert done.written.steps("valid") == [3, 6, 7]
    assert done.written.validations == [(3, True), (6, True), (7, True)]
    assert done.written.steps("train") == [4, 7]
    assert list(done.saved.saves) == [2, 3, 4, 6, 7]
    assert [save["best_step"] for save in done.saved.saves.values()] == [None, 3, 3, 6, 7]
    assert not any(save["validation_due"] for save in done.saved.saves.values())
    # Each line has the mean of the steps since the one before; a checkpoint keeps those that no line has yet.
    assert [line.loss for line in done.written.lines if line.split == "train"] == [15 / 4, 112 / 3]
    assert [save["losses"] for save in done.saved.saves.values()] == [
        [1, 2],
        [1, 2, 4],
        [],
        [16, 32],
        [],
    ]


def test_the_best_checkpoint_is_saved_with_a_later_one_as_the_best():
    done = run([0.2, 0.9, 0.1, 0.3, 0.4, 0.5])
    assert [save["best_step"] for save in done.saved.saves.values()] == [1, 2, 2, 2, 2, 2]


def test_going_on_takes_the_batches_that_are_left():
    done = run(
        [0.1] * 2,
        start=4,
        progress=Progress(best_step=4, best_value=0.2, losses=[7.0]),
        losses=[1.0] * 6,
        log_every=6,
    )
    assert done.taken == [4, 5]
    assert [line.loss for line in done.written.lines if line.split == "train"] == [
        3.0
    ]  # of 7, 1 and 1


def test_a_signal_saves_without_validating_and_the_validation_is_made_up_for():
    done = run([0.4, 0.1, 0.1, 0.1, 0.1], stop_at=[3])
    assert not done.finished and done.taken == [0, 1, 2]
    assert done.written.steps("valid") == [1, 2] and list(done.saved.saves) == [1, 2, 3]
    assert done.progress.validation_due and done.progress.best_step == 1
    again = run([0.5, 0.1, 0.1, 0.1], start=3, progress=done.progress)
    assert again.finished and again.taken == [3, 4, 5]
    assert again.written.steps("valid") == [3, 4, 5, 6] and again.progress.best_step == 3


def test_a_signal_while_validating_leaves_the_validation_due():
    done = run([0.4, 0.3, 0.2], stopped_while_validating=[2])
    assert not done.finished and list(done.saved.saves) == [1, 2, 3]
    assert done.progress.validation_due and done.saved.saves[3]["validation_due"]


def test_a_signal_while_a_validation_is_made_up_for_leaves_it_due():
    done = run(
        [0.3],
        start=3,
        progress=Progress(best_step=1, best_value=0.4, validation_due=True),
        stopped_while_validating=[0],
    )
    assert not done.finished and done.taken == [] and done.progress.validation_due


def test_what_is_not_finite_ends_the_run_or_is_left_out_of_the_mean():
    nan, inf = float("nan"), float("inf")
    with pytest.raises(
        UserError, match=r"step 4: the loss is nan.*last good checkpoint is of step 3"
    ):
        run([0.1] * 6, losses=[1.0, 1.0, 1.0, nan, 1.0, 1.0])
    with pytest.raises(UserError, match=r"step 1: .*norm is inf.*no checkpoint exists yet"):
        run([0.1] * 6, norms=[inf, 1.0, 1.0, 1.0, 1.0, 1.0])
    done = run([0.1] * 6, losses=[1.0, nan, 3.0, inf, 5.0, 7.0], on_nan="skip", log_every=6)
    assert [line.loss for line in done.written.lines if line.split == "train"] == [4.0]


def test_the_seconds_of_training_leave_validation_out(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(loop, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    done = run([0.1, 0.2, 0.3], steps=3, log_every=1, clock=clock)
    assert [line.seconds for line in done.written.lines if line.split == "train"] == [1, 2, 3]
    assert done.progress.seconds == 3 and clock == [303]
