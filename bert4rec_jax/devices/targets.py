# SPDX-License-Identifier: Apache-2.0
"""Accelerators that programs can be compiled for without having one: their figures, and their description to XLA.

A new kind is a line in `CHIPS`. The figures are those the makers publish; nothing is measured here.
"""

import importlib.util
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.experimental import topologies

from bert4rec_jax.errors import UserError


@dataclass(frozen=True)
class Chip:
    """One device, as its maker publishes it.

    Attributes:
      platform: what JAX calls it.
      flops: bfloat16 operations a second.
      bandwidth: bytes a second between the device and its own memory.
      memory: bytes of it.
      accelerator: of TPUs: prefix of `TPU_ACCELERATOR_TYPE`; its number counts `cores` a device.
      cores: see `accelerator`.
      description: of GPUs: `GpuTargetConfigProto` as text.
    """

    platform: str
    flops: float
    bandwidth: float
    memory: float
    accelerator: str = ""
    cores: int = 1
    description: str = ""


def _gpu(
    name: str,
    capability: str,
    cores: int,
    clock: float,
    shared: int,
    bandwidth: float,
    cache: int,
    memory: int,
) -> str:
    return f"""gpu_device_info {{ threads_per_block_limit: 1024 threads_per_warp: 32 shared_memory_per_block: 49152
shared_memory_per_core: {shared + 1024} threads_per_core_limit: 2048 core_count: {cores}
fpus_per_core: {64 if capability == "major: 8" else 128} block_dim_limit_x: 2147483647
block_dim_limit_y: 65535 block_dim_limit_z: 65535
memory_bandwidth: {bandwidth:.0f} l2_cache_size: {cache} clock_rate_ghz: {clock}
device_memory_size: {memory} shared_memory_per_block_optin: {shared}
cuda_compute_capability {{ {capability} }} registers_per_core_limit: 65536 registers_per_block_limit: 65536 }}
platform_name: "CUDA" dnn_version_info {{ major: 9 minor: 8 }} runtime_version {{ major: 12 minor: 8 }}
device_description_str: "{name}\""""


_GIB = 2**30
CHIPS = {
    "v5e": Chip("tpu", 197e12, 819e9, 16 * _GIB, "v5litepod-"),
    "v5p": Chip("tpu", 459e12, 2765e9, 95 * _GIB, "v5p-", 2),
    "v6e": Chip("tpu", 918e12, 1640e9, 32 * _GIB, "v6e-"),
    # A chip is two devices; the figures are of one.
    "tpu7x": Chip("tpu", 1153e12, 3690e9, 96 * _GIB, "tpu7x-"),
    "h100": Chip(
        "cuda",
        989e12,
        3352e9,
        80 * _GIB,
        description=_gpu(
            "NVIDIA H100 80GB HBM3",
            "major: 9",
            132,
            1.98,
            232448,
            3.352e12,
            50 * 2**20,
            84929347584,
        ),
    ),
    "a100": Chip(
        "cuda",
        312e12,
        2039e9,
        80 * _GIB,
        description=_gpu(
            "NVIDIA A100-SXM4-80GB",
            "major: 8",
            108,
            1.41,
            166912,
            2.039e12,
            40 * 2**20,
            84986691584,
        ),
    ),
}


@dataclass(frozen=True)
class Target:
    """Devices of one kind, joined.

    Attributes:
      text: what the user wrote.
      chip: the kind of each device.
      kind: its name in `CHIPS`.
      slices: of TPUs, joined by the network of the data centre.
      shape: of TPUs, chips in each dimension of a slice; of GPUs, (hosts, GPUs of each).
    """

    text: str
    chip: Chip
    kind: str
    slices: int
    shape: tuple[int, ...]

    def prepare(self) -> None:
        """Tells XLA about the target; only before JAX first looks for devices.

        Raises:
          UserError: what compiles for it is not installed.
        """
        jax.config.update("jax_platforms", "cpu")
        if self.chip.platform == "tpu":
            if importlib.util.find_spec("libtpu") is None:
                raise UserError(
                    "--compile_for a TPU needs its compiler: pip install '.[tpu]' (no TPU is needed)."
                )
            chips = 1
            for size in self.shape:
                chips *= size
            os.environ.update(
                TPU_SKIP_MDS_QUERY="1",
                TPU_ACCELERATOR_TYPE=f"{self.chip.accelerator}{chips * self.chip.cores}",
                TPU_WORKER_HOSTNAMES="localhost",
                ALLOW_MULTIPLE_LIBTPU_LOAD="1",
            )
            os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")
            return
        compiler = (
            importlib.util.find_spec("nvidia.cuda_nvcc")
            if importlib.util.find_spec("nvidia")
            else None
        )
        if compiler is None or importlib.util.find_spec("jax_cuda12_plugin") is None:
            raise UserError(
                "--compile_for a GPU needs its compiler: pip install --no-deps "
                "jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12, the first two in the version "
                "of jax (no GPU is needed)."
            )
        os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
        # Without a GPU nothing can be timed, so no algorithm is chosen by timing.
        os.environ["XLA_FLAGS"] = (
            os.environ.get("XLA_FLAGS", "") + " --xla_gpu_autotune_level=0 "
            f"--xla_gpu_cuda_data_dir={Path(next(iter(compiler.submodule_search_locations)))}"
        )

    def devices(self) -> Sequence:
        """Returns descriptions of the devices, for `Layout`; `prepare` comes before.

        Raises:
          UserError: there is no such arrangement of these devices.
        """
        try:
            if self.chip.platform == "tpu":
                slices = {"num_slices": self.slices} if self.slices > 1 else {}
                shape = "x".join(map(str, self.shape))
                return topologies.get_topology_desc(f"{self.kind}:{shape}", "tpu", **slices).devices
            hosts, gpus = self.shape
            return topologies.get_topology_desc(
                "", "cuda", target_config=self.chip.description, topology=f"1x{hosts}x{gpus}"
            ).devices
        except Exception as error:  # the compilers raise what they like
            reason = str(error).strip().splitlines()
            raise UserError(
                f"--compile_for {self.text} cannot be described to the compiler "
                f"({reason[0][:200] if reason else type(error).__name__})."
            ) from None


def parse(text: str) -> Target:
    """Returns the target that `text` names: KIND:SHAPE, as `v5e:4x4`, `2*v5p:2x2x2` (two slices), `h100:8`, `h100:2x8`.

    Raises:
      UserError: it names none.
    """
    match = re.fullmatch(r"(?:(\d+)\*)?(\w+):(\d+(?:x\d+)*)", text)
    if not match or match[2] not in CHIPS:
        raise UserError(
            f"--compile_for {text!r} is no target: write KIND:SHAPE with KIND one of {', '.join(CHIPS)}, "
            "as in v5e:4x4, 2*v5p:2x2x2 (two slices) or h100:2x8 (hosts x GPUs)."
        )
    chip, shape = CHIPS[match[2]], tuple(map(int, match[3].split("x")))
    if chip.platform == "cuda":
        shape = (1, *shape)[-2:]
        if match[1] or len(match[3].split("x")) > 2:
            raise UserError(f"--compile_for {text!r}: GPUs are written HOSTSxGPUS, as in h100:2x8.")
    return Target(text, chip, match[2], int(match[1] or 1), shape)
