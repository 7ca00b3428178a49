# SPDX-License-Identifier: Apache-2.0
"""The launcher against a stub that behaves like the training program: same files, same signals, no JAX."""

import importlib.util
import json
import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
import yaml

from bert4rec_jax.errors import UserError
from experiments import sweep
from experiments.sweeping import local, sweep_file, trials

CHECKOUT = Path(__file__).parents[2]

STUB = """\
import json, pathlib, signal, sys, time
flags = [a for a in sys.argv[1:] if a.startswith("--config.")]
values = dict(a[len("--config."):].split("=", 1) for a in flags)
out = pathlib.Path(sys.argv[sys.argv.index("--workdir") + 1])
stopped = []
for number in (signal.SIGTERM, signal.SIGUSR1):
    signal.signal(number, lambda *_: stopped.append(1))
out.mkdir(parents=True, exist_ok=True)
with open(out / "attempts", "a") as f:
    f.write("x")
if values.get("model.layers") == "7":
    sys.exit("line before the end\\nstub: seven layers are too many")
saved = out / "checkpoint"
step = int(saved.read_text()) if saved.exists() else 0
quality = float(values.get("optimizer.learning_rate", 0.1)) + int(values.get("seed", 0)) / 1000
while step < 12:
    step += 1
    time.sleep(PACE)
    saved.write_text(str(step))
    with open(out / "metrics.jsonl", "a") as f:
        line = {"step": step, "split": "valid", "seconds": step * 0.1, "ndcg@10": quality * step}
        f.write(json.dumps(line) + "\\n")
    if stopped:
        sys.exit(0)
test = {"ndcg@10": quality * 12}
(out / "results.json").write_text(json.dumps({
    "test": test, "valid": test, "steps": 12, "train_seconds": 1.2, "eval_seconds": 0.3,
    "dataset": {"items": 50}, "flags": flags}))
"""

TINY_JOB_SCHEMA = {  # the parts of io.k8s.api.batch.v1.Job that the manifest uses, and nothing else
    "$defs": {
        "name": {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"},
        "resources": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                part: {
                    "type": "object",
                    "additionalProperties": {"type": "string", "pattern": "^[0-9]+([KMGT]i|m)?$"},
                }
                for part in ("requests", "limits")
            },
        },
        "container": {
            "type": "object",
            "required": ["name", "image"],
            "additionalProperties": False,
            "properties": {
                "name": {"$ref": "#/$defs/name"},
                "image": {"type": "string", "minLength": 1},
                "command": {"type": "array", "items": {"type": "string"}, "minItems": 1},
                "resources": {"$ref": "#/$defs/resources"},
                "volumeMounts": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["name", "mountPath"],
                        "additionalProperties": False,
                        "properties": {
                            "name": {"$ref": "#/$defs/name"},
                            "mountPath": {"type": "string"},
                        },
                    },
                },
            },
        },
        "rule": {
            "type": "object",
            "required": ["action"],
            "additionalProperties": False,
            "oneOf": [{"required": ["onExitCodes"]}, {"required": ["onPodConditions"]}],
            "properties": {
                "action": {"enum": ["FailJob", "FailIndex", "Ignore", "Count"]},
                "onExitCodes": {
                    "type": "object",
                    "required": ["operator", "values"],
                    "additionalProperties": False,
                    "properties": {
                        "containerName": {"type": "string"},
                        "operator": {"enum": ["In", "NotIn"]},
                        "values": {
                            "type": "array",
                            "items": {"type": "integer", "minimum": 1},
                            "minItems": 1,
                        },
                    },
                },
                "onPodConditions": {
                    "type": "array",
                    "items": {
                        "type": "object",
                        "required": ["type", "status"],
                        "additionalProperties": False,
                        "properties": {
                            "type": {"type": "string"},
                            "status": {"enum": ["True", "False", "Unknown"]},
                        },
                    },
                },
            },
        },
    },
    "type": "object",
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
    "properties": {
        "apiVersion": {"const": "batch/v1"},
        "kind": {"const": "Job"},
        "metadata": {
            "type": "object",
            "required": ["name"],
            "additionalProperties": False,
            "properties": {"name": {"$ref": "#/$defs/name"}},
        },
        "spec": {
            "type": "object",
            "required": ["template", "completions"],  # Indexed requires completions
            "additionalProperties": False,
            "properties": {
                "completionMode": {"const": "Indexed"},
                "completions": {"type": "integer", "minimum": 1},
                "parallelism": {"type": "integer", "minimum": 0},
                "backoffLimitPerIndex": {"type": "integer", "minimum": 0},
                "podFailurePolicy": {
                    "type": "object",
                    "required": ["rules"],
                    "additionalProperties": False,
                    "properties": {
                        "rules": {
                            "type": "array",
                            "maxItems": 20,
                            "items": {"$ref": "#/$defs/rule"},
                        }
                    },
                },
                "template": {
                    "type": "object",
                    "required": ["spec"],
                    "additionalProperties": False,
                    "properties": {
                        "spec": {
                            "type": "object",
                            "required": ["containers"],
                            "additionalProperties": False,
                            "properties": {
                                "restartPolicy": {
                                    "const": "Never"
                                },  # podFailurePolicy allows no other
                                "terminationGracePeriodSeconds": {"type": "integer", "minimum": 0},
                                "containers": {
                                    "type": "array",
                                    "minItems": 1,
                                    "items": {"$ref": "#/$defs/container"},
                                },
                                "volumes": {
                                    "type": "array",
                                    "items": {
                                        "type": "object",
                                        "required": ["name", "persistentVolumeClaim"],
                                        "additionalProperties": False,
                                        "properties": {
                                            "name": {"$ref": "#/$defs/name"},
                                            "persistentVolumeClaim": {
                                                "type": "object",
                                                "required": ["claimName"],
                                                "additionalProperties": False,
                                                "properties": {
                                                    "claimName": {"type": "string", "minLength": 1},
                                                    "readOnly": {"type": "boolean"},
                                                },
                                            },
                                        },
                                    },
                                },
                            },
                        }
                    },
                },
            },
        },
    },
}


