# SPDX-License-Identifier: Apache-2.0
"""From batches to a trained model on disk."""
