"""NVIDIA GPUs of this machine, through NVML: how busy, memory, power, energy, clocks.

NVML is opened at the first reading. Any of its calls may be unsupported by a card, a driver or a
container: what is not to be had is left out, never 0, and is not asked for again. Two names need
care. ``gpu_busy_ratio`` is the share of time in which *some* kernel ran, and reaches 1 long before
a GPU is full; ``gpu_energy_joules`` is the card's counter since its driver was loaded, so that only
a difference of two readings means anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from collectors.errors import NoDataError
from collectors.poll import Reading

NO_GPU = "no GPU seen here"

_MILLI = 1e-3
_MEGA = 1e6
_PERCENT = 1e-2

Values = dict[str, float]
"""Readings of one call, by name."""


class GpuCollector:
    """Readings of every GPU that NVML shows; the source of each is ``gpu:`` and its UUID."""

    name = "gpu"

    def __init__(self) -> None:
        self._nvml: Any = None
        self._cards: list[tuple[str, Any]] = []  # source, NVML's handle
        self._refused: set[tuple[str, Callable[..., Values]]] = set()
        self._facts: dict[str, str] = {}

    @property
    def facts(self) -> Mapping[str, str]:
        """The name of each GPU by its source, and the version of the driver."""
        return self._facts

    def collect(self) -> Iterator[Reading]:
        """The readings of this moment.

        Raises:
            NoDataError: there is no NVML here, or it shows no GPU.
        """
        if self._nvml is None:
            self._open()
        for source, card in self._cards:
            for call in _CALLS:
                for name, value in self._values(source, card, call).items():
                    yield name, value, source

    def _open(self) -> None:
        try:
            import pynvml as nvml  # noqa: PLC0415  # only where GPUs are asked for
        except ImportError:
            raise NoDataError(NO_GPU) from None
        try:
            nvml.nvmlInit()
            count = nvml.nvmlDeviceGetCount()
        except nvml.NVMLError:  # no library, no driver, no permission
            raise NoDataError(NO_GPU) from None
        for index in range(count):
            try:
                card = nvml.nvmlDeviceGetHandleByIndex(index)
                source = f"gpu:{nvml.nvmlDeviceGetUUID(card)}"
            except nvml.NVMLError:  # one that fell off the bus
                continue
            self._cards.append((source, card))
            self._learn(nvml, source, partial(nvml.nvmlDeviceGetName, card))
        if not self._cards:
            raise NoDataError(NO_GPU)
        self._learn(nvml, "nvidia_driver", nvml.nvmlSystemGetDriverVersion)
        self._nvml = nvml

    def _learn(self, nvml: Any, name: str, ask: Callable[[], str]) -> None:
        try:
            self._facts[name] = ask()
        except nvml.NVMLError:
            return

    def _values(self, source: str, card: Any, call: Callable[..., Values]) -> Values:
        """What ``call`` reads of the card; nothing where that is not to be had."""
        nvml = self._nvml
        if (source, call) in self._refused:
            return {}
        try:
            return call(nvml, card)
        except (AttributeError, nvml.NVMLError_NotSupported, nvml.NVMLError_FunctionNotFound):
            # An AttributeError: this release of nvidia-ml-py has no such call.
            self._refused.add((source, call))
            return {}
        except nvml.NVMLError:  # this time only: asked for again
            return {}


def _busy(nvml: Any, card: Any) -> Values:
    rates = nvml.nvmlDeviceGetUtilizationRates(card)
    return {
        "gpu_busy_ratio": rates.gpu * _PERCENT,
        "gpu_memory_busy_ratio": rates.memory * _PERCENT,
    }


def _memory(nvml: Any, card: Any) -> Values:
    memory = nvml.nvmlDeviceGetMemoryInfo(card)
    return {
        "gpu_memory_used_bytes": float(memory.used),
        "gpu_memory_total_bytes": float(memory.total),
    }


def _power(nvml: Any, card: Any) -> Values:
    return {"gpu_power_watts": nvml.nvmlDeviceGetPowerUsage(card) * _MILLI}


def _power_limit(nvml: Any, card: Any) -> Values:
    return {"gpu_power_limit_watts": nvml.nvmlDeviceGetEnforcedPowerLimit(card) * _MILLI}


def _energy(nvml: Any, card: Any) -> Values:
    return {"gpu_energy_joules": nvml.nvmlDeviceGetTotalEnergyConsumption(card) * _MILLI}


def _temperature(nvml: Any, card: Any) -> Values:
    celsius = nvml.nvmlDeviceGetTemperature(card, nvml.NVML_TEMPERATURE_GPU)
    return {"gpu_temperature_celsius": float(celsius)}


def _sm_clock(nvml: Any, card: Any) -> Values:
    return {"gpu_sm_clock_hertz": nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_SM) * _MEGA}


def _memory_clock(nvml: Any, card: Any) -> Values:
    mega_hertz = nvml.nvmlDeviceGetClockInfo(card, nvml.NVML_CLOCK_MEM)
    return {"gpu_memory_clock_hertz": mega_hertz * _MEGA}


def _clock_reasons(nvml: Any, card: Any) -> Values:
    """NVML's bits for what holds the clocks back: 1 idle, 4 power cap, 0x20 and 0x40 heat."""
    return {"gpu_clock_reasons": float(nvml.nvmlDeviceGetCurrentClocksEventReasons(card))}


_CALLS: tuple[Callable[[Any, Any], Values], ...] = (
    _busy,
    _memory,
    _power,
    _power_limit,
    _energy,
    _temperature,
    _sm_clock,
    _memory_clock,
    _clock_reasons,
)
