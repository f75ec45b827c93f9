"""A model on a machine: what fits into its memory, and what its steps take.

The KV cache gets what the weights leave, as in vLLM: of each GPU's memory the share
`memory_ratio`, less the weights' part, less what the step itself needs (`reserved_bytes`; vLLM
measures that when it starts, here it is an assumption).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from reference_server.engine.config import EngineConfig
from reference_server.engine.cost import RooflineCost
from reference_server.errors import SettingsError

MEMORY_RATIO = 0.92  # vLLM 0.32's default of --gpu-memory-utilization
_LARGE_BYTES = 70 * 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What one replica runs on.

    Attributes:
        cost: the model, its form and the device.
        memory_ratio: share of each GPU's memory that may be used.
        reserved_bytes: of each GPU, for activations and graphs.
    """

    cost: RooflineCost
    memory_ratio: float = MEMORY_RATIO
    reserved_bytes: float = 2e9
    kv_cache_tokens: int = field(init=False)

    def __post_init__(self) -> None:
        cost = self.cost
        if not 0 < self.memory_ratio <= 1:
            raise SettingsError(
                f"The share of memory must be above 0 and at most 1, got {self.memory_ratio:g}."
            )
        usable = cost.device.memory_bytes * self.memory_ratio - self.reserved_bytes
        weights = (cost.weight_bytes + cost.draft_bytes) / cost.gpus
        tokens = int((usable - weights) // cost.kv_bytes_per_token)
        if tokens < 1:
            raise SettingsError(
                f"{cost.model.name} leaves no room for a KV cache on {cost.gpus} x "
                f"{cost.device.title}: {weights / 1e9:.1f} GB of weights a GPU, "
                f"{usable / 1e9:.1f} GB usable. Take more GPUs, a larger one, or fewer bits a "
                "weight."
            )
        object.__setattr__(self, "kv_cache_tokens", tokens)

    def engine(self, **chosen: Any) -> EngineConfig:
        """An engine on this machine.

        Args:
            chosen: fields of `EngineConfig`; those left out are vLLM's defaults for a server on
                such a GPU (get_batch_defaults in vllm/engine/arg_utils.py).

        Raises:
            SettingsError: they contradict each other.
        """
        device = self.cost.device
        large = device.memory_bytes >= _LARGE_BYTES and device.name not in {"a100", "xeon-8480"}
        defaults = {
            "max_num_seqs": 1024 if large else 256,
            "max_batched_tokens": 8192 if large else 2048,
            "kv_cache_tokens": self.kv_cache_tokens,
        }
        return EngineConfig(**(defaults | chosen), cost=self.cost)
