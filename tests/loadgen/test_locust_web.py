"""Locust's web UI with ours in it: real processes, and a real browser for the charts."""

from __future__ import annotations

import re
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from playwright.sync_api import Page, expect, sync_playwright

from collectors.latency import SAMPLES
from collectors.runs import RunStatus
from collectors.stats import percentile
from collectors.store import Store
from reference_server.process import SimProcess
from tests.conftest import find
from tests.loadgen.locusts import (
    PATIENCE_S,
    answers,
    final_rows,
    free_port,
    has_records,
    run,
    start,
    truth_ids,
    wait_until,
    web_rows,
)

BROWSER_ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"]
PATIENCE_MS = 30_000
HALF_A_BUCKET = 0.0026  # how exact live figures are
SHOWN = 0.006  # three digits on the page, besides


@dataclass(frozen=True)
class Web:
    """A Locust with its web UI."""

    process: subprocess.Popen[str]
    url: str
    host: str
    db: Path

    def swarm(self, users: int) -> None:
        """Start a run, or edit the one that is on; wait until its statistics are those shown."""
        form = {"user_count": str(users), "spawn_rate": str(users), "host": self.host}
        assert httpx.post(f"{self.url}/swarm", data=form).json()["success"]
        wait_until(lambda: self.statistics()["state"] == "running")

    def stop(self) -> None:
        """Stop the run; wait until it has been closed and its last statistics are those shown."""
        assert httpx.post(f"{self.url}/stop", timeout=PATIENCE_S).json()["success"]
        wait_until(lambda: self.live()["run"]["ended"])
        wait_until(lambda: self.statistics()["state"] == "stopped")

    def live(self) -> dict[str, Any]:
        """What our tab is told."""
        found: dict[str, Any] = httpx.get(f"{self.url}/streamgauge/live").json()
        return found

    def statistics(self) -> dict[str, Any]:
        """Locust's statistics as its page shows them: the same answer for two seconds."""
        found: dict[str, Any] = httpx.get(f"{self.url}/stats/requests").json()
        return found

    def users(self) -> int:
        """How many users Locust says that there are."""
        return int(self.statistics()["user_count"])

    def requests(self) -> dict[str, int]:
        """Requests by row of Locust's statistics."""
        rows = self.statistics()["stats"]
        return {row["method"] or row["name"]: row["num_requests"] for row in rows}


@pytest.fixture(scope="module")
def metronome() -> Iterator[str]:
    """A quick source whose streams do not tick together."""
    with SimProcess("--metronome", "--ttft", "47ms", "--itl", "3ms", "--spread") as server:
        yield server.url


@contextmanager
def web(host: str, db: Path, *options: str) -> Iterator[Web]:
    """Locust with its web UI, ended by Ctrl-C."""
    port = free_port()
    place = ["--web-host", "127.0.0.1", "--web-port", str(port), "--max-tokens", "20"]
    process = start(host, db, *place, "--think-time", "0.1", *options)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_until(lambda: answers(url))
        yield Web(process, url, host, db)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=PATIENCE_S)
    finally:
        process.kill()
        process.communicate()


@pytest.mark.slow
def test_two_runs_of_one_process_share_nothing(metronome: str, tmp_path: Path) -> None:
    """Edit and Reset do not touch the records; a second run has users, rows and charts of its own.

    The edit is noted. Reset, and the start of another run, empty Locust's statistics only.
    """
    db = tmp_path / "runs.db"
    with web(metronome, db) as locust:
        locust.swarm(2)
        wait_until(lambda: has_records(db, 5))
        wait_until(lambda: ("TTFT", "chat") in web_rows(locust.url))
        locust.swarm(5)
        wait_until(lambda: locust.users() == 5)
        httpx.post(f"{locust.url}/stats/reset")
        locust.stop()
        before, shown_before = locust.live(), locust.requests()["Aggregated"]
        locust.swarm(1)
        wait_until(lambda: has_records(db, 3, runs=2))
        locust.stop()
        after, shown_after = locust.live(), locust.requests()
    with Store.open(str(db)) as store:
        second, first = store.runs()
        records = {r.id: list(store.records(r.id)) for r in (first, second)}
    assert [first.status, second.status] == [RunStatus.COMPLETE] * 2
    assert (first.users, second.users) == (2, 1)
    (note,) = [n for n in first.notes if "Users" in n]
    assert re.search(r"^Users were changed .*: 2 at first, 5 from \d+\.\d s\.$", note)
    assert "Users" not in "".join(second.notes)
    assert first.ramp_s == 1.0  # of the users asked for at first, whatever came later
    for found in (first, second):
        ids = {f"{r.run_id}-{r.worker}-{r.seq}" for r in records[found.id]}
        assert ids == truth_ids(metronome, found.id)
        assert sorted(r.seq for r in records[found.id]) == list(range(len(ids)))
    assert 0 < shown_before < len(records[first.id])
    assert shown_after["Aggregated"] == shown_after["E2E"] == len(records[second.id])
    assert (before["run"]["id"], after["run"]["id"]) == (first.id, second.id)
    assert after["points"][0]["at_s"] < before["points"][-1]["at_s"]


