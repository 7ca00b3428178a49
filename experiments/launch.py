# SPDX-License-Identifier: Apache-2.0
r"""Runs a sweep: on this machine, as a SLURM array or as a Kubernetes Indexed Job.

  python -m experiments.launch --sweep experiments/sweeps/example.py --root sweeps/example --dry_run
  python -m experiments.launch --sweep experiments/sweeps/example.py --root sweeps/example \
      --workers 2
  python -m experiments.launch --root sweeps/example --watch

Trial i is stored in ROOT/00i, an ordinary run directory. Run the same command again to skip
finished and pruned trials, resume stopped ones and retry failed ones. Ctrl-C stops the running
trials after they have saved; a second Ctrl-C kills them.

Exit code: 0 all done, 1 some failed, 75 stopped before the end, 2 wrong usage.
"""

import contextlib
import shlex
import signal
import sys
import time
from pathlib import Path
from types import FrameType

import yaml
from absl import flags

from bert4rec_jax import config as config_lib
from bert4rec_jax.command_line import run_command
from bert4rec_jax.errors import UserError
from experiments.sweeping import board, clusters, cost, local, sweep_file, trials
from experiments.sweeping.adaptive import Study

SWEEP = flags.DEFINE_string("sweep", "", "Sweep file; see experiments/README.md.")
ROOT = flags.DEFINE_string(
    "root", "", "Folder of the sweep; for several machines, on a shared disk."
)
BACKEND = flags.DEFINE_enum(
    "backend", "local", ["local", "slurm", "k8s"], "Where to run the trials."
)
WORKERS = flags.DEFINE_integer("workers", 1, "Number of trials at the same time.", lower_bound=1)
INDEX = flags.DEFINE_integer(
    "index", None, "Run only this trial, on the whole machine; for array tasks.", lower_bound=0
)
DRY_RUN = flags.DEFINE_bool(
    "dry_run", False, "Print the trials and their cost without running them."
)
WATCH = flags.DEFINE_bool(
    "watch", False, "Show the progress of the sweep in --root, which may run on other machines."
)
SET = flags.DEFINE_multi_string(
    "set", [], "field=value for every trial, such as data.path=FOLDER; repeatable."
)
PROGRAM = flags.DEFINE_string(
    "program", "", "Training command before its flags; default: python -m bert4rec_jax.main."
)
STORAGE = flags.DEFINE_string(
    "storage",
    "",
    "For an adaptive search: a file on a shared disk or a database URL such as "
    "postgresql://HOST/DB; default: ROOT/optuna.journal.",
)
GRACE = flags.DEFINE_float(
    "grace_seconds", 240, "Seconds for a stopped run to save before it is killed."
)
SLURM = flags.DEFINE_multi_string(
    "slurm_option", [], "An sbatch option, such as --slurm_option=--partition=gpu; repeatable."
)
SUBMIT = flags.DEFINE_bool("submit", True, "Submit the script; --nosubmit only writes it.")
IMAGE = flags.DEFINE_string(
    "k8s_image", "", "Container image with the checkout as its working directory."
)
CLAIM = flags.DEFINE_string("k8s_volume_claim", "", "Persistent volume claim that contains --root.")
MOUNT = flags.DEFINE_string(
    "k8s_mount", "/sweeps", "Mount path of the claim; --root must be below it."
)
GPUS = flags.DEFINE_integer("k8s_gpus", 1, "GPUs per pod.", lower_bound=0)
CPUS = flags.DEFINE_integer("k8s_cpus", 4, "CPUs per pod.", lower_bound=1)
MEMORY = flags.DEFINE_string("k8s_memory", "16Gi", "Memory per pod.")


def main(argv: list[str]) -> int:
    """Runs the command; returns the exit code."""
    if len(argv) > 1:
        raise UserError(f"unexpected argument {argv[1]!r}; options start with --, see --help.")
    if not ROOT.value:
        raise UserError("--root is missing: the folder of the sweep's trials.")
    root = Path(ROOT.value)
    if WATCH.value:
        return _watch(root)
    if not SWEEP.value:
        raise UserError("--sweep is missing: the sweep file.")
    sweep = sweep_file.load(SWEEP.value, sweep_file.parse_assignments(SET.value))
    if INDEX.value is not None and INDEX.value >= len(sweep):
        raise UserError(f"--index {INDEX.value}: {SWEEP.value} has trials 0 to {len(sweep) - 1}.")
    if DRY_RUN.value:
        print(cost.plan(sweep, root, WORKERS.value))
        return 0
    if BACKEND.value == "k8s":
        return _kubernetes(sweep)
    record = trials.open_root(root, sweep)
    if BACKEND.value == "slurm":
        return _slurm(sweep, root)
    study = None
    if sweep.search:
        storage = STORAGE.value or str(root / "optuna.journal")
        name = f"{Path(sweep.file).stem}-{record['id']}"
        study = Study(sweep.search, storage, name, sweep.common)
    program = shlex.split(PROGRAM.value) or [sys.executable, "-m", "bert4rec_jax.main"]
    runner = local.Runner(sweep, root, program, study, GRACE.value)
    _handle_signals(runner)
    if INDEX.value is not None:
        return _run_one(runner, root, INDEX.value)
    return _run_all(runner, sweep, root)


