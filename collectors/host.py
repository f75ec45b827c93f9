"""The host of the recorder, which is that of the load: CPU, memory, network."""

from __future__ import annotations

import socket
from collections.abc import Iterator, Mapping

import psutil

from collectors.poll import Reading


class HostCollector:
    """Readings of this machine.

    ``host_cpu_ratio`` is the share of all cores busy since the last reading; the network's bytes
    are counters since boot, over all interfaces but loopback.
    """

    def __init__(self) -> None:
        self.name = f"host:{socket.gethostname()}"
        psutil.cpu_percent()  # the first one has no past to look back on, and says 0

    @property
    def facts(self) -> Mapping[str, str]:
        """None: versions of software are the load process's to tell."""
        return {}

    def collect(self) -> Iterator[Reading]:
        """The readings of this moment."""
        yield "host_cpu_ratio", psutil.cpu_percent() / 100, self.name
        memory = psutil.virtual_memory()
        yield "host_memory_used_bytes", float(memory.total - memory.available), self.name
        yield "host_memory_total_bytes", float(memory.total), self.name
        cards = [c for name, c in psutil.net_io_counters(pernic=True).items() if name != "lo"]
        if cards:
            yield "host_network_sent_bytes", float(sum(c.bytes_sent for c in cards)), self.name
            yield "host_network_received_bytes", float(sum(c.bytes_recv for c in cards)), self.name
