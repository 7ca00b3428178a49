# SPDX-License-Identifier: Apache-2.0
"""Fused kernels of accelerators, in Pallas; on any other machine they are interpreted, for tests.

`attention_tpu` and `attention_gpu`: attention inside segments. `softmax_tpu` and `softmax_gpu`: the exact softmax over
the catalogue. Those of one name compute the same; `attention` and `softmax`, one room up, choose.
"""
