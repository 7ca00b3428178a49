# SPDX-License-Identifier: Apache-2.0
"""Sweeps over configs (`launch`); tables and figures from run directories (`report`)."""
