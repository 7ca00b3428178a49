# SPDX-License-Identifier: Apache-2.0
"""The text that a command prints after a run: results, an example, and commands to run next."""

import shlex
import textwrap

from bert4rec_jax.experiment import Example
from bert4rec_jax.run_files import RunFiles
from bert4rec_jax.serving import TitleIndex
from bert4rec_jax.terminal import coloured, columns, fitted

_METRICS = ("ndcg@10", "hr@10", "mrr", "ndcg@100", "hr@100")
_NEWEST = 5  # items of the history to show
_LABEL_WIDTH = 10


def results_text(results: dict) -> str:
    """Returns the test metrics of the model and the baselines, with data, protocol and run."""
    rows = {results["model"]: results["test"]}
    for name, baseline in results["baselines"].items():
        rows[name] = baseline["test"]
    width = max(16, *(len(name) + 2 for name in rows))
    header = f"{'test':{width}s}" + "".join(f"{name:>10s}" for name in _METRICS)
    lines = [header]
    for name, metrics in rows.items():
        values = "".join(f"{metrics[metric]:10.4f}" for metric in _METRICS)
        lines.append(f"{name:{width}s}{values}")
    lines[:2] = [coloured(line, "bold") for line in lines[:2]]  # the header and the model
    facts = [_labelled(label, text) for label, text in _facts(results).items()]
    return "\n".join(["", *lines, "", *facts])


def example_text(example: Example, run: RunFiles) -> str:
    """Returns the newest items of a user's history, the recommended items and the actual next item.

    Args:
      example: a test user.
      run: the run directory, which contains the titles.

    Raises:
      UserError: the item table cannot be read.
    """
    table = run.items()
    titles = TitleIndex(table)
    lines = [f"user {example.user} has a history of {len(example.history)} items; the newest are"]
    lines += [f"     {titles.label(item)}" for item in example.history[-_NEWEST:]]
    lines.append(coloured("recommended next", "bold"))
    labels = [titles.label(item) for item in example.recommended]
    width = max((len(label) for label in labels), default=0)
    for place, (item, label) in enumerate(zip(example.recommended, labels, strict=True), 1):
        genres = table.loc[item].get("genres")
        text = genres if isinstance(genres, str) else ""
        lines.append(fitted(f"{place:3d}  {label:{width}s}  {text}".rstrip()))
    rank = f"rank {example.rank:g} of {example.candidates:,}"
    lines.append(f"actual next item: {titles.label(example.target)} ({rank})")
    return "\n".join(["", *lines])


def next_command(workdir: str, trained_from: str, example: Example, run: RunFiles) -> str:
    """Returns where the run is stored, and a command that recommends with its model.

    Args:
      workdir: the run directory.
      trained_from: run directory of the model; "": `workdir`.
      example: a test user; the command uses the newest item of its history.
      run: the run directory, which contains the titles.
    """
    title = TitleIndex(run.items()).label(example.history[-1])
    model = shlex.quote(trained_from or workdir)
    return (
        f"\nThe run is stored in {workdir}. Recommend with its model:\n"
        f"  python -m bert4rec_jax.recommend --workdir {model} --history {shlex.quote(title)}"
    )


def _facts(results: dict) -> dict[str, str]:
    data = results["dataset"]
    facts = {
        "data": f"{data['name']}, {data['users']:,} users, {data['items']:,} items, "
        f"{data['interactions']:,} interactions, fingerprint {data['fingerprint']}",
        "protocol": results["protocol"],
    }
    left_out = results.get("baselines_left_out", {})
    if left_out:
        facts["left out"] = "; ".join(f"{name}: {reason}" for name, reason in left_out.items())
    facts["run"] = (
        f"best step {results['best_step']} of {results['steps']} by validation, "
        f"seed {results['seed']}, {results['parameters']:,} parameters, "
        f"{results['train_seconds']:.0f} s of training, "
        f"{results['users_per_second']:,.0f} users ranked per second"
    )
    return facts


def _labelled(label: str, text: str) -> str:
    return textwrap.fill(
        text,
        columns(),
        initial_indent=f"{label + ':':{_LABEL_WIDTH}s}",
        subsequent_indent=" " * _LABEL_WIDTH,
    )
