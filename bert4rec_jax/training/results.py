# SPDX-License-Identifier: Apache-2.0
"""Builds the content of results.json and ranks_test.npz."""

from typing import NamedTuple

import numpy as np

from bert4rec_jax.config import Config
from bert4rec_jax.data import Dataset, Split
from bert4rec_jax.ranking import (
    Cases,
    Ranking,
    beyond_accuracy,
    digest,
    from_ranks,
    protocol,
    repeated_targets,
    tied_targets,
)
from bert4rec_jax.run_files import BASELINES_PENDING


class RankedData(NamedTuple):
    """The data of a run and the rankings by its best checkpoint.

    Attributes:
      dataset: the data.
      split: the split of the data.
      popularity: int64[num_items + 1], training interactions of each item id.
      cases: the cases of `valid` and `test`.
      rankings: their rankings; `test` includes the best items of every case.
    """

    dataset: Dataset
    split: Split
    popularity: np.ndarray
    cases: dict[str, Cases]
    rankings: dict[str, Ranking]


class RunFacts(NamedTuple):
    """Facts about a run for results.json.

    Attributes:
      best_step: step of the checkpoint that was ranked.
      steps: number of training steps.
      train_seconds: training time without validation.
      eval_seconds: time of ranking the validation and test users.
      parameters: number of parameters of the model.
    """

    best_step: int
    steps: int
    train_seconds: float
    eval_seconds: float
    parameters: int


def make_results(config: Config, data: RankedData, run: RunFacts) -> dict:
    """Returns the content of results.json before the baselines are ranked."""
    cases = data.cases["test"]
    ranking = data.rankings["test"]
    users = sum(len(part.users) for part in data.cases.values())
    repeated = int(repeated_targets(data.dataset, cases).sum())
    return {
        **_metrics(config, data),
        "best_step": run.best_step,
        "steps": run.steps,
        "train_seconds": run.train_seconds,
        "eval_seconds": run.eval_seconds,
        "users_per_second": users / run.eval_seconds,
        "protocol": protocol(config.eval, data.split, repeated),
        "parameters": run.parameters,
        "cases_digest": digest(data.dataset, cases, ranking),
        "dataset": data.dataset.statistics(),
        "seed": config.seed,
        "model": config.model_name,
        "baselines": {},
        "baselines_left_out": {},
        BASELINES_PENDING: True,
    }


def make_ranks(config: Config, data: RankedData) -> dict[str, np.ndarray]:
    """Returns the arrays of ranks_test.npz, one element per test case, without the baselines."""
    cases = data.cases["test"]
    ranking = data.rankings["test"]
    targets = np.asarray(data.dataset.items[cases.targets])
    ranks = {
        "user": cases.users,
        "item": targets,
        "rank": ranking.ranks(config.eval.ties),
        "candidates": ranking.candidates,
        "history_length": (cases.targets - cases.starts).astype(np.int32),
        "item_popularity": data.popularity[targets],
    }
    tied = tied_targets(data.dataset, cases)
    if tied is not None:
        ranks["tied"] = tied
    return ranks


def add_baselines(
    config: Config,
    results: dict,
    ranks: dict[str, np.ndarray],
    rankings: dict[str, Ranking],
    left_out: dict[str, str],
) -> None:
    """Adds the baselines to the results and the ranks.

    Args:
      config: the run's configuration.
      results: from `make_results`; changed in place.
      ranks: from `make_ranks`; changed in place.
      rankings: rankings of the test cases by the baselines.
      left_out: the other baselines, with the reason why each was not ranked.
    """
    for name, ranking in rankings.items():
        baseline_ranks = ranking.ranks(config.eval.ties)
        ranks[f"{name}_rank"] = baseline_ranks
        results["baselines"][name] = {"test": from_ranks(baseline_ranks)}
    results["baselines_left_out"] = left_out
    del results[BASELINES_PENDING]


def _metrics(config: Config, data: RankedData) -> dict[str, dict]:
    """Returns the metrics of each part, and of test targets with and without tied times."""
    ties = config.eval.ties
    metrics = {part: from_ranks(ranking.ranks(ties)) for part, ranking in data.rankings.items()}
    top = data.rankings["test"].top
    assert top is not None  # the test is ranked with its best items
    metrics["test"] |= beyond_accuracy(top, data.popularity)
    tied = tied_targets(data.dataset, data.cases["test"])
    if tied is None:
        return metrics
    test_ranks = data.rankings["test"].ranks(ties)
    for name, chosen in (("test_tied", tied), ("test_untied", ~tied)):
        if chosen.any():
            metrics[name] = {"users": int(chosen.sum()), **from_ranks(test_ranks[chosen])}
    return metrics
