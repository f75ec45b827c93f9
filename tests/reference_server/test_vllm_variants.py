"""Variants of a vLLM server: names, values, contradictions, and what a machine must have."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_server.errors import SettingsError
from reference_server.gpus import Gpu, find_gpus, named
from reference_server.vllm_variants import CHECKPOINT, VARIANTS, choose, listed

SAMPLE = {"N": "2", CHECKPOINT: "org/other", None: ""}


@pytest.mark.parametrize("name", VARIANTS)
def test_each_variant_can_be_had_on_a_gpu(name: str) -> None:
    """Each does something: flags without a hole, or another checkpoint; and has its sentence."""
    variant = VARIANTS[name]
    word = f"{name}={SAMPLE[variant.takes]}" if variant.takes else name
    choice = choose([word], on_cpu=False)
    assert choice.flags or choice.checkpoint
    assert not any("{value}" in flag for flag in choice.flags)
    assert variant.about.endswith(".")


@given(st.lists(st.sampled_from(sorted(VARIANTS)), max_size=5), st.booleans())
def test_any_variants_are_refused_or_give_each_flag_once(names: list[str], on_cpu: bool) -> None:
    """What is chosen never sets a flag twice, and the order decides nothing but the order."""
    words = [f"{n}={SAMPLE[VARIANTS[n].takes]}" if VARIANTS[n].takes else n for n in names]
    try:
        choice = choose(words, on_cpu=on_cpu)
    except SettingsError:
        with pytest.raises(SettingsError):
            choose(words[::-1], on_cpu=on_cpu)
        return
    flags = [flag for flag in choice.flags if flag.startswith("--")]
    assert len(flags) == len(set(flags))
    assert sorted(choose(words[::-1], on_cpu=on_cpu).flags) == sorted(choice.flags)


def test_several_variants_add_up() -> None:
    """Flags in the order asked for, GPUs multiplied, the words kept for a run's label."""
    words = ["kv-fp8", "tensor-parallel=2", "data-parallel=2", "pruned=org/p"]
    choice = choose(words, on_cpu=False, gpus=[Gpu(name="H200", capability=(9, 0))] * 4)
    assert choice.flags == (
        *("--kv-cache-dtype", "fp8", "--tensor-parallel-size", "2", "--data-parallel-size", "2"),
    )
    assert choice.checkpoint == "org/p"
    assert choice.gpus == 4
    assert choice.names == tuple(words)


def test_a_checkpoint_may_be_the_model_itself() -> None:
    """`awq` alone says that the model is such a one already."""
    assert choose(["awq"], on_cpu=False).checkpoint is None


@pytest.mark.parametrize(("word", "tokens"), [("spec-ngram", 4), ("spec-ngram=7", 7)])
def test_speculation_is_one_json_value(word: str, tokens: int) -> None:
    """VLLM parses it as JSON; a number may follow the name."""
    flag, text = choose([word], on_cpu=True).flags
    assert flag == "--speculative-config"
    assert json.loads(text)["num_speculative_tokens"] == tokens


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["fp-8"], "There is no variant 'fp-8'; .*--variant list"),
        (["fp8", "int8"], "fp8 and int8 cannot be had together: .* one choice of weights"),
        (["awq", "pruned=x"], "one choice of checkpoint"),
        (["prefix-cache", "no-prefix-cache"], "one choice of prefix cache"),
        (["attn-flash", "attn-triton"], "one choice of attention backend"),
        (["eager", "eager"], "eager is given twice"),
        (["eager=1"], "expected eager"),
        (["pruned"], "expected pruned=CHECKPOINT"),
        (["awq="], r"expected awq\[=CHECKPOINT\]"),
        (["tensor-parallel=two"], "expected a number from 1 up"),
        (["tensor-parallel=0"], "expected a number from 1 up"),
        (["tensor-parallel=4"], "takes 4 GPUs and this machine has 1"),
        (["kv-fp8"], r"capability 8\.9 or higher, and A100 has 8\.0"),
    ],
)
def test_what_cannot_be_had_is_one_sentence(words: list[str], sentence: str) -> None:
    """Unknown, contradictory, without a value, or beyond this machine."""
    with pytest.raises(SettingsError, match=sentence):
        choose(words, on_cpu=False, gpus=[Gpu(name="A100", capability=(8, 0))])


def test_a_gpu_that_does_not_tell_its_capability_is_believed() -> None:
    """VLLM will say; not knowing is no reason to refuse."""
    assert choose(["kv-fp8"], on_cpu=False, gpus=[Gpu(name="?")]).flags
    assert choose(["kv-fp8"], on_cpu=False).flags


def test_the_list_shows_each_with_its_flags_and_needs() -> None:
    """`--variant list` is all that a user needs."""
    text = listed()
    for variant in VARIANTS.values():
        assert variant.form in text
        assert variant.about in text
    assert "an NVIDIA GPU of compute capability 7.5" in text
    assert "--kv-cache-dtype fp8" in text


def test_gpus_have_a_name_in_words() -> None:
    """For a run's label; none has none."""
    gpu = Gpu(name="NVIDIA H200")
    assert [named([]), named([gpu]), named([gpu, gpu])] == [None, "NVIDIA H200", "2 x NVIDIA H200"]
    assert isinstance(find_gpus(), tuple)
