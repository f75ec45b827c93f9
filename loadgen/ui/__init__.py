"""A tab with charts in Locust's own web UI: TTFT, ITL, E2E and output tokens as a run goes.

Locust's pages come as one built bundle whose extension points take a tab and a table for it, but no
charts. So the tab is declared the way Locust documents it, and a script of ours, which asks nobody
but this server, draws in it. Only the process that serves the web UI has any of this: the only one,
or the master, through which all records go.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from flask import Response, request
from locust.web import WebUI

from loadgen.live import LiveFigures

TAB = {"key": "streamgauge", "title": "Streaming"}
SCRIPT = Path(__file__).with_name("charts.js")
PATH = "/streamgauge"
_LOCUSTS_PAGE = b"window.templateArgs"  # which its page for logging in has not
_TAG = b'<script type="module" src="./streamgauge/charts.js"></script></body>'


def add_charts(web_ui: WebUI, look: Callable[[], LiveFigures | None]) -> None:
    """Add the tab, its script and the figures it asks for; to be called before the UI starts.

    Args:
        web_ui: Locust's.
        look: the run to show; ``None`` before the first.
    """
    app = web_ui.app
    assert app is not None
    options = web_ui.environment.parsed_options
    base = (options.web_base_path if options else None) or ""
    tabs = web_ui.template_args.get("extended_tabs") or []
    web_ui.template_args["extended_tabs"] = [*tabs, TAB]

    def script() -> Response:
        return Response(SCRIPT.read_text(encoding="utf-8"), mimetype="text/javascript")

    def live() -> Response:
        after_s = request.args.get("after", -1.0, type=float)
        told = figures_after(look(), request.args.get("run"), after_s)
        return Response(orjson.dumps(told), mimetype="application/json")

    for name, view in (("charts.js", script), ("live", live)):
        guarded = web_ui.auth_required_if_enabled(view)
        app.add_url_rule(f"{base}{PATH}/{name}", f"streamgauge_{name}", guarded)
    app.after_request(_with_script)


def figures_after(live: LiveFigures | None, run_id: str | None, after_s: float) -> dict[str, Any]:
    """What the script is told.

    Args:
        live: the run to show, or ``None``.
        run_id: the run that the page shows now; where it is another, it gets all of the new one.
        after_s: the last point that the page has.
    """
    if live is None:
        return {"run": None, "points": []}
    points = live.points_after(after_s if run_id == live.run_id else -1.0)
    return {
        "run": {"id": live.run_id, "name": live.name, "ended": live.ended},
        "points": [{name: _plain(value) for name, value in p.items()} for p in points],
    }


def _plain(value: Any) -> Any:
    """A figure for JSON: infinity is a word, as in the report."""
    return "inf" if value == math.inf else value


def _with_script(response: Response) -> Response:
    """Locust's page with our script in it; anything else as it is."""
    if response.mimetype == "text/html" and not response.direct_passthrough:
        page = response.get_data()
        if _LOCUSTS_PAGE in page:
            response.set_data(page.replace(b"</body>", _TAG))
    return response
