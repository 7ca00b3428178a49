# SPDX-License-Identifier: Apache-2.0
"""Fused kernels of accelerators, in Pallas: attention inside segments, and the exact softmax over the catalogue.

One file is one kernel on one kind of machine; those of one name compute the same with the same arguments. `attention`
and `softmax`, one room up, choose.
"""