@pytest.fixture
def place(tmp_path):
    """A folder with a config, a stub program and a sweep of 6 trials, of which trial 2 fails."""
    (tmp_path / "config.py").write_text("from bert4rec_jax.config import base as get_config\n")
    write_stub(tmp_path, pace=0.0)
    write_sweep(tmp_path, 'yield from with_seeds(grid({"model.layers": [1, 2, 7]}), seeds=[0, 1])')
    return tmp_path


def write_stub(folder: Path, pace: float) -> None:
    (folder / "stub.py").write_text(STUB.replace("PACE", str(pace)))


def write_sweep(folder: Path, body: str, head: str = "") -> None:
    (folder / "sweep.py").write_text(
        f"from experiments.sweep import *\nCONFIG = {str(folder / 'config.py')!r}\n{head}\n"
        + (f"def sweep():\n    {body}\n" if body else "")
    )


def command(folder: Path, *flags: str) -> list[str]:
    root = (
        [] if any(flag.startswith("--root") for flag in flags) else ["--root", str(folder / "root")]
    )
    return [sys.executable, "-m", "experiments.launch", *root, *flags]


def start(folder: Path, *flags: str, **options) -> subprocess.Popen:
    sweep_flags = [
        "--sweep",
        str(folder / "sweep.py"),
        "--program",
        f"{sys.executable} {folder / 'stub.py'}",
    ]
    return subprocess.Popen(
        command(folder, *sweep_flags, *flags),
        cwd=CHECKOUT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        **options,
    )


def launch(folder: Path, *flags: str, **options) -> tuple[int, str, str]:
    process = start(folder, *flags, **options)
    out, err = process.communicate(timeout=180)
    return process.returncode, out, err


def states(folder: Path) -> list[str]:
    return [p.state for p in trials.all_statuses(folder / "root")]


def attempts(folder: Path, count: int) -> list[int]:
    paths = [trials.directory(folder / "root", i) / "attempts" for i in range(count)]
    return [len(p.read_text()) if p.exists() else 0 for p in paths]


