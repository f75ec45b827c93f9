"""What Streamgauge adds to Locust: options, recording, an honest end, rows and charts of ours.

Locust asks listeners, so importing a scenario registers them (Locust parses the command line right
after it has imported the locustfile). Nothing else happens at import.

Who does what: a *load process* (the only one, or a worker) has a
:class:`~loadgen.session.LoadSession`; the process that *keeps* the run (the only one, or the
master) has a :class:`~loadgen.keeper.RunKeeper`. Workers send packed batches over Locust's channel.

Locust logs what a listener raises and goes on. What one of ours raises is our own failure: the run
is invalid and the process ends with exit code 4.
"""

from __future__ import annotations

import functools
import importlib.metadata
import logging
import os
import platform
import secrets
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

import gevent
import gevent.event
import psutil
from locust import events, stats
from locust.argument_parser import LocustArgumentParser
from locust.env import Environment
from locust.exception import (
    InterruptTaskSet,
    RescheduleTask,
    RescheduleTaskImmediately,
    StopTest,
    StopUser,
)
from locust.runners import MasterRunner, Runner, WorkerRunner

from collectors.batches import Batch, pack
from collectors.errors import CollectorsError
from collectors.records import RequestRecord
from collectors.runs import Run, new_run_id
from loadgen.client import now
from loadgen.dialects import from_spec
from loadgen.errors import LoadgenError, OptionError
from loadgen.keeper import PROGRESS_FD, RunKeeper
from loadgen.live import LiveFigures
from loadgen.mishaps import Kind, Mishaps, SwallowedExceptions, is_ours
from loadgen.options import OPTIONS, Settings, add_to_argparse, public_config, read_settings
from loadgen.preflight import look
from loadgen.prompts import prompts_hash
from loadgen.rows import StatsRows
from loadgen.session import LoadSession, RunInfo
from loadgen.ui import add_charts

log = logging.getLogger(__name__)

# Messages on Locust's channel.
RUN, BATCH, FINAL, SPENT, CUT, REFUSED = (
    f"streamgauge_{m}" for m in ("run", "batch", "final", "spent", "cut", "refused")
)
FINAL_WAIT_S = 10.0


class _NotGiven(int):
    """A number that stands for an option of Locust's that nobody gave."""


NOT_GIVEN = _NotGiven()


# Listeners raise these to steer Locust, which lets them pass.
_STEERING = (StopUser, StopTest, RescheduleTask, RescheduleTaskImmediately, InterruptTaskSet)


def _ours(listener: Callable[..., None]) -> Callable[..., None]:
    """A listener whose exceptions are our own failure, and not only a line in Locust's log."""

    @functools.wraps(listener)
    def guarded(self: LocustPlugin, *args: Any, **kwargs: Any) -> None:
        try:
            listener(self, *args, **kwargs)
        except _STEERING:
            raise
        except Exception as error:  # noqa: BLE001 told, and the run says so
            self.fail(error)

    return guarded


