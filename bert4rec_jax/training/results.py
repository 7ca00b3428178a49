# SPDX-License-Identifier: Apache-2.0
"""What a finished run says: the schema of results.json and ranks_test.npz, and its summary for people."""

import textwrap

import numpy as np

from bert4rec_jax.config import Config
from bert4rec_jax.data import Dataset
from bert4rec_jax.ranking import Cases, Ranking, beyond_accuracy, digest, from_ranks, tied_targets
from bert4rec_jax.run_files import BASELINES_PENDING
from bert4rec_jax.terminal import coloured, columns


def collect(
    config: Config,
    dataset: Dataset,
    popularity: np.ndarray,
    cases: dict[str, Cases],
    rankings: dict[str, Ranking],
    run: dict,
) -> tuple[dict, dict[str, np.ndarray]]:
    """Returns what goes into results.json and into ranks_test.npz, before there are baselines.

    Args:
      config: the run's configuration.
      dataset: the data.
      popularity: int64[num_items + 1], training interactions of each item id.
      cases: of `valid` and `test`.
      rankings: their rankings by the best checkpoint; `test` with its lists.
      run: what is known of the run itself: steps, seconds, parameters, protocol.
    """
    ties, test = config.eval.ties, rankings["test"]
    targets = np.asarray(dataset.items[cases["test"].targets])
    metrics = {part: from_ranks(ranking.ranks(ties)) for part, ranking in rankings.items()}
    metrics["test"] |= beyond_accuracy(test.top, popularity)
    tied = tied_targets(dataset, cases["test"])
    if tied is not None:
        for name, chosen in (("tied", tied), ("untied", ~tied)):
            if chosen.any():
                metrics[f"test_{name}"] = {
                    "users": int(chosen.sum()),
                    **from_ranks(test.ranks(ties)[chosen]),
                }
    results = {
        **metrics,
        **run,
        "cases_digest": digest(dataset, cases["test"], test),
        "dataset": dataset.statistics(),
        "seed": config.seed,
        "model": config.model_name,
        "baselines": {},
        "baselines_left_out": {},
        BASELINES_PENDING: True,
    }
    ranks = {
        "user": cases["test"].users,
        "item": targets,
        "rank": test.ranks(ties),
        "candidates": test.candidates,
        "history_length": (cases["test"].targets - cases["test"].starts).astype(np.int32),
        "item_popularity": popularity[targets],
        **({} if tied is None else {"tied": tied}),
    }
    return results, ranks


def add_baselines(
    config: Config,
    results: dict,
    ranks: dict[str, np.ndarray],
    counting: dict[str, Ranking],
    left_out: dict[str, str],
) -> None:
    """Adds the baselines to what `collect` has returned.

    Args:
      config: the run's configuration.
      results: what goes into results.json.
      ranks: what goes into ranks_test.npz.
      counting: rankings of the test cases by the baselines.
      left_out: of each other baseline, why it was not ranked.
    """
    for name, ranking in counting.items():
        ranks[f"{name}_rank"] = ranking.ranks(config.eval.ties)
        results["baselines"][name] = {"test": from_ranks(ranks[f"{name}_rank"])}
    results["baselines_left_out"] = left_out
    results.pop(BASELINES_PENDING)


def summary(results: dict) -> str:
    """Returns the test metrics beside the baselines, with their protocol, as text for a terminal."""
    names = ("ndcg@10", "hr@10", "mrr", "ndcg@100", "hr@100")
    rows = [(results["model"], results["test"])] + [
        (k, v["test"]) for k, v in results["baselines"].items()
    ]
    first = max(16, *(len(name) + 2 for name, _ in rows))
    lines = ["", f"{'test':{first}s}" + "".join(f"{name:>10s}" for name in names)]
    lines += [
        f"{model:{first}s}" + "".join(f"{metrics[name]:10.4f}" for name in names)
        for model, metrics in rows
    ]
    lines[1:3] = [coloured(line, "bold") for line in lines[1:3]]  # the head and the model itself
    data, left_out = results["dataset"], results.get("baselines_left_out", {})
    facts = {
        "data": f"{data['name']}, {data['users']:,} users, {data['items']:,} items, "
        f"{data['interactions']:,} interactions, fingerprint {data['fingerprint']}",
        "protocol": results["protocol"],
        **({"left out": "; ".join(f"{k}: {v}" for k, v in left_out.items())} if left_out else {}),
        "run": f"best step {results['best_step']} of {results['steps']} by validation, seed {results['seed']}, "
        f"{results['parameters']:,} parameters, {results['train_seconds']:.0f} s of training, "
        f"{results['users_per_second']:,.0f} users ranked a second",
    }
    return "\n".join(
        [
            *lines,
            "",
            *(
                textwrap.fill(
                    text, columns(), initial_indent=f"{name + ':':10s}", subsequent_indent=" " * 10
                )
                for name, text in facts.items()
            ),
        ]
    )
