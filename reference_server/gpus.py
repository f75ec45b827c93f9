"""The NVIDIA GPUs of this machine, as far as a launcher must know them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU.

    Attributes:
        name: its model, such as "NVIDIA H200".
        capability: compute capability, major and minor; None where the driver does not tell.
    """

    name: str
    capability: tuple[int, int] | None = None


def find_gpus() -> tuple[Gpu, ...]:
    """The GPUs that NVML shows; none where there is no driver, no library or no permission."""
    try:
        import pynvml as nvml  # noqa: PLC0415  # only where GPUs are asked for

        nvml.nvmlInit()
    except Exception:  # noqa: BLE001  # pynvml's own error, or whatever a broken driver raises
        return ()
    try:
        handles = [nvml.nvmlDeviceGetHandleByIndex(n) for n in range(nvml.nvmlDeviceGetCount())]
        return tuple(_gpu(nvml, handle) for handle in handles)
    except nvml.NVMLError:
        return ()
    finally:
        nvml.nvmlShutdown()


def named(gpus: Sequence[Gpu]) -> str | None:
    """GPUs in words, such as "2 x NVIDIA H200"; None for none."""
    if not gpus:
        return None
    return gpus[0].name if len(gpus) == 1 else f"{len(gpus)} x {gpus[0].name}"


def _gpu(nvml: Any, handle: Any) -> Gpu:
    try:
        capability = nvml.nvmlDeviceGetCudaComputeCapability(handle)
    except nvml.NVMLError:
        capability = None
    return Gpu(
        name=nvml.nvmlDeviceGetName(handle),
        capability=None if capability is None else (int(capability[0]), int(capability[1])),
    )
