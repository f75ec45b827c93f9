"""Shapes and data sheets: what follows from them is what is published."""

from __future__ import annotations

import pytest

from reference_server.engine.hardware import DEVICES, device_named
from reference_server.engine.models import MODELS, model_named
from reference_server.errors import SettingsError


@pytest.mark.parametrize(
    ("name", "published"),
    [
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-3.1-70b", 70_553_706_496),
        ("llama-3.2-1b", 1_235_814_400),
        ("qwen2.5-7b", 7_615_616_512),
        ("qwen2.5-0.5b", 494_032_768),
        ("mistral-7b", 7_248_023_552),
        ("mixtral-8x7b", 46_702_792_704),
    ],
)
def test_a_shape_adds_up_to_the_published_count(name: str, published: int) -> None:
    """The weights counted from the shape are those of the published files, to the last one."""
    assert MODELS[name].parameters == published


def test_a_mixture_uses_a_part_of_its_weights() -> None:
    """Mixtral's authors say that a token uses 13 of 47 thousand million weights."""
    mixtral = MODELS["mixtral-8x7b"]
    used = mixtral.active_parameters + 2 * mixtral.head_parameters

    assert used == pytest.approx(12.9e9, rel=0.01)


def test_the_tiny_models_cache_is_a_kilobyte_a_token() -> None:
    """Two layers, two heads of 64, keys and values, two bytes each."""
    assert MODELS["tiny"].kv_entries_per_token * 2 == 1024


@pytest.mark.parametrize("device", DEVICES.values(), ids=lambda device: str(device.name))
def test_every_device_is_within_reason(device: object) -> None:
    """Eight bits are never slower than sixteen, and memory is faster than any link."""
    found = device_named(getattr(device, "name", ""))

    assert found.ops_8 >= found.flops_16
    assert found.flops_8 is None or found.flops_8 >= found.flops_16
    assert found.memory_bytes_per_s > found.link_bytes_per_s
    assert found.source


def test_names_that_are_not_known_are_refused_with_those_that_are() -> None:
    """One sentence, the choices in it."""
    with pytest.raises(SettingsError, match=r"GPU 'h300' is not known; choose one of h200, h100"):
        device_named("h300")
    with pytest.raises(SettingsError, match=r"model 'gpt' is not known; choose one of llama-3"):
        model_named("gpt")
