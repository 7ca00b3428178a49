# SPDX-License-Identifier: Apache-2.0
"""Runs the trials of a sweep, for `experiments.launch`.

From low to high: `sweep_file` reads and checks what to run, `trials` is its state on disk,
`adaptive` proposes and prunes with Optuna, `board` shows it, `cost` estimates it, `local` runs it
on this machine, `clusters` hands it to SLURM or Kubernetes.
"""