def _run_all(runner: local.Runner, sweep: sweep_file.Sweep, root: Path) -> int:
    slots = local.divide(WORKERS.value, local.visible_cpus(), local.visible_gpus())
    threads = runner.drain(range(len(sweep)), slots)

    def is_running() -> bool:
        return any(thread.is_alive() for thread in threads)

    board.follow(root, _metric(sweep.config), is_running)
    print(board.summary(root))
    states = {status.state for status in trials.all_statuses(root)}
    if runner.stop.is_set() or not states <= {*trials.DONE, trials.FAILED}:
        print("not all trials are done; run the same command again to continue")
        return clusters.UNFINISHED
    return 1 if trials.FAILED in states else 0


def _run_one(runner: local.Runner, root: Path, index: int) -> int:
    state = runner.run(index, local.Slot())
    while state == trials.RUNNING and not runner.stop.is_set():
        time.sleep(5)  # after a requeue, the previous claim may have to expire first
        state = runner.run(index, local.Slot())
    status = trials.trial_status(root, index, None)
    heading = f"trial {index} {state} ({board.describe(status.overrides)})"
    print(heading, *status.failure, sep="\n    ")
    return {trials.FINISHED: 0, trials.PRUNED: 0, trials.FAILED: 1}.get(state, clusters.UNFINISHED)


def _slurm(sweep: sweep_file.Sweep, root: Path) -> int:
    skipped = {*trials.DONE, trials.RUNNING}
    left = [
        index
        for index in range(len(sweep))
        if trials.trial_status(root, index, None).state not in skipped
    ]
    if not left:
        print(board.summary(root))
        return 0
    logs = root / "slurm"
    logs.mkdir(exist_ok=True)
    script = logs / "array.sh"
    text = clusters.slurm_script(
        command=_task_command(sys.executable),
        indices=left,
        workers=WORKERS.value,
        logs=logs,
        name=clusters.job_name(Path(sweep.file).stem),
        options=SLURM.value,
        directory=Path.cwd(),
    )
    script.write_text(text)
    print(f"wrote {script}: {len(left)} trials, {WORKERS.value} at a time")
    if SUBMIT.value:
        print(clusters.submit(script))
        print(f"watch it with: python -m experiments.launch --root {root} --watch")
    return 0


def _kubernetes(sweep: sweep_file.Sweep) -> int:
    if not IMAGE.value or not CLAIM.value:
        raise UserError("--backend k8s needs --k8s_image and --k8s_volume_claim.")
    if not Path(ROOT.value).is_relative_to(MOUNT.value):
        raise UserError(
            f"--root {ROOT.value} must be below --k8s_mount {MOUNT.value}, the mount path of the "
            "volume."
        )
    pod = clusters.Pod(
        image=IMAGE.value,
        volume_claim=CLAIM.value,
        mount=MOUNT.value,
        gpus=GPUS.value,
        cpus=CPUS.value,
        memory=MEMORY.value,
    )
    name = clusters.job_name(Path(sweep.file).stem)
    command = _task_command("python")
    manifest = clusters.job_manifest(command, len(sweep), WORKERS.value, name, pod)
    print(yaml.safe_dump(manifest, sort_keys=False), end="")
    return 0


def _task_command(python: str) -> list[str]:
    command = [
        python,
        "-m",
        "experiments.launch",
        "--sweep",
        SWEEP.value,
        "--root",
        ROOT.value,
        f"--grace_seconds={GRACE.value:g}",
    ]
    command += [f"--set={assignment}" for assignment in SET.value]
    command += [f"--{flag.name}={flag.value}" for flag in (PROGRAM, STORAGE) if flag.value]
    return command


def _watch(root: Path) -> int:
    record = trials.read_root(root)
    ended = {*trials.DONE, trials.FAILED}

    def is_running() -> bool:
        return any(status.state not in ended for status in trials.all_statuses(root))

    with contextlib.suppress(KeyboardInterrupt):
        board.follow(root, _metric(record["config"]), is_running)
    print(board.summary(root))
    return 0


def _metric(config: str) -> str:
    return config_lib.resolve(config_lib.read(config)).eval.metric


def _handle_signals(runner: local.Runner) -> None:
    def stop(number: int, frame: FrameType | None) -> None:
        # Only users press Ctrl-C twice; schedulers repeat other signals.
        if number == signal.SIGINT and runner.stop.is_set():
            runner.kill.set()
        runner.stop.set()

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, stop)


if __name__ == "__main__":
    run_command(
        main,
        sections={
            "With --backend slurm": ["slurm_option", "submit"],
            "With --backend k8s": [
                "k8s_image",
                "k8s_volume_claim",
                "k8s_mount",
                "k8s_gpus",
                "k8s_cpus",
                "k8s_memory",
            ],
        },
    )
