"""The process that keeps a run: feeds the recorder, follows the progress, closes the run.

That is the only load process, or Locust's master where there are several.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

from collectors.batches import Batch, unpack
from collectors.feed import RecorderFeed
from collectors.runs import Run, RunStatus
from loadgen.client import now
from loadgen.live import LiveFigures
from loadgen.mishaps import Mishaps, sentences
from loadgen.progress import Progress, ProgressPipe
from loadgen.session import worst_health

PROGRESS_FD = "STREAMGAUGE_PROGRESS_FD"
MOST_CHANGES = 8


class RunKeeper:
    """Keeps one run from its first batch to its last.

    Args:
        db: database, as ``--db`` has it.
        run: the run; :meth:`begin` moves its instant 0 to when the recorder is ready.
        is_watched: keep :attr:`live`, for a page that follows the run.

    Attributes:
        finals: health of each load process that has told its last, by name.
        mishaps: what went wrong beside the requests, in every process that told.
        live: figures of the last seconds, where the run is watched.
    """

    def __init__(self, db: str, run: Run, *, is_watched: bool = False) -> None:
        self.run = run
        self.interrupted = False
        self.finals: dict[str, dict[str, Any]] = {}
        self.mishaps = Mishaps()
        self.live: LiveFigures | None = None
        self._is_watched = is_watched
        self._feed = RecorderFeed(db, run)
        self._stopped_at_s: float | None = None
        self._users = [(0.0, run.users)]
        self._progress = Progress(run.id, run.began_mono_s)
        fd = os.environ.get(PROGRESS_FD)
        self.pipe = ProgressPipe(int(fd)) if fd else None

    def begin(self) -> None:
        """Start the recorder.

        Raises:
            StoreError: the database cannot be used.
        """
        self._feed.start()
        wall_s, mono_s = time.time(), now()
        self.run = replace(self.run, began_wall_s=wall_s, began_mono_s=mono_s)
        self._feed.update_run(began_wall_s=wall_s, began_mono_s=mono_s)
        self._progress = Progress(self.run.id, self.run.began_mono_s)
        if self._is_watched:
            self.live = LiveFigures(self.run.id, self.run.name, mono_s)
        if self.pipe:
            self.pipe.write("begun", run_id=self.run.id)

    @property
    def salt(self) -> bytes | None:
        """The key of the database's hashes once the run has begun; a secret."""
        return self._feed.salt

    def take(self, batch: Batch, frame: bytes | None = None) -> None:
        """A batch of one load process; ``frame`` are its bytes where it came packed."""
        self._feed.put(frame if frame is not None else batch)
        self._progress.take(batch.worker, batch.records, len(batch.open))
        if self.live is not None:
            self.live.take(batch.records)

    def take_frame(self, frame: bytes) -> None:
        """A packed batch, as workers send it."""
        self.take(unpack(frame), frame)

    def show_progress(self, on_reader_gone: Callable[[], None]) -> None:
        """Tell whoever follows the run how it goes."""
        if self.live is not None:
            self.live.tick()
        if self.pipe is not None:
            self.pipe.write("progress", self._progress.snapshot())
            if self.pipe.broken:
                on_reader_gone()

    def users_are(self, count: int) -> None:
        """Every user that was asked for is there; their number may have been changed by hand."""
        if count != self._users[-1][1]:
            self._users.append((now() - self.run.began_mono_s, count))

    def stop(self) -> None:
        """No more requests become due from now on."""
        if self._stopped_at_s is None:
            self._stopped_at_s = now() - self.run.began_mono_s

    def finish(self, *, workers_lost: int = 0) -> bool:
        """Every load process is done: commit everything and close the run; True if all is kept.

        Args:
            workers_lost: load processes that left without their last batch.
        """
        self.stop()
        ended_at_s = now() - self.run.began_mono_s
        assert self._stopped_at_s is not None
        client = worst_health(self.finals)
        if workers_lost:
            client["workers_lost"] = workers_lost
        mishaps = self.mishaps.told()
        if mishaps:
            client["mishaps"] = mishaps
        notes = [*self._changes_of_users(), *sentences(mishaps)]
        if notes:
            self._feed.update_run(notes=notes)
        kept = self._feed.finish(
            status=RunStatus.INTERRUPTED if self.interrupted else RunStatus.COMPLETE,
            stopped_at_s=self._stopped_at_s,
            ended_at_s=max(ended_at_s, self._stopped_at_s),
            client=client,
        )
        if self.live is not None:
            self.live.end()
        if self.pipe is not None:
            self.pipe.write("ended", self._progress.snapshot(), kept=kept)
        return kept

    def _changes_of_users(self) -> Iterator[str]:
        """A note where the number of users is not the one that was asked for at first."""
        (_, first), *changes = self._users
        if not changes:
            return
        said = [f"{count} from {at_s:.1f} s" for at_s, count in changes[:MOST_CHANGES]]
        if len(changes) > MOST_CHANGES:
            said.append(f"and {len(changes) - MOST_CHANGES} changes more")
        yield f"Users were changed during the run: {first} at first, {', '.join(said)}."
