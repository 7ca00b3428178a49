# SPDX-License-Identifier: Apache-2.0
"""Accelerators to compile for without having one: published figures and descriptions for XLA.

To support another accelerator, add it to `CHIPS`.
"""

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax
from jax.experimental import topologies

from bert4rec_jax.errors import UserError

_GIB = 2**30


@dataclass(frozen=True)
class GpuDetails:
    """The properties of an NVIDIA GPU that XLA's code generation depends on.

    Attributes:
      name: as the driver reports it.
      capability: major version of the compute capability.
      multiprocessors: number of streaming multiprocessors.
      clock_ghz: highest clock rate.
      shared_memory: most bytes of shared memory per block.
      l2_cache: bytes.
      float32_units: float32 units per multiprocessor.
    """

    name: str
    capability: int
    multiprocessors: int
    clock_ghz: float
    shared_memory: int
    l2_cache: int
    float32_units: int = 128


@dataclass(frozen=True)
class Chip:
    """One device, with the figures its manufacturer publishes.

    Attributes:
      platform: JAX's name for the platform: "tpu" or "cuda".
      flops: dense bfloat16 operations per second.
      bandwidth: bytes per second between the device and its own memory.
      memory: bytes of that memory.
      accelerator: prefix of `TPU_ACCELERATOR_TYPE` (TPUs only).
      cores: TPU cores per device, which that variable counts.
      gpu: details for XLA (GPUs only).
    """

    platform: str
    flops: float
    bandwidth: float
    memory: int
    accelerator: str = ""
    cores: int = 1
    gpu: GpuDetails | None = None


CHIPS = {
    "v5e": Chip("tpu", 197e12, 819e9, 16 * _GIB, "v5litepod-"),
    "v5p": Chip("tpu", 459e12, 2765e9, 95 * _GIB, "v5p-", cores=2),
    "v6e": Chip("tpu", 918e12, 1640e9, 32 * _GIB, "v6e-"),
    # A tpu7x chip is two devices; these are the figures of one device.
    "tpu7x": Chip("tpu", 1153e12, 3690e9, 96 * _GIB, "tpu7x-"),
    "a100": Chip(
        "cuda",
        312e12,
        2039e9,
        80 * _GIB,
        gpu=GpuDetails("NVIDIA A100-SXM4-80GB", 8, 108, 1.41, 166912, 40 * 2**20, float32_units=64),
    ),
    "h100": Chip(
        "cuda",
        989e12,
        3352e9,
        80 * _GIB,
        gpu=GpuDetails("NVIDIA H100 80GB HBM3", 9, 132, 1.98, 232448, 50 * 2**20),
    ),
    "h200": Chip(
        "cuda",
        989e12,
        4800e9,
        141 * _GIB,
        gpu=GpuDetails("NVIDIA H200 141GB HBM3e", 9, 132, 1.98, 232448, 50 * 2**20),
    ),
    "b200": Chip(
        "cuda",
        2250e12,
        7672e9,
        178 * _GIB,
        gpu=GpuDetails("NVIDIA B200", 10, 148, 1.965, 232448, 132644864),
    ),
}


def _gpu_description(chip: Chip) -> str:
    """Returns XLA's `GpuTargetConfigProto` in text form."""
    gpu = chip.gpu
    assert gpu is not None, "a chip of the platform cuda has GPU details"
    return f"""
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {gpu.shared_memory + 1024}
  shared_memory_per_block_optin: {gpu.shared_memory}
  threads_per_core_limit: 2048
  core_count: {gpu.multiprocessors}
  fpus_per_core: {gpu.float32_units}
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: {chip.bandwidth:.0f}
  l2_cache_size: {gpu.l2_cache}
  clock_rate_ghz: {gpu.clock_ghz}
  device_memory_size: {chip.memory}
  cuda_compute_capability {{ major: {gpu.capability} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 8 }}
runtime_version {{ major: 12 minor: 8 }}
device_description_str: "{gpu.name}"
"""


