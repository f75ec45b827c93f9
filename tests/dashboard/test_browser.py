"""Both pages in a real browser, served by the real command from a recorded run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Locator, Page, expect, sync_playwright

from collectors.store import Store
from sla import judge_run
from tests.conftest import find
from tests.dashboard.recorded import gpu_samples, make_run, requests_of, write_run
from tests.dashboard.serving import Serving, dashboard

pytestmark = pytest.mark.needs("browser")

PATIENCE_MS = 30_000
ARGUMENTS = [
    "--no-sandbox",  # tests may run as root, in a container
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-dev-shm-usage",
    "--disable-sync",
    "--no-first-run",
]
SLA = "sla: patience\nobjectives:\n  ttft: p50 < 10 s\n  itl: p50 < 1 us\n"
CHARTS = 7
FAST = make_run("0run00000000fast", name="fast and not at all late", gpu_hour_price_usd=2.0, gpus=1)
SLOW = make_run(
    "0run00000000slow",
    name="slow, and on a branch of its own",
    began_wall_s=1.7e9,
    labels={"branch": "pr"},
)


@dataclass(frozen=True)
class Recorded:
    """A dashboard on two runs, and what the report says of the first."""

    serving: Serving
    report: dict[str, Any]


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Recorded]:
    """Two runs, served."""
    folder: Path = tmp_path_factory.mktemp("work")
    (folder / "patience.sla.yaml").write_text(SLA)
    db = folder / "runs.db"
    write_run(db, FAST, requests_of(FAST), gpu_samples(FAST))
    write_run(db, SLOW, requests_of(SLOW, slower=2))
    with Store.open(str(db), read_only=True) as store:
        report, _ = judge_run(store, FAST, folder / "patience.sla.yaml")
    with dashboard(folder, "--db", "runs.db", "--sla", "patience.sla.yaml") as serving:
        yield Recorded(serving, report)


@pytest.fixture(scope="module")
def context() -> Iterator[BrowserContext]:
    """Debian's Chromium, without a window."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find("browser"), args=ARGUMENTS)
        yield browser.new_context(viewport={"width": 1600, "height": 1000})
        browser.close()


@pytest.fixture
def page(context: BrowserContext, recorded: Recorded) -> Iterator[Page]:
    """A tab that asks nobody but the dashboard, and in which nothing throws."""
    found = context.new_page()
    found.set_default_timeout(PATIENCE_MS)
    asked: list[str] = []
    thrown: list[str] = []
    found.on("request", lambda request: asked.append(request.url))
    found.on("websocket", lambda socket: asked.append(socket.url))
    found.on("pageerror", lambda error: thrown.append(str(error)))
    yield found
    found.close()
    own = (recorded.serving.url, recorded.serving.url.replace("http", "ws", 1), "data:", "blob:")
    assert [url for url in asked if not url.startswith(own)] == []
    assert asked
    assert thrown == []


def open_page(page: Page, recorded: Recorded, path: str) -> None:
    """Go to a page and wait until its script has run."""
    page.goto(f"{recorded.serving.url}/{path}")
    settle(page)


def settle(page: Page) -> None:
    """Wait until the script has run and nothing on the page is a placeholder."""
    page.wait_for_selector('[data-testid="stApp"][data-test-script-state="notRunning"]')
    expect(page.locator('[data-testid="stSkeleton"]')).to_have_count(0, timeout=PATIENCE_MS)


def table_of_runs(page: Page) -> dict[str, dict[str, str]]:
    """The cells of the table of runs, by run and header, as screen readers get them."""
    page.wait_for_selector('[data-testid="stDataFrame"] canvas table td', state="attached")
    table = page.locator('[data-testid="stDataFrame"] canvas table').first
    headers = table.locator("th").all_text_contents()
    rows = [row.locator("td").all_text_contents() for row in table.locator("tbody tr").all()]
    found = [dict(zip(headers, row[-len(headers) :], strict=True)) for row in rows]
    return {row["name"]: row for row in found}


def tile(page: Page, label: str) -> Locator:
    """One metric of a run's page."""
    metrics = page.locator('[data-testid="stMetric"]')
    return metrics.filter(has=page.get_by_text(label, exact=True))


def test_the_runs_page_shows_the_reports_figures(page: Page, recorded: Recorded) -> None:
    """TTFT p95 with its n, ITL p95, tokens, errors, cost and verdict equal the report's."""
    open_page(page, recorded, "")
    rows = table_of_runs(page)
    assert list(rows) == [FAST.name, SLOW.name]
    report, row = recorded.report, rows[FAST.name]
    ttft, itl = report["latency"]["ttft_s"], report["latency"]["itl_s"]
    assert float(row["TTFT p95 (ms)"]) == pytest.approx(ttft["p95"] * 1000, rel=1e-6)
    assert int(row["TTFT n"]) == ttft["n"]
    assert float(row["ITL p95 (ms)"]) == pytest.approx(itl["p95"] * 1000, rel=1e-6)
    assert int(row["ITL n"]) == itl["n"]
    tokens_per_s = report["throughput"]["output_tokens_per_s"]
    assert float(row["output tokens/s"]) == pytest.approx(tokens_per_s, rel=1e-6)
    assert float(row["errors (%)"]) == pytest.approx(report["errors"]["ratio"] * 100, rel=1e-6)
    usd = report["cost"]["usd_per_request"]
    assert float(row["USD per request"]) == pytest.approx(usd, rel=1e-6)
    assert row["SLA"].endswith(report["judgement"]["verdict"])
    assert row["run is"].endswith(report["validity"]["verdict"])