class LocustPlugin:
    """The plugin of one Locust process.

    Attributes:
        session: this process's load session while a run is on.
        live: figures of the run that is on, or was last, where a web UI shows them.
    """

    def __init__(self) -> None:
        self.session: LoadSession | None = None
        self.live: LiveFigures | None = None
        self._environment: Environment | None = None
        self._rows: StatsRows | None = None
        self._mishaps = Mishaps()
        self._keeper: RunKeeper | None = None
        self._info: RunInfo | None = None
        self._settings: Settings | None = None
        self._secrets: tuple[str, ...] = ()
        self._duration_s: float | None = None
        self._spent: set[str] = set()
        self._workers: set[str] = set()
        self._greenlets: list[gevent.Greenlet] = []
        self._closed = gevent.event.Event()
        self._closed.set()
        self._registered = False

    def register(self) -> None:
        """Listen to Locust; calling it again changes nothing."""
        if self._registered:
            return
        self._registered = True
        events.init_command_line_parser.add_listener(add_options)
        events.init.add_listener(self.on_init)
        events.test_start.add_listener(self.on_test_start)
        events.test_stopping.add_listener(self.on_test_stopping)
        events.spawning_complete.add_listener(self.on_spawning_complete)
        events.user_error.add_listener(self.on_user_error)
        events.worker_connect.add_listener(self.on_worker_connect)

    # -- before a run ------------------------------------------------------------------------

    def on_init(self, environment: Environment, runner: Runner, **_: Any) -> None:
        """Check the options, look at the endpoint, take over Locust's time limit."""
        try:
            self._set_up(environment, runner)
        except Exception:
            log.exception("Streamgauge failed before the run.")
            sys.exit(4)  # Locust would go on, or end with 1

    def _set_up(self, environment: Environment, runner: Runner) -> None:
        self._environment = environment
        self._rows = StatsRows(environment)
        SwallowedExceptions(self._mishaps).listen()
        self._hear_of_lost_greenlets()
        options = environment.parsed_options
        # Only now: Locust calls the latest listener first, and the runner, which has one of its own
        # that stops everything, has just been made.
        environment.events.quitting.add_listener(self.on_quitting)
        # After those of the locustfile, so that the run is still open when one of them raises.
        environment.events.test_stop.add_listener(self.on_test_stop)
        gevent.signal_handler(signal.SIGINT, _interrupt)
        if isinstance(runner, WorkerRunner):
            runner.register_message(RUN, self._on_run_message)
            runner.register_message(CUT, self._on_cut_message)
            return
        if isinstance(runner, MasterRunner):
            runner.register_message(BATCH, self._on_batch_message)
            runner.register_message(FINAL, self._on_final_message)
            runner.register_message(SPENT, self._on_spent_message)
            runner.register_message(REFUSED, self._on_refused_message)
        if environment.web_ui is not None:
            add_charts(environment.web_ui, lambda: self.live)
        if options is None or not options.headless:
            return
        if PROGRESS_FD in os.environ:  # somebody else shows how it went
            logging.getLogger("locust.stats_logger").disabled = True
        try:
            settings = self._read_settings()
            self._settings = look(settings)
        except LoadgenError as error:
            _leave(str(error))
        if options.run_time:
            # Locust counts from before the recorder is up, and on a master it cuts what is open;
            # the same limit is kept here from the run's own beginning, drain included.
            self._duration_s = float(options.run_time)
            options.run_time = None
            logging.getLogger("locust.main").addFilter(_holds_here)
        if options.ramp is not None and options.num_users:
            options.spawn_rate = float(options.num_users)  # users spread themselves, see RunInfo
            logging.getLogger("locust.runners").addFilter(_holds_here)

    def _read_settings(self) -> Settings:
        assert self._environment is not None
        return read_settings(self._environment.parsed_options, self._environment.host)

    # -- a run begins ------------------------------------------------------------------------

    @_ours
    def on_test_start(self, environment: Environment, **_: Any) -> None:
        """Begin a run; what is wrong now ends it with one sentence."""
        runner = environment.runner
        self._mishaps.clear()
        if isinstance(runner, WorkerRunner):
            self._start_worker(runner)
            return
        try:
            settings = self._settings or look(self._read_settings())
            self._begin(environment, settings)
        except (LoadgenError, CollectorsError) as error:
            self._refuse(environment, error)
        except Exception as error:
            self._refuse(environment, error)
            raise

    def _refuse(self, environment: Environment, error: Exception) -> None:
        environment.process_exit_code = getattr(error, "exit_code", 4)
        print(f"Error: {error}", file=sys.stderr)
        assert environment.runner is not None
        options = environment.parsed_options
        headless = options is not None and options.headless
        gevent.spawn(environment.runner.quit if headless else environment.runner.stop)

    def _begin(self, environment: Environment, settings: Settings) -> None:
        runner = environment.runner
        assert runner is not None
        seed = settings.seed if settings.seed is not None else secrets.randbits(32)
        run = self._new_run(environment, settings, seed)
        environment.stop_timeout = run.drain_s or 0.0
        keeper = RunKeeper(settings.db, run, is_watched=environment.web_ui is not None)
        self._start_recorder(keeper)
        run = keeper.run
        self._keeper = keeper
        self.live = keeper.live
        self._spent.clear()
        self._info = RunInfo(
            run_id=run.id,
            scenario=run.scenario,
            model=settings.endpoint.model,
            dialect=settings.endpoint.dialect.spec(),
            seed=seed,
            began_mono_s=run.began_mono_s,
            began_wall_s=run.began_wall_s,
            boot_id=run.boot_id,
            requests=settings.requests,
            ramp_s=_phase_span_s(environment, settings),
            salt=keeper.salt,
        )
        self._secrets = settings.endpoint.secrets
        if isinstance(runner, MasterRunner):
            self._workers = {c.id for c in runner.clients.ready}
            for client_id in self._workers:
                self._tell_worker(runner, client_id, max(1, len(self._workers)))
        else:
            self.session = self._open_session(settings, self._info, "local", keeper.take)
        self._greenlets = [gevent.spawn(self._follow, keeper)]
        if self._duration_s is not None:
            self._greenlets.append(gevent.spawn_later(self._duration_s, self._stop_as_planned))

    def _start_recorder(self, keeper: RunKeeper) -> None:
        """Start it in a greenlet of its own: Stop in the web UI kills the one that starts a run."""
        starter = gevent.spawn(_attempt, keeper.begin)
        try:
            error = starter.get()
        except gevent.GreenletExit:
            if starter.get() is None:
                keeper.interrupted = True
                keeper.finish()
            raise
        if error is not None:
            raise error

    def _new_run(self, environment: Environment, settings: Settings, seed: int) -> Run:
        options = environment.parsed_options
        assert environment.runner is not None
        scenario = _scenario_name(environment)
        users = getattr(environment.runner, "target_user_count", None) or None
        wall_s, mono_s = time.time(), now()
        return Run(
            id=new_run_id(wall_s),
            name=settings.run_name or scenario,
            scenario=scenario,
            target=settings.endpoint.target.url,
            model=settings.endpoint.model or None,
            api=settings.endpoint.api,
            began_wall_s=wall_s,
            began_mono_s=mono_s,
            boot_id=boot_id(),
            loop="closed",
            users=users,
            duration_s=self._duration_s,
            ramp_s=_ramp_s(environment, settings),
            warmup_s=settings.warmup_s,
            drain_s=_drain_s(environment, settings),
            labels=dict(settings.labels),
            config={
                **public_config(settings),
                "seed": seed,
                "users": users,
                "spawn_rate": getattr(options, "spawn_rate", None),
                "processes": getattr(options, "processes", None),
            },
            versions=versions(),
            gpu_hour_price_usd=settings.gpu_hour_price_usd,
            gpus=settings.gpus,
            prompts_hash=prompts_hash(seed, scenario, settings.input_tokens),
            notes=settings.route.notes,
        )

    def _open_session(
        self, settings: Settings, info: RunInfo, worker: str, deliver: Any
    ) -> LoadSession:
        return LoadSession(
            settings,
            info,
            worker=worker,
            began_at=info.began_at(boot_id()),
            deliver=deliver,
            on_record=self._on_record,
            on_batch=self._on_batch,
            on_spent=self._on_spent,
            on_failure=self.fail,
        )

    def _follow(self, keeper: RunKeeper) -> None:
        while True:
            gevent.sleep(0.5)
            self._look_on(keeper)

    @_ours
    def _look_on(self, keeper: RunKeeper) -> None:
        keeper.show_progress(self._on_reader_gone)

    def _on_reader_gone(self) -> None:
        """The process that started this one is gone, and nobody is left to stop the load."""
        if self._keeper is not None:
            self._keeper.interrupted = True
        gevent.spawn(self._stop_as_planned)

    # -- what happens in it --------------------------------------------------------------------

    @_ours
    def _on_record(self, record: RequestRecord) -> None:
        assert self._rows is not None
        self._rows.fire(record)

    @_ours
    def _on_batch(self, records: list[RequestRecord]) -> None:
        assert self._rows is not None
        self._rows.log(records)

    @_ours
    def on_user_error(self, exception: Exception, **_: Any) -> None:
        """A task raised, or we did in it; Locust logs it and the user goes on."""
        if is_ours(exception):
            self.fail(exception)
        else:
            self._mishaps.note(Kind.TASK, exception)

    @_ours
    def on_spawning_complete(self, user_count: int, **_: Any) -> None:
        """All users asked for are there, at first or after the number was edited."""
        if self._keeper is not None:
            self._keeper.users_are(user_count)

    def _hear_of_lost_greenlets(self) -> None:
        """What ends a greenlet of ours, or a callback of ours in gevent's hub, is a failure too.

        Gevent prints it and goes on; its hub is made to have this method replaced.
        """
        hub = gevent.get_hub()
        show = hub.handle_error

        def handle_error(context: Any, kind: Any, value: Any, trace: Any) -> None:
            show(context, kind, value, trace)
            if isinstance(value, Exception) and is_ours(value):
                self.fail(value)

        hub.handle_error = handle_error

    def fail(self, error: BaseException) -> None:
        """Something of ours raised where nobody waits for it: say so, now and in the run."""
        log.error("Streamgauge itself failed.", exc_info=error)
        self._mishaps.note(Kind.OWN, error)
        if self._environment is not None:
            self._environment.process_exit_code = 4

    def _on_spent(self) -> None:
        """This process has asked all it may."""
        assert self._environment is not None
        runner = self._environment.runner
        if isinstance(runner, WorkerRunner):
            runner.send_message(SPENT, {})
        else:
            self._stop_as_planned()

    # -- a run ends --------------------------------------------------------------------------

    def _stop_as_planned(self) -> None:
        """Stop as asked: no more requests, then the drain, then the end."""
        assert self._environment is not None
        runner = self._environment.runner
        options = self._environment.parsed_options
        if runner is None or self._keeper is None:
            return
        runner.stop()
        if options is not None and options.headless:
            runner.quit()

    @_ours
    def on_test_stopping(self, **_: Any) -> None:
        """No more requests become due."""
        if self.session is not None:
            self.session.stopping = True
        if self._keeper is not None:
            self._keeper.stop()

    @_ours
    def on_test_stop(self, environment: Environment, **_: Any) -> None:
        """Every user is gone: hand on the rest and close the run."""
        runner = environment.runner
        session, self.session = self.session, None
        health = session.close() if session is not None else None
        if isinstance(runner, WorkerRunner):
            if health is not None:
                _report_statistics(environment, runner)
                told = self._mishaps.told(self._secrets)
                last = {"worker": _worker_name(runner), "client": health, "mishaps": told}
                runner.send_message(FINAL, last)
            environment.stop_timeout = 0.0  # else Locust waits that long before it is ready again
            return
        if self._keeper is not None and self._closed.is_set():
            self._closed.clear()
            try:
                self._close_run(environment, self._keeper, health)
            finally:
                self._keeper = None
                self._closed.set()

    def _close_run(
        self, environment: Environment, keeper: RunKeeper, health: dict[str, Any] | None
    ) -> None:
        gevent.killall([g for g in self._greenlets if g is not gevent.getcurrent()], block=False)
        lost = 0
        if isinstance(environment.runner, MasterRunner):
            lost = self._await_finals(keeper)
        elif health is not None:
            keeper.finals["local"] = health
        keeper.mishaps.add(self._mishaps.told(self._secrets))
        if keeper.mishaps.has(Kind.OWN):
            environment.process_exit_code = 4
        if not keeper.finish(workers_lost=lost):
            log.error("Not every record of run %s could be written to the database.", keeper.run.id)
        if getattr(environment.parsed_options, "csv_prefix", None):
            # Locust writes its CSV files once a second, and not once more at its end.
            gevent.sleep(stats.CSV_STATS_INTERVAL_SEC + 0.1)

    def _await_finals(self, keeper: RunKeeper) -> int:
        """Wait for the last batch of each worker; how many stay silent."""
        deadline = now() + FINAL_WAIT_S
        while len(keeper.finals) < len(self._workers) and now() < deadline:
            gevent.sleep(0.05)
        return max(0, len(self._workers) - len(keeper.finals))

    @_ours
    def on_quitting(self, environment: Environment, **_: Any) -> None:
        """Locust leaves while a run is on: Ctrl-C, SIGTERM or a closed web UI."""
        runner = environment.runner
        if runner is None or (self._keeper is None and self.session is None):
            return
        if not self._closed.is_set():  # the run is over and being closed
            self._closed.wait()
            return
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the end is under way; it is short
        environment.stop_timeout = 0.0
        if self._keeper is not None:
            self._keeper.interrupted = True
        if isinstance(runner, MasterRunner):
            runner.send_message(CUT, {})
        runner.stop()

    # -- between master and workers ----------------------------------------------------------

    @_ours
    def on_worker_connect(self, client_id: str, **_: Any) -> None:
        """A worker that joins a run under way learns of it before it is told to start users."""
        runner = self._environment.runner if self._environment else None
        if isinstance(runner, MasterRunner) and self._keeper is not None:
            self._workers.add(client_id)
            self._tell_worker(runner, client_id, len(self._workers))

    def _tell_worker(self, runner: MasterRunner, client_id: str, workers: int) -> None:
        assert self._info is not None
        requests = self._info.requests
        if requests is not None:
            index = runner.get_worker_index(client_id) % workers
            requests = (requests + workers - 1 - index) // workers
        runner.send_message(RUN, asdict(replace(self._info, requests=requests)), client_id)

    @_ours
    def _on_run_message(self, msg: Any, **_: Any) -> None:
        self._info = RunInfo(**msg.data)

    def _start_worker(self, runner: WorkerRunner) -> None:
        if self._info is None:
            log.error(
                "This worker was told to start before it was told of the run; it records nothing."
            )
            return
        try:
            settings = self._read_settings()
        except LoadgenError as error:  # what the master could do: a file or a variable is missing
            runner.send_message(REFUSED, {"worker": _worker_name(runner), "why": str(error)})
            return
        endpoint = replace(
            settings.endpoint, model=self._info.model, dialect=from_spec(self._info.dialect)
        )
        self._secrets = endpoint.secrets
        self.session = self._open_session(
            replace(settings, endpoint=endpoint),
            self._info,
            _worker_name(runner),
            lambda batch: self._send_batch(runner, batch),
        )

    @staticmethod
    def _send_batch(runner: WorkerRunner, batch: Batch) -> None:
        runner.send_message(BATCH, {"frame": pack(batch)})

    @_ours
    def _on_batch_message(self, msg: Any, **_: Any) -> None:
        if self._keeper is not None:
            self._keeper.take_frame(msg.data["frame"])

    @_ours
    def _on_final_message(self, msg: Any, **_: Any) -> None:
        if self._keeper is not None:
            self._keeper.finals[msg.data["worker"]] = msg.data["client"]
            self._keeper.mishaps.add(msg.data["mishaps"])

    @_ours
    def _on_spent_message(self, msg: Any, **_: Any) -> None:
        self._spent.add(msg.node_id)
        if self._spent >= self._workers:
            gevent.spawn(self._stop_as_planned)

    @_ours
    def _on_refused_message(self, environment: Environment, msg: Any, **_: Any) -> None:
        """A worker cannot take part; a run with fewer processes would be another one."""
        self._workers.discard(msg.node_id)  # nothing will come of it
        if self._keeper is not None:
            worker, why = msg.data["worker"], msg.data["why"]
            self._refuse(environment, OptionError(f"Worker {worker}: {why}"))

    @_ours
    def _on_cut_message(self, environment: Environment, **_: Any) -> None:
        environment.stop_timeout = 0.0


