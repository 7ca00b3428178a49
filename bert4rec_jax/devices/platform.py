# SPDX-License-Identifier: Apache-2.0
"""Which kind of machine a function is being traced for: what is fast on one is slow on another.

The default backend does not say: a program may be compiled for machines that are not here. So
`Layout.map` says it around the trace, and whatever has two formulations asks here. Both compute the
same.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax

_platform: contextvars.ContextVar[str | None] = contextvars.ContextVar("platform", default=None)


@contextlib.contextmanager
def compiling_for(platform: str) -> Iterator[None]:
    """Makes `platform` ("cpu", "tpu", "gpu", or what a device calls its own) the one that is traced for."""
    token = _platform.set("gpu" if platform in ("cuda", "rocm") else platform)
    try:
        yield
    finally:
        _platform.reset(token)


def platform() -> str:
    """Returns "cpu", "tpu" or "gpu"."""
    return _platform.get() or jax.default_backend()