def test_a_failed_trial_is_reported_and_stops_nobody(place):
    code, out, err = launch(place, "--workers", "2")
    assert (code, err) == (1, "")
    assert states(place) == ["finished", "finished", "failed"] * 2
    assert (
        "trial 2 failed (model.layers=7 seed=0)" in out and "stub: seven layers are too many" in out
    )

    write_sweep(
        place, 'yield from with_seeds(grid({"model.layers": [1, 2, 7]}), seeds=[0, 1, 2])'
    )  # it may grow
    assert launch(place, "--workers", "2")[0] == 1
    assert attempts(place, 9) == [1, 1, 2, 1, 1, 2, 1, 1, 1]  # finished ones were left alone

    write_sweep(
        place, 'yield from grid({"model.layers": [2, 1]})'
    )  # but not change a started sweep
    code, out, err = launch(place)
    assert code == 2 and err.count("\n") == 1 and "choose another --root" in err
    watch = subprocess.run(command(place, "--watch"), cwd=CHECKOUT, capture_output=True, text=True)
    assert watch.returncode == 0 and "6 finished, 3 failed" in watch.stdout


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_sweep_resumes_and_ends_like_one_that_ran_through(place, how):
    write_sweep(
        place, 'yield from random({"optimizer.learning_rate": log_uniform(1e-4, 1e-2)}, trials=12)'
    )
    write_stub(place, pace=0.05)
    process = start(place, "--workers", "2")
    wait_for(lambda: (place / "root/003/checkpoint").exists())
    process.send_signal(how)
    out, _ = process.communicate(timeout=180)
    if how == signal.SIGINT:
        assert process.returncode == 75 and "run the same command again" in out
        assert "running" not in states(place) and "interrupted" in states(place)
    # After SIGKILL the runs outlive their launcher, and must not get a second process.
    before = states(place)
    write_stub(place, pace=0.0)
    for _ in range(100):
        if launch(place, "--workers", "2")[0] == 0:
            break
    assert states(place) == ["finished"] * 12
    for i, (state, count) in enumerate(zip(before, attempts(place, 12))):
        assert count == (2 if state == "interrupted" else 1), (i, state)

    through = place / "through"
    assert launch(place, "--root", str(through), "--workers", "2")[0] == 0
    for i in range(12):
        results = [
            trials.read_json(trials.directory(r, i) / "results.json")
            for r in (place / "root", through)
        ]
        assert results[0] == results[1] and results[0]["test"]
        lines = [
            (trials.directory(r, i) / "metrics.jsonl").read_text()
            for r in (place / "root", through)
        ]
        assert lines[0] == lines[1]


def test_a_trial_that_ended_before_its_baselines_is_not_finished(tmp_path):
    folder = trials.directory(tmp_path, 0)
    folder.mkdir()
    pending = {"test": {}, "baselines_pending": True}
    complete = {"test": {}, "baselines_left_out": {"item_knn": "why"}}
    for results, state in ((pending, trials.INTERRUPTED), (complete, trials.FINISHED)):
        trials.write_json(folder / "trial.json", {"index": 0, "overrides": {}})
        trials.write_json(folder / "results.json", results)
        assert trials.trial_status(tmp_path, 0, {}).state == state


def test_a_claim_excludes_others_until_its_holder_is_gone(tmp_path):
    claim = trials.Claim.take(tmp_path / "000")
    assert claim is not None and trials.Claim.take(tmp_path / "000") is None
    claim.release()
    path = tmp_path / "000/claim.json"
    path.write_text(json.dumps({"token": "t", "host": "another machine", "pids": [1]}))
    assert trials.Claim.take(tmp_path / "000") is None  # its heart still beats
    os.utime(path, times=(time.time() - 1000,) * 2)
    assert trials.Claim.take(tmp_path / "000") is not None


