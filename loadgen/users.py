"""Locust users that ask LLM endpoints. A scenario subclasses :class:`StreamUser`.

Importing this module registers the plugin with Locust, as a locustfile must do to have its options
on the command line.
"""

from __future__ import annotations

from typing import Any, ClassVar

import gevent
from locust import User
from locust.env import Environment
from locust.exception import StopUser

from collectors.records import RequestRecord
from loadgen.client import Ask, now
from loadgen.plugin import plugin
from loadgen.session import LoadSession

plugin.register()


class StreamUser(User):
    """One user in a closed loop: asks, waits for the answer, thinks, asks again.

    Attributes:
        input_tokens: the scenario's prompt length, unless ``--input-tokens`` says otherwise.
        max_tokens: the scenario's answer limit, unless ``--max-tokens`` says otherwise.
        think_time_s: the scenario's mean pause, unless ``--think-time`` says otherwise. Pauses are
            drawn evenly from half to one and a half times the mean, so that users do not fall into
            step.
    """

    abstract = True
    input_tokens: ClassVar[int] = 200
    max_tokens: ClassVar[int] = 128
    think_time_s: ClassVar[float] = 1.0

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        self._session: LoadSession | None = plugin.session
        self._due_at: float | None = None
        self._at_work = False

    def on_start(self) -> None:
        """Wait for this user's own place in the ramp."""
        if self._session is None:
            return  # the run was refused; the first task ends this user without a traceback
        self._at_work = True
        self._session.note_user(1)
        phase_s = self._session.next_user_phase_s()
        self._due_at = now() + phase_s
        gevent.sleep(phase_s)

    def on_stop(self) -> None:
        """This user is at work no more."""
        if self._session is not None and self._at_work:
            self._at_work = False
            self._session.note_user(-1)

    def wait_time(self) -> float:
        """Seconds of thought before the next request, which is due right after them."""
        session = self.session
        asked = session.settings.think_time_s
        mean_s = self.think_time_s if asked is None else asked
        pause_s = session.random.uniform(0.5, 1.5) * mean_s
        self._due_at = now() + pause_s
        return pause_s

    @property
    def session(self) -> LoadSession:
        """The load session of the run this user belongs to."""
        if self._session is None:
            raise StopUser
        return self._session

    def ask(
        self,
        task: str,
        prompt: str | list[dict[str, Any]] | None = None,
        *,
        max_tokens: int | None = None,
        cancel_after_s: float | None = None,
        **extra: Any,
    ) -> RequestRecord:
        """Ask the endpoint and wait for the whole answer.

        It was due when the think time ended, even where this process got round to it later. A
        scenario that ends the wait, by ``cancel_after_s``, by a ``gevent.Timeout`` around it or by
        killing a greenlet of its own that waits here, leaves a record that is cancelled.

        Args:
            task: what kind of request this is; a row in every table.
            prompt: text, or a list of chat messages; without it a synthetic prompt.
            max_tokens: answer limit, where this task has its own; ``--max-tokens`` wins.
            cancel_after_s: seconds after it was sent at which this user loses patience and leaves.
            extra: further fields of the request body.

        Raises:
            StopUser: the run takes no more requests.
        """
        session = self.session
        if not session.may_ask():
            raise StopUser
        due_at, self._due_at = self._due_at, None
        current = now()
        settings = session.settings
        return session.ask(
            Ask(
                task=task,
                prompt=self.prompt() if prompt is None else prompt,
                max_tokens=settings.max_tokens or max_tokens or self.max_tokens,
                cancel_after_s=cancel_after_s,
                extra={**settings.body_fields, **extra},
            ),
            current if due_at is None else min(due_at, current),
            is_cut=self._is_cut,
        )

    def _is_cut(self, error: BaseException) -> bool:
        """Whether the scenario ended a wait, and not Locust, which kills its users' greenlets."""
        if isinstance(error, gevent.Timeout):
            return True
        return gevent.getcurrent() is not self._greenlet and not self.session.stopping

    def prompt(self, tokens: int | None = None) -> str:
        """A synthetic prompt of about ``tokens`` tokens.

        ``--input-tokens`` wins; without either it is the scenario's own length.
        """
        session = self.session
        return session.prompts.make(session.settings.input_tokens or tokens or self.input_tokens)
