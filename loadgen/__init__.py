"""When to send, what to send, how it is sent and stamped; Locust users and plugin.

Importing the package does one thing: it notices, in time to say so, that a folder of the user's
hides a package that this one needs.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

_HOME = Path(__file__).resolve().parent.parent

for _name in ("collectors", "sla"):
    _spec = importlib.util.find_spec(_name)
    _places = [Path(p).resolve() for p in (_spec.submodule_search_locations or ())] if _spec else []
    if _HOME / _name not in _places:
        _by = _places[0] if _places else "a module of that name"
        raise SystemExit(
            f"Error: Streamgauge's package {_name!r} is hidden by {_by}; "
            "rename that folder or start from another working folder."
        )
