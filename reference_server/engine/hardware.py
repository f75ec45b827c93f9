"""What a machine can do at most: figures of data sheets, each with its source.

Floating-point rates are *dense*: NVIDIA's sheets print the rates with structured sparsity, twice
as high. A bandwidth between devices is that of one direction; the sheets print both together.
A kilobyte is 1000 bytes, as on the sheets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from reference_server.errors import SettingsError


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """One GPU, or the processors of one socket.

    Attributes:
        name: by which it is asked for.
        title: what it is.
        flops_16: dense operations a second on 16-bit numbers.
        flops_8: the same on 8-bit floating-point numbers; None: it has no units for them.
        ops_8: the same on 8-bit integers.
        memory_bytes: what it can hold.
        memory_bytes_per_s: how fast it reads that.
        link_bytes_per_s: to a neighbour of the same kind, one direction.
        bus_bytes_per_s: to the host's memory, one direction.
        source: where the figures are from.
    """

    name: str
    title: str
    flops_16: float
    flops_8: float | None
    ops_8: float
    memory_bytes: float
    memory_bytes_per_s: float
    link_bytes_per_s: float
    bus_bytes_per_s: float
    source: str


_PCIE_4: Final = 32e9  # x16; sheets say 64 GB/s for both directions
_PCIE_5: Final = 64e9

DEVICES: Final[dict[str, Device]] = {
    device.name: device
    for device in (
        Device(
            name="h200",
            title="NVIDIA H200 SXM, 141 GB",
            flops_16=989.4e12,
            flops_8=1978.9e12,
            ops_8=1978.9e12,
            memory_bytes=141e9,
            memory_bytes_per_s=4.8e12,
            link_bytes_per_s=450e9,
            bus_bytes_per_s=_PCIE_5,
            source="NVIDIA H200 data sheet: 141 GB HBM3e, 4.8 TB/s, NVLink 900 GB/s, PCIe Gen5 "
            "128 GB/s; FP16 1,979 and FP8 3,958 TFLOPS with sparsity (the dense rates to one "
            "digit more as at glennklockwood.com/garden/processors/h100, the same chip).",
        ),
        Device(
            name="h100",
            title="NVIDIA H100 SXM, 80 GB",
            flops_16=989.4e12,
            flops_8=1978.9e12,
            ops_8=1978.9e12,
            memory_bytes=80e9,
            memory_bytes_per_s=3.35e12,
            link_bytes_per_s=450e9,
            bus_bytes_per_s=_PCIE_5,
            source="NVIDIA H100 data sheet: 80 GB HBM3, 3.35 TB/s, NVLink 900 GB/s, PCIe Gen5 "
            "128 GB/s; FP16 1,979 and FP8 3,958 TFLOPS with sparsity.",
        ),
        Device(
            name="a100",
            title="NVIDIA A100 SXM, 80 GB",
            flops_16=312e12,
            flops_8=None,
            ops_8=624e12,
            memory_bytes=80e9,
            memory_bytes_per_s=2.039e12,
            link_bytes_per_s=300e9,
            bus_bytes_per_s=_PCIE_4,
            source="NVIDIA A100 data sheet: 80 GB HBM2e, 2,039 GB/s, NVLink 600 GB/s, PCIe Gen4 "
            "64 GB/s; FP16 312 TFLOPS and INT8 624 TOPS dense.",
        ),
        Device(
            name="l40s",
            title="NVIDIA L40S, 48 GB",
            flops_16=362.05e12,
            flops_8=733e12,
            ops_8=733e12,
            memory_bytes=48e9,
            memory_bytes_per_s=864e9,
            link_bytes_per_s=_PCIE_4,
            bus_bytes_per_s=_PCIE_4,
            source="NVIDIA L40S data sheet: 48 GB GDDR6, 864 GB/s, no NVLink, PCIe Gen4 64 GB/s; "
            "FP16 362.05 and FP8 733 TFLOPS dense.",
        ),
        Device(
            name="a10g",
            title="NVIDIA A10G, 24 GB",
            flops_16=70e12,
            flops_8=None,
            ops_8=140e12,
            memory_bytes=24e9,
            memory_bytes_per_s=600e9,
            link_bytes_per_s=_PCIE_4,
            bus_bytes_per_s=_PCIE_4,
            source="NVIDIA's A10G sheet for AWS as in github.com/cli99/llm-analysis, "
            "gpu_configs/a10g-pcie-24gb.json (24 GB, 600 GB/s, FP16 70 TFLOPS, INT8 140 TOPS); "
            "memory also at baseten.co/blog/nvidia-a10-vs-a10g-for-ml-model-inference. Not the "
            "A10, which has 125 TFLOPS.",
        ),
        Device(
            name="xeon-8480",
            title="Intel Xeon Platinum 8480+, one socket, 256 GB",
            flops_16=114.7e12,
            flops_8=None,
            ops_8=229.4e12,
            memory_bytes=256e9,
            memory_bytes_per_s=307.2e9,
            link_bytes_per_s=_PCIE_5,
            bus_bytes_per_s=307.2e9,
            source="56 cores and 8 channels of DDR5-4800 (servethehome.com on the Xeon 8480+ and "
            "Max 9480): 8 x 8 bytes x 4.8 GT/s. AMX does 1,024 BF16 or 2,048 INT8 operations a "
            "cycle and core (Wikipedia, Advanced Matrix Extensions), here at the base clock of "
            "2.0 GHz. The memory's size is a choice: 8 x 32 GB. Its bus is the memory itself.",
        ),
    )
}


def device_named(name: str) -> Device:
    """The device of that name.

    Raises:
        SettingsError: there is none.
    """
    if name not in DEVICES:
        raise SettingsError(f"The GPU {name!r} is not known; choose one of {', '.join(DEVICES)}.")
    return DEVICES[name]
