"""Our tab in Locust's web UI, asked over Flask."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
from flask.testing import FlaskClient
from locust.argument_parser import parse_options
from locust.env import Environment
from locust.web import WebUI

from loadgen.live import LiveFigures
from loadgen.ui import TAB, add_charts

SCRIPT = "./streamgauge/charts.js"


@pytest.fixture(autouse=True)
def _command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locust's web UI reads the words of its own command for its form."""
    monkeypatch.setattr(sys, "argv", ["locust"])


def web_ui(*words: str, **options: Any) -> WebUI:
    """Locust's web UI, not serving yet."""
    environment = Environment(parsed_options=parse_options(list(words)))
    environment.create_local_runner()
    return environment.create_web_ui("127.0.0.1", 0, delayed_start=True, **options)


def client_of(ui: WebUI) -> FlaskClient:
    """Asks it without a socket."""
    assert ui.app is not None
    return ui.app.test_client()


@pytest.fixture
def live() -> LiveFigures:
    """A run that has ended after one second."""
    found = LiveFigures("0run", "before", 10.0, lambda: 11.0)
    found.end()
    return found


def test_the_page_has_our_tab_and_our_script_and_keeps_others(live: LiveFigures) -> None:
    """A tab that a locustfile declared stands beside ours; nothing is asked from elsewhere."""
    ui = web_ui()
    ui.template_args["extended_tabs"] = [{"key": "theirs", "title": "Theirs"}]
    add_charts(ui, lambda: live)
    page = client_of(ui).get("/").text
    assert ui.template_args["extended_tabs"] == [{"key": "theirs", "title": "Theirs"}, TAB]
    assert page.count(SCRIPT) == 1
    assert '"title": "Streaming"' in page
    script = client_of(ui).get("/streamgauge/charts.js")
    assert script.mimetype == "text/javascript"
    assert "http://" not in script.text.replace("http://www.w3.org", "")
    assert "https://" not in script.text


def test_everything_is_under_the_base_path() -> None:
    """With --web-base-path the script's relative addresses lead where the routes are."""
    ui = web_ui("--web-base-path", "/load", web_base_path="/load")
    add_charts(ui, lambda: None)
    client = client_of(ui)
    assert SCRIPT in client.get("/load/").text
    assert client.get("/load/streamgauge/charts.js").status_code == 200
    assert client.get("/load/streamgauge/live").json == {"run": None, "points": []}
    assert client.get("/streamgauge/live").status_code == 404


def test_a_login_guards_them() -> None:
    """With --web-login neither figures nor script are given to strangers."""
    ui = web_ui("--web-login", web_login=True)
    assert ui.app is not None
    ui.app.secret_key = "for this test"
    ui.login_manager.user_loader(lambda _: None)
    add_charts(ui, lambda: None)
    client = client_of(ui)
    for path in ("live", "charts.js"):
        assert client.get(f"/streamgauge/{path}").status_code == 302
    assert SCRIPT not in client.get("/login").text


def test_a_page_gets_what_it_has_not_seen(live: LiveFigures) -> None:
    """Later points of the same run; all of another; infinity as a word, nothing as null."""
    point = {"at_s": 3.0, "ttft_p95_s": math.inf, "ttft_p50_s": None}
    live._points.append(point)
    ui = web_ui()
    add_charts(ui, lambda: live)
    client = client_of(ui)

    def ask(query: str) -> Any:
        return client.get(f"/streamgauge/live?{query}").json

    everything = ask("run=&after=-1")
    assert everything["run"] == {"id": "0run", "name": "before", "ended": True}
    assert [p["at_s"] for p in everything["points"]] == [1.0, 3.0]
    assert everything["points"][1] == {"at_s": 3.0, "ttft_p95_s": "inf", "ttft_p50_s": None}
    assert [p["at_s"] for p in ask("run=0run&after=1.0")["points"]] == [3.0]
    assert [p["at_s"] for p in ask("run=another&after=99")["points"]] == [1.0, 3.0]
    assert ask("run=0run&after=nonsense")["points"] == everything["points"]