def test_the_page_of_a_run_shows_the_reports_figures(page: Page, recorded: Recorded) -> None:
    """Tiles, objectives and latencies are those of the report's JSON."""
    open_page(page, recorded, f"run?run={FAST.id}")
    report = recorded.report
    expect(page.locator("h1")).to_have_text(FAST.name)
    for label, key in (("TTFT p95", "ttft_s"), ("ITL p95", "itl_s"), ("E2E p95", "e2e_s")):
        text = tile(page, label).inner_text()
        value, unit = re.findall(r"([\d.]+) (ms|s)\b", text)[0]
        seconds = float(value) * (0.001 if unit == "ms" else 1)
        assert seconds == pytest.approx(report["latency"][key]["p95"], rel=0.005)
        assert f"n = {report['latency'][key]['n']:,}" in text
    objectives = page.locator('[data-testid="stTable"]').nth(0).inner_text()
    assert "ttft_from_sent p50" in objectives
    assert "held" in objectives
    assert "broken" in objectives
    latencies = page.locator('[data-testid="stTable"]').nth(1).inner_text()
    for name in ("TTFT from sent", "ITL", "TPOT", "E2E from due", "send lag"):
        assert name in latencies
    expect(page.get_by_text("GPU-0001")).to_be_visible()


def test_charts_are_drawn_described_and_backed_by_a_table(page: Page, recorded: Recorded) -> None:
    """Seven SVG charts, each with axis titles, a sentence for those who cannot see, and figures."""
    open_page(page, recorded, f"run?run={FAST.id}")
    charts = page.locator('[data-testid="stPlotlyChart"]')
    expect(charts).to_have_count(CHARTS, timeout=PATIENCE_MS)
    for number in range(CHARTS):
        chart = charts.nth(number)
        chart.scroll_into_view_if_needed()
        expect(chart.locator(".xtitle")).to_contain_text("seconds since the run began")
        expect(chart.locator(".ytitle")).not_to_be_empty()
    expect(charts.nth(0).locator(".ytitle")).to_have_text("TTFT (ms)")
    expect(page.locator('[data-testid="stPlotlyChart"] canvas')).to_have_count(0)
    described = charts.nth(0).get_attribute("aria-label") or ""
    assert re.search(r"p50 and p95 of .* n = \d+ requests, in bins of 3 s", described)
    expect(page.get_by_text(described)).to_be_visible()
    page.get_by_text("The figures behind it").first.click()
    expect(page.locator('[data-testid="stDataFrame"]').first).to_be_visible()


@pytest.mark.slow
def test_a_ticked_run_opens_and_its_address_names_it(page: Page, recorded: Recorded) -> None:
    """And a click on a header sorts, without opening anything."""
    open_page(page, recorded, "")
    assert list(table_of_runs(page)) == [FAST.name, SLOW.name]
    grid = page.locator('[data-testid="stDataFrame"] .dvn-scroller').first
    grid.click(position={"x": 150, "y": 15})
    first = page.locator('[data-testid="stDataFrame"] canvas table tbody tr').first
    expect(first).to_contain_text(FAST.name)  # ascending by name; then descending
    grid.click(position={"x": 150, "y": 15})
    expect(first).to_contain_text(SLOW.name)
    grid.click(position={"x": 16, "y": 52})
    page.wait_for_url(re.compile(rf"/run\?run={SLOW.id}"))
    expect(page.locator("h1")).to_have_text(SLOW.name)


@pytest.mark.slow
def test_an_address_reproduces_the_view(page: Page, recorded: Recorded) -> None:
    """Search and SLA are in it."""
    open_page(page, recorded, "?q=branch%3Dpr&sla=none")
    rows = table_of_runs(page)
    assert list(rows) == [SLOW.name]
    assert rows[SLOW.name]["SLA"] == ""
    expect(page.get_by_role("textbox", name="Search")).to_have_value("branch=pr")


@pytest.mark.slow
def test_an_unknown_run_is_one_sentence(page: Page, recorded: Recorded) -> None:
    """No traceback on the page."""
    open_page(page, recorded, "run?run=nobody")
    expect(page.get_by_text("There is no run 'nobody'")).to_be_visible()
    expect(page.locator('[data-testid="stException"]')).to_have_count(0)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axes_can_be_read_in_either_theme(page: Page, recorded: Recorded, scheme: Any) -> None:
    """The page follows the reader's setting, and the charts follow the page."""
    page.emulate_media(color_scheme=scheme)
    open_page(page, recorded, f"run?run={FAST.id}")
    title = page.locator('[data-testid="stPlotlyChart"] .xtitle').first
    title.scroll_into_view_if_needed()
    ink = brightness(title.evaluate("e => getComputedStyle(e).fill"))
    app = page.locator('[data-testid="stApp"]')
    paper = brightness(app.evaluate("e => getComputedStyle(e).backgroundColor"))
    assert (paper > 0.9) if scheme == "light" else (paper < 0.2)
    assert abs(paper - ink) > 0.4


def brightness(colour: str) -> float:
    """Mean of the channels of an ``rgb()`` colour, between 0 and 1."""
    channels = [float(part) for part in re.findall(r"[\d.]+", colour)[:3]]
    return sum(channels) / 3 / 255
