# SPDX-License-Identifier: Apache-2.0
"""Fused kernels for TPUs, in Pallas. On other platforms they are interpreted, for tests.

`attention_tpu` is attention inside segments, `softmax_tpu` the exact softmax over the catalogue.
`model.attention` and `model.softmax` choose between them and implementations in plain JAX.
"""