def add_options(parser: LocustArgumentParser) -> None:
    """Our options on Locust's command line and in its web UI."""
    for option, action in add_to_argparse(parser, OPTIONS):
        for name, value in _WEB_UI.items():  # what Locust's own add_argument sets; groups lack it
            setattr(action, name, value)
        action.include_in_web_ui = option.in_web_ui
    parser.set_defaults(stop_timeout=NOT_GIVEN)


_WEB_UI = {"is_secret": False, "is_required": False, "is_multiple": False}


def _interrupt() -> NoReturn:
    """Ctrl-C, raised in a greenlet of its own, from where gevent hands it to the main one.

    Python's own handler raises wherever the process happens to be: in a thread's last steps, where
    it is swallowed, or in the middle of reading a token.
    """
    raise KeyboardInterrupt


def _report_statistics(environment: Environment, runner: WorkerRunner) -> None:
    """Send Locust's statistics now: else the last seconds come when its files are written."""
    data: dict[str, Any] = {}
    environment.events.report_to_master.fire(client_id=runner.client_id, data=data)
    runner.send_message("stats", data)


def _attempt(action: Callable[[], None]) -> CollectorsError | None:
    """The error that ``action`` raised, as a value: gevent prints those that leave a greenlet."""
    try:
        action()
    except CollectorsError as error:
        return error
    return None


