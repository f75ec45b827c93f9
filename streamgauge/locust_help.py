"""Our options in ``locust -f scenarios/chat.py --help``.

Locust prints its help before it imports the locustfile, so a locustfile's own options never show.
gevent, which Locust starts with, calls entry points once it has patched the standard library; ours
notices that help is asked for on a scenario of ours and adds the options after Locust's own.
"""

from __future__ import annotations

import argparse
import atexit
import sys
from collections.abc import Sequence
from pathlib import Path


def on_patched(_event: object) -> None:
    """Gevent's entry point ``gevent.plugins.monkey.did_patch_all``."""
    # Under `python -m locust` argv has no name yet, but what Python was started with has.
    if any("locust" in word for word in (sys.argv[0], *sys.orig_argv[1:3])) and asks_for_help(
        sys.argv
    ):
        atexit.register(print_options)


def asks_for_help(argv: Sequence[str]) -> bool:
    """Whether the words of a Locust command ask for help on a locustfile that uses our users."""
    if not {"-h", "--help"} & set(argv[1:]):
        return False
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-f", "--locustfile", default="locustfile.py")
    options, _ = parser.parse_known_args(argv[1:])
    try:
        text = Path(options.locustfile.split(",")[0]).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return False
    return "loadgen" in text


def print_options() -> None:
    """Print our options as argparse would."""
    from loadgen.options import OPTIONS, add_to_argparse

    parser = argparse.ArgumentParser(add_help=False, usage=argparse.SUPPRESS)
    add_to_argparse(parser, OPTIONS)
    print(f"\n{parser.format_help()}", end="")