def test_dry_run_estimates_time_once_a_trial_has_finished(place):
    code, out, _ = launch(place, "--dry_run")
    out, tokens = " ".join(out.split()), 1000 * 32 * 200 / 1e6
    assert (
        code == 0
        and f"6 left: {6 * tokens:.1f} M tokens" in out
        and "provides a time estimate" in out
    )
    assert not (place / "root").exists()
    launch(place, "--index", "0")
    out = " ".join(
        launch(place, "--dry_run", "--workers", "2")[1].split()
    )  # lines end where the folder's name lets them
    assert "5 left" in out and "at the speed of 1 finished trial(s)" in out
    # 2 x (1 + 2 + 7) layers cost 19 / 1 times the finished one, less a little for the shared output layer
    assert 10 < int(out.rpartition("trial(s): ")[2].split(" s of")[0]) < 1.5 * 19


def test_a_trial_without_overrides_is_a_trial_like_any_other(place):
    write_sweep(place, 'yield from one_at_a_time({}, {"seed": [1, 2]})')
    code, out, err = launch(place, "--dry_run")
    assert (code, err) == (0, "") and "3 left" in " ".join(out.split())
    assert [line.split()[-1] for line in out.splitlines()[1:4]] == ["-", "seed=1", "seed=2"]
    code, out, err = launch(place)
    assert (code, err) == (0, "") and states(place) == ["finished"] * 3
    assert json.loads((place / "root/000/results.json").read_text())["flags"] == []
    # The fields that the others share are not the fields that all share.
    write_sweep(place, 'yield from [{}, {"seed": 1}, {"seed": 1, "model.layers": 1}]')
    out = launch(place, "--dry_run", "--root", str(place / "other"))[1]
    assert "all trials" not in out and out.count("seed=1") == 2


def test_mistakes_are_one_line(place):
    write_sweep(place, 'yield {"model.widht": 3}')
    code, _, err = launch(place)
    assert (
        code == 2
        and err.count("\n") == 1
        and "trial 0: unknown config field config.model.widht" in err
    )
    write_sweep(place, 'yield {"seed": 1}\n    yield {"seed": 1}')
    assert "trials 0 and 1 are the same" in launch(place)[2]
    write_sweep(place, 'yield {"seed": 1}')
    assert "--index 1: " in launch(place, "--index", "1")[2]
    process = subprocess.run(
        command(place, "--watch"), cwd=CHECKOUT, capture_output=True, text=True
    )
    assert process.returncode == 2 and "does not contain a sweep" in process.stderr


def test_trials_are_a_pure_function_of_the_file():
    space = {
        "a": sweep.log_uniform(1e-4, 1e-2),
        "b": sweep.integer(1, 3),
        "c": sweep.choice("x", "y"),
    }
    first, more = list(sweep.random(space, 5, seed=3)), list(sweep.random(space, 200, seed=3))
    assert first == more[:5] and first != list(sweep.random(space, 5, seed=4))
    assert {t["b"] for t in more} == {1, 2, 3} and {t["c"] for t in more} == {"x", "y"}
    assert all(1e-4 <= t["a"] <= 1e-2 for t in more)
    assert 60 < sum(t["a"] < 1e-3 for t in more) < 140  # half of them below the geometric middle
    ablation = list(sweep.one_at_a_time({"w": 1, "h": 1}, {"w": [1, 2], "h": [3]}))
    assert ablation == [{"w": 1, "h": 1}, {"w": 2, "h": 1}, {"w": 1, "h": 3}]


