"""``streamgauge fit``: runs whose cost is known give that cost back."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from collectors.records import Outcome
from tests.collectors.builders import make_request
from tests.streamgauge.stored import store_run, streamgauge

LINEAR = {
    "--prefill-base": 12.0,
    "--prefill-per-token": 0.1,
    "--decode-base": 5.0,
    "--decode-per-sequence": 0.2,
    "--decode-per-kv-token": 0.0002,
}  # ms
ROOFLINE = {"--compute-ratio": 0.5, "--bandwidth-ratio": 0.65}
OVERHEADS = {"--step-overhead": 1.0, "--sequence-overhead": 0.02}  # ms
GPU = ("--model", "llama-3.1-8b", "--gpu", "h200")


def simulate(db: Path, *words: str) -> list[str]:
    """Runs at four concurrencies; their names."""
    for users in (1, 4, 16, 64):
        load = ("--users", str(users), "--requests", str(users * 20), "--output-tokens", "100")
        done = streamgauge(
            *("simulate", "--db", db, "--run-name", f"u{users}", "--max-num-seqs", "128"),
            *(*load, *words),
        )
        assert done.code == 0, done.err
    return ["u1", "u4", "u16", "u64"]


def options(line: str) -> dict[str, str]:
    """A line of options, by name."""
    words = shlex.split(line)
    return dict(zip(words[::2], words[1::2], strict=True))


def milliseconds(text: str) -> float:
    """Of a duration as `fit` writes it."""
    assert text.endswith("us")
    return float(text[:-2]) / 1000


def test_the_five_linear_figures_come_back(tmp_path: Path) -> None:
    """Each to within a quarter, from what a client sees alone; the samples to within 2 %."""
    db = tmp_path / "a.db"
    cost = [word for name, ms in LINEAR.items() for word in (name, f"{ms}ms")]
    runs = simulate(db, *cost, "--kv-cache-tokens", "200000", "--input-tokens", "100-900")
    done = streamgauge("fit", *runs, "--db", db)

    assert done.code == 0, done.err
    found = options(done.out)
    assert {name: milliseconds(text) for name, text in found.items()} == {
        name: pytest.approx(ms, rel=0.25) for name, ms in LINEAR.items()
    }
    assert float(done.err.split("error is ")[1].split("%")[0]) < 2


def test_what_a_machine_reaches_comes_back(tmp_path: Path) -> None:
    """The shares of the data sheet to within a tenth, the overheads a third."""
    db = tmp_path / "a.db"
    cost = [word for name, share in ROOFLINE.items() for word in (name, str(share))]
    cost += [word for name, ms in OVERHEADS.items() for word in (name, f"{ms}ms")]
    runs = simulate(db, *GPU, *cost, "--input-tokens", "100-3000")
    done = streamgauge("fit", *runs, *GPU, "--db", db)

    assert done.code == 0, done.err
    found = options(done.out)
    assert (found["--gpu"], found["--model"]) == ("h200", "llama-3.1-8b")
    for name, share in ROOFLINE.items():
        assert float(found[name]) == pytest.approx(share, rel=0.1)
    for name, ms in OVERHEADS.items():
        assert milliseconds(found[name]) == pytest.approx(ms, rel=0.33)


def test_what_it_prints_is_what_simulate_takes(tmp_path: Path) -> None:
    """The line pasted behind `simulate` gives the fitted run's figures again."""
    db = tmp_path / "a.db"
    load = ("--users", "8", "--requests", "100", "--input-tokens", "200", "--output-tokens", "50")
    server = (*GPU, "--quantization", "fp8", "--bandwidth-ratio", "0.5")
    assert streamgauge("simulate", *server, *load, "--db", db, "--run-name", "a").code == 0
    line = streamgauge("fit", "a", *GPU, "--quantization", "fp8", "--db", db).out
    again = streamgauge("simulate", *shlex.split(line), *load, "--db", db)

    assert again.code == 0, again.err
    assert options(line)["--quantization"] == "fp8"


def test_no_share_passes_the_data_sheet(tmp_path: Path) -> None:
    """Runs of an H200 called an A10G's would ask for more than there is: held at 1, and said."""
    db = tmp_path / "a.db"
    words = ("--users", "8", "--requests", "100", "--output-tokens", "50")
    assert streamgauge("simulate", *GPU, *words, "--db", db, "--run-name", "a").code == 0
    done = streamgauge("fit", "a", "--model", "llama-3.1-8b", "--gpu", "a10g", "--db", db)

    assert options(done.out)["--bandwidth-ratio"] == "1"
    assert "bandwidth ratio is held at 1, the data sheet's." in done.err


@pytest.mark.parametrize(("other", "notes"), [("400", 0), ("110", 1)])
def test_prompts_too_much_alike_are_noted(tmp_path: Path, other: str, notes: int) -> None:
    """What a prompt's token takes would be a guess from 100 and 110 tokens, not from 400."""
    db = tmp_path / "a.db"
    for name, length in (("a", "100"), ("b", other)):
        words = ("--users", "2", "--requests", "40", "--output-tokens", "30", "--db", db)
        done = streamgauge("simulate", *words, "--input-tokens", length, "--run-name", name)
        assert done.code == 0, done.err
    said = " ".join(streamgauge("fit", "a", "b", "--db", db).err.split())

    assert said.count("Note: the prompts are of 100 to 110 tokens") == notes


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["nothing"], "nothing"),
        (["failed"], "none of these has any"),
        (["failed", "--model", "tiny", "--gpu", "abacus"], "The GPU 'abacus' is not known"),
        (["failed", "--gpu", "h200"], "--gpu needs --model, one of llama-3.1-8b,"),
        (["failed", "--quantization", "fp8"], "--quantization needs --gpu."),
        ([], "Missing argument"),
    ],
)
def test_what_cannot_be_fitted_is_refused(tmp_path: Path, words: list[str], says: str) -> None:
    """One sentence, exit code 2, and no options printed."""
    db = tmp_path / "a.db"
    store_run(db, [make_request(1, 1.0, outcome=Outcome.RESET)], name="failed")
    done = streamgauge("fit", *words, "--db", db)

    assert (done.code, done.out) == (2, "")
    assert says in " ".join(done.err.split())
