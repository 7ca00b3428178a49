# SPDX-License-Identifier: Apache-2.0
r"""Trains or evaluates BERT4Rec.

  python -m bert4rec_jax.main --config configs/ml_1m.py --workdir runs/ml_1m
  python -m bert4rec_jax.main --config configs/ml_1m.py --workdir runs/wide \
      --config.model.width=128

If the workdir contains a checkpoint, training continues from it. `--mode evaluate` ranks again with
the best checkpoint. With `--trained`, it ranks with the best checkpoint of another run, for example
under another protocol:

  python -m bert4rec_jax.main --config configs/ml_1m.py --config.eval.protocol=pop100 \
      --mode evaluate --trained runs/ml_1m --workdir runs/ml_1m_pop100

For your own data, `--mode suggest` prints hyperparameters that suit their size:

  python -m bert4rec_jax.main --config own_data --config.data.path=views.csv \
      --mode suggest

`--compile_for` reports whether a run fits an accelerator, and its bottleneck, without having one:

  python -m bert4rec_jax.main --config configs/ml_25m.py --compile_for v5e:2x4
"""

import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    # Ctrl-C ends the imports below without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

from typing import TYPE_CHECKING

from absl import flags

from bert4rec_jax import config as config_lib
from bert4rec_jax.command_line import run_command
from bert4rec_jax.errors import Stopped, UserError
from bert4rec_jax.terminal import say

if TYPE_CHECKING:
    from bert4rec_jax.experiment import Evaluation

flags.DEFINE_string(
    "config",
    "",
    "Config file: Python with get_config(), the config.json of a run, or the name of a config file "
    "of this project, such as quickstart. Set a field with --config.GROUP.FIELD=VALUE.",
)
flags.DEFINE_string("workdir", None, "Directory of the run.")
flags.DEFINE_enum(
    "mode",
    "train",
    ["train", "evaluate", "suggest"],
    "train: train, then rank the test users. evaluate: rank only. suggest: read the data and print "
    "width, length, dropout and steps that suit them.",
)
flags.DEFINE_string(
    "trained", "", "With --mode evaluate: run whose model to rank with (default: --workdir)."
)
flags.DEFINE_bool(
    "distributed", False, "Join the other processes of a cluster job (SLURM, Kubernetes, TPU pods)."
)
flags.DEFINE_string(
    "compile_for",
    "",
    "Only compile, for accelerators that are not attached, such as v5e:4x4, 2*v5p:2x2x2 (slices), "
    "h100:8 or h100:2x8 (hosts x GPUs); report memory and bottleneck.",
)
flags.DEFINE_integer(
    "items",
    0,
    "With --compile_for: number of items; 0: load the data and count them.",
    lower_bound=0,
)
flags.DEFINE_bool("json", False, "With --compile_for: print JSON.")
FLAGS = flags.FLAGS


def main(arguments: list[str]) -> int:
    """Runs the mode that the flags select; returns the exit code."""
    fields = config_lib.parse_flags(arguments[1:])
    _check_flags()
    values = config_lib.read(FLAGS.config)
    config = config_lib.resolve(config_lib.with_fields(values, fields))
    if FLAGS.compile_for:
        return _compile_ahead(config)
    if FLAGS.mode == "suggest":
        return _suggest(config)
    if not FLAGS.workdir:  # also empty, as from an unset shell variable
        raise UserError("--workdir is missing: name a directory for the run, such as runs/mine.")
    return _train_or_evaluate(config)


def _check_flags() -> None:
    """Raises a UserError for flags that exclude each other."""
    if FLAGS.trained and FLAGS.mode != "evaluate":
        raise UserError("--trained is only valid with --mode evaluate.")
    if (FLAGS.items or FLAGS.json) and not FLAGS.compile_for:
        raise UserError("--items and --json require --compile_for.")
    if FLAGS.compile_for and (FLAGS.workdir or FLAGS.distributed or FLAGS.mode != "train"):
        raise UserError("--compile_for only compiles: remove --workdir, --distributed and --mode.")


# The modes import what they need: a wrong flag is reported before JAX has been imported.


def _compile_ahead(config: config_lib.Config) -> int:
    """Compiles the run for accelerators that are not attached and prints the estimate."""
    from bert4rec_jax import aot

    return aot.main(config, FLAGS.compile_for, FLAGS.items, FLAGS.json)


def _suggest(config: config_lib.Config) -> int:
    """Prints hyperparameters that suit the data."""
    from bert4rec_jax.data import suggestions_text

    print(suggestions_text(config, sys.argv[1:]))
    return 0


def _train_or_evaluate(config: config_lib.Config) -> int:
    """Trains or evaluates in --workdir and prints the results."""
    from bert4rec_jax import experiment
    from bert4rec_jax.devices import exit_on_user_error, join_cluster

    if FLAGS.distributed:
        join_cluster()
    try:
        with exit_on_user_error():
            if FLAGS.mode == "train":
                outcome = experiment.train_run(config, FLAGS.workdir)
            else:
                outcome = experiment.evaluate_run(config, FLAGS.workdir, FLAGS.trained)
    except Stopped:
        say("stopped by a signal; everything is saved. Run the same command again to continue.")
        return 0
    _print_outcome(config, outcome)
    return 0


def _print_outcome(config: config_lib.Config, outcome: "Evaluation") -> None:
    """Draws the curves and prints results, an example and the next command."""
    import jax

    from bert4rec_jax.run_files import RunFiles
    from bert4rec_jax.run_report import example_text, next_command, results_text
    from bert4rec_jax.training import curves

    if jax.process_index() != 0:
        return
    run = RunFiles(FLAGS.workdir)
    if not FLAGS.trained:
        curves.draw(run, config.eval.metric)
    print(results_text(outcome.results))
    print(example_text(outcome.example, run))
    print(next_command(FLAGS.workdir, FLAGS.trained, outcome.example, run))


if __name__ == "__main__":
    run_command(
        main,
        sections={
            "With --mode evaluate": ["trained"],
            "Ahead-of-time compilation": ["compile_for", "items", "json"],
        },
        appendix=config_lib.fields_help,
    )
