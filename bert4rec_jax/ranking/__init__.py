# SPDX-License-Identifier: Apache-2.0
"""From histories to scores, ranks and metrics."""
