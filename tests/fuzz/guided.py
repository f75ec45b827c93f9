"""The same targets under libFuzzer, which is guided by the lines that are run.

Atheris has not a wheel for every Python and platform, so it is no dependency:
``pip install atheris``, then ``python -m tests.fuzz.guided answer -max_total_time=600``. What
follows the name of the target is libFuzzer's. The file of a crash is played again by
``python -m tests.fuzz --replay`` once it lies in a folder of that name.
"""

from __future__ import annotations

import random
import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["loadgen", "collectors.redact"]):
    from tests.fuzz import engine, targets
from tests.fuzz.mutate import MAX_BYTES, Mutator


def main() -> None:
    """Fuzz one target until libFuzzer has had enough."""
    name, *options = sys.argv[1:]
    starts = targets.seeds(name) + [path.read_bytes() for path in engine.corpus(name)]

    def mutated(data: bytes, most: int, seed: int) -> bytes:
        """By bytes and by what they mean, in turn."""
        if seed % 3 == 0:
            changed: bytes = atheris.Mutate(data, most)
            return changed
        draw = random.Random(seed)
        return Mutator(draw, [data, draw.choice(starts)]).make()[:most]

    with tempfile.TemporaryDirectory() as folder:
        for number, start in enumerate(starts):
            (Path(folder) / f"{number}").write_bytes(start)
        arguments = [sys.argv[0], folder, f"-max_len={MAX_BYTES}", "-print_final_stats=1", *options]
        atheris.Setup(arguments, targets.TARGETS[name], custom_mutator=mutated)
        atheris.Fuzz()


if __name__ == "__main__":
    main()