@dataclass(frozen=True)
class Target:
    """Several connected devices of one kind.

    Attributes:
      text: the value of `--compile_for`.
      kind: key in `CHIPS`.
      slices: number of TPU slices, which the data center's network connects; 1 for GPUs.
      shape: chips in each dimension of a TPU slice, or (hosts, GPUs per host).
    """

    text: str
    kind: str
    slices: int
    shape: tuple[int, ...]

    @property
    def chip(self) -> Chip:
        """The kind of each device."""
        return CHIPS[self.kind]

    def prepare(self) -> None:
        """Configures JAX and XLA for the target; call this before JAX first looks for devices.

        Raises:
          UserError: the target's compiler is not installed.
        """
        jax.config.update("jax_platforms", "cpu")
        if self.chip.platform == "tpu":
            self._prepare_tpu()
        else:
            _prepare_gpu()

    def _prepare_tpu(self) -> None:
        if not _is_installed("libtpu"):
            raise UserError(
                "--compile_for with a TPU needs its compiler: pip install '.[tpu]' (a TPU is not "
                "needed)."
            )
        cores = math.prod(self.shape) * self.chip.cores
        os.environ["TPU_SKIP_MDS_QUERY"] = "1"
        os.environ["TPU_ACCELERATOR_TYPE"] = f"{self.chip.accelerator}{cores}"
        os.environ["TPU_WORKER_HOSTNAMES"] = "localhost"
        os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"
        os.environ.setdefault("TPU_MIN_LOG_LEVEL", "3")

    def devices(self) -> Sequence[jax.Device]:
        """Returns descriptions of the devices for `Layout`; call `prepare` first.

        Raises:
          UserError: the compiler does not support this arrangement of devices.
        """
        try:
            if self.chip.platform == "tpu":
                return self._tpu_devices()
            hosts, gpus = self.shape
            topology = topologies.get_topology_desc(
                "",
                "cuda",
                target_config=_gpu_description(self.chip),
                topology=f"1x{hosts}x{gpus}",
            )
            return topology.devices
        except Exception as error:  # the compilers raise exceptions of many types
            lines = str(error).strip().splitlines()
            reason = lines[0][:200] if lines else type(error).__name__
            raise UserError(
                f"--compile_for {self.text} is rejected by the compiler ({reason})."
            ) from None

    def _tpu_devices(self) -> Sequence[jax.Device]:
        slices = {"num_slices": self.slices} if self.slices > 1 else {}
        shape = "x".join(map(str, self.shape))
        return topologies.get_topology_desc(f"{self.kind}:{shape}", "tpu", **slices).devices


def _is_installed(module: str) -> bool:
    parent = module.partition(".")[0]
    return bool(importlib.util.find_spec(parent)) and bool(importlib.util.find_spec(module))


def _prepare_gpu() -> None:
    """Configures XLA for CUDA, without a GPU to check or to measure on."""
    if not (_is_installed("nvidia.cuda_nvcc") and _is_installed("jax_cuda12_plugin")):
        raise UserError(
            "--compile_for with a GPU needs its compiler: pip install --no-deps "
            "jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12, the first two in the version "
            "of jax (a GPU is not needed)."
        )
    spec = importlib.util.find_spec("nvidia.cuda_nvcc")
    assert spec is not None and spec.submodule_search_locations, "checked above"
    compiler = Path(next(iter(spec.submodule_search_locations)))
    os.environ["JAX_SKIP_CUDA_CONSTRAINTS_CHECK"] = "1"
    # Autotuning chooses algorithms by their run time, which needs a GPU.
    options = f"--xla_gpu_autotune_level=0 --xla_gpu_cuda_data_dir={compiler}"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {options}"


def parse(text: str) -> Target:
    """Returns the target for KIND:SHAPE.

    Examples are `v5e:4x4`, `2*v5p:2x2x2` (two slices), `h100:8` and `h100:2x8`.

    Raises:
      UserError: the text does not have this form.
    """
    match = re.fullmatch(r"(?:(\d+)\*)?(\w+):(\d+(?:x\d+)*)", text)
    if not match or match[2] not in CHIPS:
        raise UserError(
            f"--compile_for {text!r} is not a target: write KIND:SHAPE with KIND one of "
            f"{', '.join(CHIPS)}, as in v5e:4x4, 2*v5p:2x2x2 (two slices) or h100:2x8 (hosts x "
            "GPUs)."
        )
    slices, kind, sizes = match.groups()
    shape = tuple(int(size) for size in sizes.split("x"))
    if CHIPS[kind].platform == "cuda":
        if slices or len(shape) > 2:
            raise UserError(f"--compile_for {text!r}: write GPUs as HOSTSxGPUS, as in h100:2x8.")
        shape = (1, *shape)[-2:]
    return Target(text, kind, int(slices or 1), shape)
