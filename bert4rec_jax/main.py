# SPDX-License-Identifier: Apache-2.0
r"""Trains or evaluates BERT4Rec.

  python -m bert4rec_jax.main --config configs/ml_1m.py --workdir runs/ml_1m
  python -m bert4rec_jax.main --config configs/ml_1m.py --workdir runs/wide \
      --config.model.width=128

Training goes on where it was when the workdir holds a checkpoint. `--mode evaluate` ranks again from the best one;
with `--trained` from that of another run, under another protocol:

  python -m bert4rec_jax.main --config configs/ml_1m.py --config.eval.protocol=pop100 \
      --mode evaluate --trained runs/ml_1m --workdir runs/ml_1m_pop100

For data of your own, `--mode suggest` prints settings that follow from their statistics:

  python -m bert4rec_jax.main --config own_data --config.data.path=views.csv \
      --mode suggest

`--compile_for` says, without any accelerator, whether a run fits on one and what binds it there:

  python -m bert4rec_jax.main --config configs/ml_25m.py --compile_for v5e:2x4
"""

import signal
import sys

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(
        signal.SIGINT, signal.SIG_DFL
    )  # Ctrl-C ends the imports below without their traceback

from absl import flags

from bert4rec_jax import config as config_lib
from bert4rec_jax.command_line import run_command
from bert4rec_jax.errors import UserError
from bert4rec_jax.terminal import say

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
    "width, length, dropout and steps for them.",
)
flags.DEFINE_string(
    "trained", "", "Of --mode evaluate: the run whose model ranks; empty: --workdir."
)
flags.DEFINE_bool(
    "distributed", False, "Join the other processes of a cluster job (SLURM, Kubernetes, TPU pods)."
)
flags.DEFINE_string(
    "compile_for",
    "",
    "Run nothing: compile for accelerators that are not here, as v5e:4x4, "
    "2*v5p:2x2x2 (slices), h100:8 or h100:2x8 (hosts x GPUs), and say what fits and what binds.",
)
flags.DEFINE_integer(
    "items", 0, "Of --compile_for: size of the catalogue; 0: load the data and see.", lower_bound=0
)
flags.DEFINE_bool("json", False, "Of --compile_for: print JSON.")
FLAGS = flags.FLAGS


def main(arguments: list[str]) -> int:
    """Runs the configured experiment; returns the exit code."""
    fields = config_lib.parse_flags(arguments[1:])
    if FLAGS.trained and FLAGS.mode != "evaluate":
        raise UserError(
            "--trained names the run that --mode evaluate ranks with; it has no use in training."
        )
    if (FLAGS.items or FLAGS.json) and not FLAGS.compile_for:
        raise UserError("--items and --json belong to --compile_for, which is not given.")
    if FLAGS.compile_for and (FLAGS.workdir or FLAGS.distributed or FLAGS.mode != "train"):
        raise UserError(
            "--compile_for runs nothing: leave out --workdir, --distributed and --mode."
        )
    values = config_lib.read(FLAGS.config)
    config = config_lib.resolve(config_lib.with_fields(values, fields))
    if FLAGS.compile_for:
        from bert4rec_jax import aot

        return aot.main(config, FLAGS.compile_for, FLAGS.items, FLAGS.json)
    if FLAGS.mode == "suggest":
        from bert4rec_jax.data import suggestions_text

        print(suggestions_text(config, sys.argv[1:]))
        return 0
    if not FLAGS.workdir:  # empty too: that of a variable that is not set
        raise UserError("--workdir is missing: name a directory for the run, such as runs/mine.")
    # Only now: a wrong flag is answered before JAX has started.
    import jax

    from bert4rec_jax import experiment, recommend
    from bert4rec_jax.devices import exit_on_user_error, join_cluster
    from bert4rec_jax.run_files import RunFiles
    from bert4rec_jax.training import curves, summary

    if FLAGS.distributed:
        join_cluster()
    with exit_on_user_error():
        if FLAGS.mode == "train":
            results = experiment.train_and_evaluate(config, FLAGS.workdir)
        else:
            results = experiment.evaluate(config, FLAGS.workdir, FLAGS.trained)
    if results is None:
        say("stopped by a signal; everything is saved, and the same command goes on from here.")
    elif jax.process_index() == 0:
        if not FLAGS.trained:
            curves.draw(RunFiles(FLAGS.workdir), config.eval.metric)
        print(summary(results))
        # Reading a checkpoint takes all processes, and only one is here.
        if not FLAGS.distributed:
            print(recommend.example(config, FLAGS.trained or FLAGS.workdir, FLAGS.workdir))
    return 0


if __name__ == "__main__":
    run_command(
        main,
        sections={
            "With --mode evaluate": ["trained"],
            "Ahead-of-time compilation": ["compile_for", "items", "json"],
        },
        appendix=config_lib.fields_help,
    )
