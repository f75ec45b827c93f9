"""Notice a folder of the user's that hides a package of ours.

Our packages have plain names (``collectors``, ``sla`` ...), and Locust as well as ``python -m``
put the working folder first on ``sys.path``: a folder there with the same name would be imported
in our place, with errors that explain nothing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("collectors", "dashboard", "loadgen", "reference_server", "scenarios", "sla")


def hidden_packages(home: Path | None = None) -> Iterator[str]:
    """One sentence for each of our packages that something else hides.

    Args:
        home: folder that holds our packages; found from this file by default.
    """
    home = home or Path(__file__).resolve().parent.parent
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        places = list(spec.submodule_search_locations or ()) if spec else []
        if home / name in [Path(place).resolve() for place in places]:
            continue
        found = places[0] if places else (spec.origin if spec else None)
        yield (
            f"Streamgauge's package {name!r} is hidden by {found}; "
            "rename that folder or start from another working folder."
            if found
            else f"Streamgauge's package {name!r} is missing; install Streamgauge anew."
        )
