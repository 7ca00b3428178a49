# SPDX-License-Identifier: Apache-2.0
"""Runs a sweep with a cluster scheduler: one SLURM array or one Kubernetes Indexed Job.

Both run `python -m experiments.launch --index i` per trial, which exits with 0 (done), 1 (failed)
or 75 (stopped after saving: start it again). The scheduler does the rest.
"""

import re
import shlex
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bert4rec_jax.errors import UserError

UNFINISHED = 75  # EX_TEMPFAIL of sysexits.h

# A trapped signal interrupts bash's `wait` before the child exits, hence the loop. Stopped trials
# return to the queue under their own array index.
_SLURM_BODY = """\
cd {directory}
{command} --index "$SLURM_ARRAY_TASK_ID" &
child=$!
trap 'interrupted=1; kill -USR1 "$child" 2>/dev/null' USR1 TERM
while :; do
  interrupted=0
  wait "$child"; code=$?
  [ "$interrupted" = 1 ] || break
done
if [ "$code" -eq {unfinished} ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_${{SLURM_ARRAY_TASK_ID}}"
fi
exit "$code"
"""


def slurm_script(
    command: Sequence[str],
    indices: Sequence[int],
    workers: int,
    logs: Path,
    name: str,
    options: Sequence[str],
    directory: Path,
) -> str:
    """Returns an sbatch script with one array task per trial.

    Args:
      command: launches a trial when `--index i` is appended.
      indices: trials to run.
      workers: number of tasks at the same time.
      logs: folder for the output of the tasks.
      name: of the job.
      options: further sbatch options, such as `--partition=gpu`; they override the others.
      directory: working directory.
    """
    header = [
        f"--job-name={name}",
        f"--array={_ranges(indices)}%{workers}",
        f"--output={logs}/%A_%a.txt",
        "--open-mode=append",
        "--requeue",
        "--signal=B:USR1@120",
        *options,
    ]
    body = _SLURM_BODY.format(
        directory=shlex.quote(str(directory)), command=shlex.join(command), unfinished=UNFINISHED
    )
    return "#!/bin/bash\n" + "".join(f"#SBATCH {option}\n" for option in header) + body


def submit(script: Path) -> str:
    """Submits a script and returns the output of sbatch.

    Raises:
      UserError: sbatch is missing or fails.
    """
    if shutil.which("sbatch") is None:
        raise UserError(
            f"sbatch is not installed on this machine; submit {script} on a login node."
        )
    answer = subprocess.run(["sbatch", str(script)], capture_output=True, text=True)
    if answer.returncode != 0:
        raise UserError(
            f"sbatch rejected {script}: {answer.stderr.strip() or answer.stdout.strip()}"
        )
    return answer.stdout.strip()


@dataclass(frozen=True)
class Pod:
    """The pods of a Kubernetes Job.

    Attributes:
      image: container image with the checkout as its working directory.
      volume_claim: persistent volume claim with the folder of the sweep, writable by many pods.
      mount: mount path of the volume in the container.
      gpus: NVIDIA GPUs per pod.
      cpus: CPUs per pod.
      memory: memory per pod, such as 16Gi.
    """

    image: str
    volume_claim: str
    mount: str
    gpus: int
    cpus: int
    memory: str

    def template(self, command: Sequence[str]) -> dict:
        """Returns the pod template that runs `command`."""
        resources = {"cpu": str(self.cpus), "memory": self.memory}
        if self.gpus:
            resources["nvidia.com/gpu"] = str(self.gpus)
        container = {
            "name": "trial",
            "image": self.image,
            "command": list(command),
            "resources": {"requests": resources, "limits": resources},
            "volumeMounts": [{"name": "sweep", "mountPath": self.mount}],
        }
        claim = {"claimName": self.volume_claim}
        return {
            "spec": {
                "restartPolicy": "Never",
                "terminationGracePeriodSeconds": 300,
                "containers": [container],
                "volumes": [{"name": "sweep", "persistentVolumeClaim": claim}],
            }
        }


def job_manifest(command: Sequence[str], count: int, workers: int, name: str, pod: Pod) -> dict:
    """Returns a Kubernetes Indexed Job; index i of the Job is trial i.

    A stopped trial (exit code 75, or a pod that was evicted or drained) is restarted and not
    counted as a failure; a failed one is retried once, without stopping the others.

    Args:
      command: launches a trial when `--index=i` is appended.
      count: number of trials; finished ones end at once.
      workers: pods at the same time.
      name: name of the Job.
      pod: resources of each trial.
    """
    stopped = {"containerName": "trial", "operator": "In", "values": [UNFINISHED]}
    evicted = {"type": "DisruptionTarget", "status": "True"}
    # Kubernetes expands $(...); without a shell, signals reach the program.
    indexed_command = [*command, "--index=$(JOB_COMPLETION_INDEX)"]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "completionMode": "Indexed",
            "completions": count,
            "parallelism": min(workers, count),
            "backoffLimitPerIndex": 1,
            "podFailurePolicy": {
                "rules": [
                    {"action": "Ignore", "onExitCodes": stopped},
                    {"action": "Ignore", "onPodConditions": [evicted]},
                ]
            },
            "template": pod.template(indexed_command),
        },
    }


def job_name(text: str) -> str:
    """Returns `text` as a name for Kubernetes and SLURM: lower-case letters, digits and dashes."""
    name = re.sub(r"[^a-z0-9]", "-", text.lower()).strip("-")
    return name[:50].rstrip("-") or "sweep"


def _ranges(indices: Sequence[int]) -> str:
    """Writes 0,1,2,5 as 0-2,5, because the list of a large sweep is too long for sbatch."""
    parts: list[list[int]] = []
    for index in sorted(indices):
        if parts and parts[-1][1] == index - 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in parts)
