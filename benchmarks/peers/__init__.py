# SPDX-License-Identifier: Apache-2.0
"""The other implementations that the speed benchmark compares with this one."""