def test_slots_divide_the_machine():
    cpus = [s.cpus for s in local.divide(3, range(8), [])]
    assert (
        sorted(sum(cpus, ())) == list(range(8)) and max(map(len, cpus)) - min(map(len, cpus)) <= 1
    )
    shared = local.divide(4, range(8), ["0", "1"])
    assert [s.environment["CUDA_VISIBLE_DEVICES"] for s in shared] == ["0", "1", "0", "1"]
    assert shared[0].environment["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.45"
    own = local.divide(2, range(8), ["0", "1", "2", "3"])
    assert [s.environment["CUDA_VISIBLE_DEVICES"] for s in own] == ["0,1", "2,3"]
    assert "XLA_PYTHON_CLIENT_MEM_FRACTION" not in own[0].environment


def test_workers_get_disjoint_cpus(place):
    if len(local.visible_cpus()) < 2:
        pytest.skip("one CPU only")
    (place / "stub.py").write_text(
        "import os, pathlib, sys, time\nout = pathlib.Path(sys.argv[sys.argv.index('--workdir') + 1])\n"
        "(out / 'started').touch()\nwhile not all((out.parent / i / 'started').exists() for i in ('000', '001')):\n"
        "    time.sleep(0.05)\n(out / 'cpus').write_text(repr(sorted(os.sched_getaffinity(0))))\n"
    )
    write_sweep(place, 'yield from grid({"seed": [0, 1]})')
    launch(place, "--workers", "2")
    seen = [eval((place / f"root/00{i}/cpus").read_text()) for i in (0, 1)]
    assert seen[0] and seen[1] and not set(seen[0]) & set(seen[1])


FAKE_SBATCH = """\
#!{python}
# Reads the #SBATCH lines and runs the script once per array index, with a signal and a requeue.
import os, re, subprocess, sys, time, pathlib
script = pathlib.Path(sys.argv[1])
options = dict(re.match(r"#SBATCH --([a-z-]+)=?(.*)", l).groups() for l in script.read_text().splitlines()
               if l.startswith("#SBATCH"))
assert "requeue" in options and options["signal"].startswith("B:USR1@"), options
ranges, limit = options["array"].split("%")
indices = [i for r in ranges.split(",") for i in range(int(r.split("-")[0]), int(r.split("-")[-1]) + 1)]
here = pathlib.Path("{here}")
pathlib.Path(here / "indices").write_text(repr((indices, limit, options.get("partition"))))
for index in indices:
    while True:
        (here / "requeued").unlink(missing_ok=True)
        env = dict(os.environ, SLURM_ARRAY_TASK_ID=str(index), SLURM_ARRAY_JOB_ID="77")
        output = options["output"].replace("%A", "77").replace("%a", str(index))
        with open(output, "a") as log:
            task = subprocess.Popen(["bash", str(script)], env=env, stdout=log, stderr=log, cwd="/")
        if index == 1 and not (here / "limit").exists():
            while not (here / "root/001/checkpoint").exists():
                time.sleep(0.02)
            (here / "limit").touch()
            task.send_signal(10)  # the time limit is near: B: signals the batch shell alone
        task.wait()
        if not (here / "requeued").exists():
            break
print("Submitted batch job 77")
"""


def test_slurm_array_runs_every_trial_and_requeues_a_stopped_one(place):
    write_stub(place, pace=0.1)
    bin_folder = place / "bin"
    bin_folder.mkdir()
    scontrol = (
        f'#!/bin/bash\n[ "$1" = requeue ] && echo "$2" >> {place}/log; touch {place}/requeued\n'
    )
    for name, text in (
        ("sbatch", FAKE_SBATCH.format(python=sys.executable, here=place)),
        ("scontrol", scontrol),
    ):
        (bin_folder / name).write_text(text)
        (bin_folder / name).chmod(0o755 | stat.S_IXUSR)
    write_sweep(place, 'yield from grid({"model.layers": [1, 2, 7]})')
    assert launch(place, "--index", "0")[0] == 0
    env = {**os.environ, "PATH": f"{bin_folder}:{os.environ['PATH']}"}
    flags = ("--backend", "slurm", "--workers", "4", "--slurm_option=--partition=gpu")
    code, out, err = launch(place, *flags, env=env)
    assert code == 0 and "Submitted batch job 77" in out, err
    assert (
        place / "indices"
    ).read_text() == "([1, 2], '4', 'gpu')"  # finished trials are not submitted
    assert (place / "log").read_text() == "77_1\n"
    assert states(place) == ["finished", "finished", "failed"]
    assert attempts(place, 3) == [1, 2, 1]
    steps = [
        json.loads(line)["step"]
        for line in (place / "root/001/metrics.jsonl").read_text().splitlines()
    ]
    assert steps == list(range(1, 13))  # it went on where it had stopped
    assert "seven layers" in (place / "root/slurm/77_2.txt").read_text()
    code, _, err = launch(place, *flags, env={**os.environ, "PATH": "/nowhere"})
    assert code == 2 and "sbatch is not installed" in err


def test_kubernetes_manifest_is_a_valid_indexed_job(place):
    flags = (
        "--backend",
        "k8s",
        "--root",
        "/sweeps/a",
        "--k8s_image",
        "me/bert4rec:1",
        "--k8s_volume_claim",
        "disk",
        "--workers",
        "3",
        "--set",
        "data.path=/sweeps/ml-1m",
    )
    code, out, err = launch(place, *flags)
    assert code == 0, err
    job = yaml.safe_load(out)
    jsonschema.validate(job, TINY_JOB_SCHEMA)
    assert (job["spec"]["completions"], job["spec"]["parallelism"]) == (6, 3)
    argv = job["spec"]["template"]["spec"]["containers"][0]["command"]
    assert argv[-1] == "--index=$(JOB_COMPLETION_INDEX)" and "--set=data.path=/sweeps/ml-1m" in argv
    # The pod's own command, with the index filled in as Kubernetes does, runs that trial.
    argv = [
        a.replace("$(JOB_COMPLETION_INDEX)", "3").replace("/sweeps/a", str(place / "root"))
        for a in argv
    ]
    process = subprocess.run(
        [sys.executable, *argv[1:]], cwd=CHECKOUT, capture_output=True, text=True
    )
    assert process.returncode == 0 and states(place)[3] == "finished"
    if importlib.util.find_spec("kubernetes_validate"):  # optional: the complete schemas
        import kubernetes_validate

        kubernetes_validate.validate(job, "1.29", strict=True)


def test_search_proposes_prunes_and_resumes(place):
    pytest.importorskip("optuna")
    space = '{"optimizer.learning_rate": log_uniform(1e-4, 1e-1), "model.layers": choice(1, 2)}'
    write_sweep(
        place,
        "",
        f"SEARCH = Search({space}, 8, startup=2, prune_after=2, fixed={{'model.width': 32}})",
    )
    write_stub(
        place, pace=0.1
    )  # several looks of the launcher at each trial, also on a busy machine
    process = start(place, "--workers", "2")
    wait_for(lambda: (place / "root/002/checkpoint").exists())
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=180)
    started = [p.overrides for p in trials.all_statuses(place / "root")][:3]
    code, out, err = launch(place, "--workers", "2")
    assert code == 0, out + err
    progress = trials.all_statuses(place / "root")
    assert [p.overrides for p in progress][:3] == started and started[0]["model.width"] == 32
    assert len({p.overrides["optimizer.learning_rate"] for p in progress}) == 8
    assert {p.state for p in progress} == {"finished", "pruned"}
    pruned = [p for p in progress if p.state == "pruned"]
    # The last step may be done before the signal arrives.
    assert all(2 <= p.step <= 12 for p in pruned) and min(p.step for p in pruned) < 12
    best = max(progress, key=lambda p: p.valid["ndcg@10"])
    assert best.state == "finished"
    before = attempts(place, 8)
    assert launch(place, "--workers", "2")[0] == 0 and attempts(place, 8) == before


def test_training_flags_spell_values_as_main_reads_them():
    assert sweep_file.arguments(
        {"eval.filter_seen": False, "optimizer.learning_rate": 1e-3, "seed": 2}
    ) == [
        "--config.eval.filter_seen=false",
        "--config.optimizer.learning_rate=0.001",
        "--config.seed=2",
    ]
    typed = ["data.path=a=b", "seed=3", "model.remat=True", "eval.filter_seen=false"]
    read = {"data.path": "a=b", "seed": 3, "model.remat": True, "eval.filter_seen": False}
    assert sweep_file.parse_assignments(typed) == read
    with pytest.raises(UserError):
        sweep_file.parse_assignments(["seed"])


def wait_for(condition) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "nothing happened"
        time.sleep(0.02)
