# SPDX-License-Identifier: Apache-2.0
"""From a sweep to finished trials: on this machine, on a cluster, watched from anywhere."""
