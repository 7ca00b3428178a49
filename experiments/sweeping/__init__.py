# SPDX-License-Identifier: Apache-2.0
"""From a sweep to finished trials: on this machine, on a cluster, watched from anywhere.

`trials` is what a trial is on disk, `local` runs them here, `clusters` hands them to SLURM or Kubernetes, `adaptive`
proposes them with Optuna, `board` shows them.
"""