def boot_id() -> str | None:
    """Identifies this boot of this machine, and so its CLOCK_MONOTONIC; ``None`` off Linux."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return None


def versions() -> dict[str, str]:
    """Versions of what took part in a run."""
    found = {"python": platform.python_version()}
    for name in ("streamgauge", "locust", "gevent", "httptools"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _leave(sentence: str) -> NoReturn:
    """End before the run. Workers of --processes would wait for this process for a minute."""
    print(f"Error: {sentence}", file=sys.stderr)
    for worker in psutil.Process().children():
        worker.terminate()
    sys.exit(2)


def _holds_here(record: logging.LogRecord) -> bool:
    """False for hints of Locust's that are wrong once we keep the time and spread the users."""
    message = record.getMessage()
    return "No run time limit set" not in message and "spawn rate is very high" not in message


def _drain_s(environment: Environment, settings: Settings) -> float:
    """How long open requests may finish after the stop: Locust's own ``-s`` goes before ours."""
    asked = getattr(environment.parsed_options, "stop_timeout", NOT_GIVEN)
    return settings.drain_s if isinstance(asked, _NotGiven) else float(asked)


def _scenario_name(environment: Environment) -> str:
    path = getattr(environment.parsed_options, "locustfile", None) or "scenario"
    return Path(path.split(",")[0]).stem


def _worker_name(runner: WorkerRunner) -> str:
    return f"w{runner.worker_index}"


def _asked_ramp_s(environment: Environment) -> float:
    """Seconds over which Locust's own spawning starts the users."""
    runner, options = environment.runner, environment.parsed_options
    rate = getattr(runner, "spawn_rate", None) or getattr(options, "spawn_rate", None) or 1.0
    return float(getattr(runner, "target_user_count", 0) / rate)


def _phase_span_s(environment: Environment, settings: Settings) -> float:
    """Over how long the users of one burst spread their first requests.

    Locust starts users in bursts, one a second; measured together they would measure the accept
    queue. With ``--ramp`` all are started at once and spread over the whole ramp.
    """
    return settings.ramp_s if settings.ramp_s is not None else min(1.0, _asked_ramp_s(environment))


def _ramp_s(environment: Environment, settings: Settings) -> float:
    """Over how long the users that were asked for at first start."""
    if settings.ramp_s is not None:
        return settings.ramp_s
    return max(_asked_ramp_s(environment), _phase_span_s(environment, settings))


plugin = LocustPlugin()
