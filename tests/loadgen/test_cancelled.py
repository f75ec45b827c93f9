"""What a scenario cuts on purpose, through Locust and over real sockets."""

from __future__ import annotations

from pathlib import Path

from collectors.figures import measure
from collectors.records import Outcome
from collectors.store import Store
from reference_server.process import SimProcess
from tests.loadgen.locusts import final_rows, only_run, run

IMPATIENT = """
import gevent
from locust import task

from loadgen.users import StreamUser


class Impatient(StreamUser):
    think_time_s = 0.0
    max_tokens = 100

    @task
    def leave(self):
        self.ask("patience", cancel_after_s=0.2)
        with gevent.Timeout(0.2, False):
            self.ask("limit")
        answer = gevent.spawn(self.ask, "killed")
        gevent.sleep(0.2)
        answer.kill()
        beside = gevent.spawn(self.ask, "beside")
        try:
            self.ask("open")
        finally:
            beside.kill()
"""


def test_a_scenarios_cut_is_told_from_the_end_of_the_run(tmp_path: Path) -> None:
    """Cut by patience, by a time limit or by a kill: cancelled; what the run's end cut: unfinished.

    Cancelled ones are neither ok nor failed, here and in Locust's statistics.
    """
    scenario, db = tmp_path / "impatient.py", tmp_path / "runs.db"
    scenario.write_text(IMPATIENT, encoding="utf-8")
    with SimProcess("--metronome", "--ttft", "50ms", "--itl", "300ms") as server:
        options = ["-u", "1", "-t", "2s", "--drain", "0", "--warmup", "0", "--ramp", "0"]
        done = run(server.url, db, *options, scenario=str(scenario))
    found = only_run(db)
    with Store.open(str(db)) as store:
        outcomes = {r.task: r.outcome for r in store.records(found.id)}
        figures = measure(found, store.table(found.id), [])
    cut, left = Outcome.CANCELLED, Outcome.UNFINISHED
    assert outcomes == {
        "patience": cut,
        "limit": cut,
        "killed": cut,
        "beside": left,
        "open": left,
    }, done.stderr
    assert (figures.window.cancelled, figures.window.failed, figures.window.ok) == (3, 0, 0)
    assert figures.errors is not None
    assert (figures.errors.value, figures.by_outcome) == (0.0, {})
    rows = final_rows(done.stderr)
    assert (rows["CANCELLED killed"].requests, rows["CANCELLED killed"].failures) == (1, 0)