@pytest.mark.slow
def test_statistics_reset_after_the_ramp_lose_no_record(metronome: str, tmp_path: Path) -> None:
    """With --reset-stats Locust forgets the ramp; the run does not."""
    db = tmp_path / "runs.db"
    done = run(
        metronome, db, "-u", "4", "-r", "2", "-t", "4s", "--think-time", "0.1", "--reset-stats"
    )
    with Store.open(str(db)) as store:
        (found,) = store.runs()
        count = store.count(found.id)
    assert 0 < final_rows(done.stderr)["Aggregated"].requests < count
    assert len(truth_ids(metronome, found.id)) == count


@pytest.mark.slow
@pytest.mark.parametrize("options", [["--processes", "2"]])
def test_the_charts_of_several_processes_are_of_all_of_them(
    options: list[str], metronome: str, tmp_path: Path
) -> None:
    """The master draws what both workers saw: its last point counts every request of the run."""
    db = tmp_path / "runs.db"
    with web(metronome, db, *options) as locust:
        wait_until(lambda: httpx.get(f"{locust.url}/worker-count").json()["worker_count"] == 2)
        locust.swarm(4)
        wait_until(lambda: has_records(db, 20))
        locust.stop()
        told = locust.live()
    with Store.open(str(db)) as store:
        (found,) = store.runs()
        table = store.table(found.id)
    assert set(table.worker) == {"w0", "w1"}
    assert told["points"][-1]["ttft_n"] == len(table)
    agrees(told["points"][-1], table)


@pytest.mark.needs("browser")
@pytest.mark.slow
def test_a_browser_shows_the_streams_as_they_come(metronome: str, tmp_path: Path) -> None:
    """Four charts in a tab of Locust's own, with the record's figures, from this server alone."""
    db = tmp_path / "runs.db"
    asked: list[str] = []
    thrown: list[str] = []
    with web(metronome, db) as locust, sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=find("browser"), args=BROWSER_ARGUMENTS
        )
        page = browser.new_page(viewport={"width": 1500, "height": 1000})
        page.set_default_timeout(PATIENCE_MS)
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: thrown.append(str(error)))
        page.goto(locust.url)
        page.get_by_label("Number of users").fill("4")
        page.get_by_label("Ramp up").fill("4")
        page.get_by_role("button", name="Start").click()
        page.get_by_role("tab", name="Streaming").click()
        charts = page.locator("#streamgauge figure")
        expect(charts).to_have_count(4)
        line = page.locator('[data-line="itl_p95_s"]')
        expect(line).to_have_attribute("d", re.compile("M"), timeout=PATIENCE_MS)
        page.get_by_role("tab", name="Statistics").click()
        expect(page.get_by_text("chat (gaps)")).to_be_visible()
        expect(charts).to_have_count(0)
        page.get_by_role("tab", name="Streaming").click()
        locust.stop()
        expect(page.locator("[data-head]")).to_contain_text("ended", timeout=PATIENCE_MS)
        expect(line).to_have_attribute("d", re.compile("L"))  # from point to point by now
        with Store.open(str(db)) as store:
            (found,) = store.runs()
            table = store.table(found.id)
        assert found.ended_at_s is not None
        assert found.ended_at_s < 10.0  # so that one window holds the whole run
        agrees(locust.live()["points"][-1], table)
        for name in ("ttft", "itl", "e2e"):
            sample = SAMPLES[f"{name}_s"](table)
            assert sample is not None
            for q in ("p50", "p95"):
                whole = percentile(sample.ordered, float(q[1:]) / 100)
                assert shown(page, f"{name}_{q}_s") == pytest.approx(whole, rel=SHOWN)
        assert shown(page, "output_tokens_per_s") > 0
        described = charts.nth(0).locator("[data-plot]").get_attribute("aria-label") or ""
        assert re.match(r"TTFT, time to first token: p50 [\d.]+ ms, p95 [\d.]+ ms", described)
        for scheme, is_dark in (("light", False), ("dark", True)):
            page.emulate_media(color_scheme=scheme)  # type: ignore[arg-type] two of its literals
            page.reload()
            expect(charts).to_have_count(4)
            paper = brightness(page.locator("body"), "backgroundColor")
            ink = brightness(page.locator("#streamgauge text").first, "fill")
            assert (paper < 0.3) is is_dark
            assert abs(paper - ink) > 0.5
        browser.close()
    assert thrown == []
    assert asked
    assert [url for url in asked if not url.startswith((locust.url, "data:"))] == []


def agrees(point: dict[str, Any], table: Any) -> None:
    """A point over a whole run says what the report's definitions say of its records."""
    for name in ("ttft", "itl", "e2e"):
        sample = SAMPLES[f"{name}_s"](table)
        assert sample is not None
        assert point[f"{name}_n"] == len(sample)
        for q in (0.5, 0.95):
            whole = percentile(np.sort(sample.at_most), q)
            assert point[f"{name}_p{q * 100:g}_s"] == pytest.approx(whole, rel=HALF_A_BUCKET)


def shown(page: Page, key: str) -> float:
    """A figure on the page, in seconds or tokens/s."""
    text = page.locator(f'[data-value="{key}"]').inner_text()
    number, unit = text.replace(",", "").split(" ")
    return float(number) * {"ms": 0.001, "s": 1.0, "tokens/s": 1.0}[unit]


def brightness(element: Any, colour: str) -> float:
    """Mean of the channels of an element's colour, between 0 and 1."""
    found = element.evaluate(f"e => getComputedStyle(e).{colour}")
    channels = [float(part) for part in re.findall(r"[\d.]+", found)[:3]]
    return sum(channels) / 3 / 255
