"""Which database and which SLA files the pages are about.

They travel in environment variables, since Streamlit runs the pages as a script of its own that
takes no arguments. A page's address names an SLA by its label alone, and only those offered here
can be picked, so that no link makes the server read a file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from collectors.runs import Run

DB = "STREAMGAUGE_DB"
SLA = "STREAMGAUGE_SLA"
NO_SLA = "none"
BY_SCENARIO = "each scenario's own"
_PATTERNS = ("*.sla.yaml", "*.sla.yml", "sla.yaml", "sla.yml")


@dataclass(frozen=True, slots=True)
class Agreement:
    """What runs are held to: one file for all, a folder with a file a scenario, or nothing.

    Attributes:
        label: its name on the page and in the address.
        path: the file or the folder; ``None`` for nothing.
    """

    label: str
    path: Path | None = None

    def file_for(self, run: Run) -> Path | None:
        """The SLA file for ``run``; ``None`` where there is none."""
        if self.path is None or not self.path.is_dir():
            return self.path
        file = self.path / f"{Path(run.scenario).stem}.sla.yaml"
        return file if file.is_file() else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What the dashboard was started with.

    Attributes:
        db: a path or a SQLAlchemy URL.
        sla: an SLA file, or a folder with ``SCENARIO.sla.yaml`` files; ``None`` where not given.
        folder: the working folder, whose SLA files are offered too.
    """

    db: str
    sla: Path | None = None
    folder: Path = Path()

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Settings:
        """As ``streamgauge dashboard`` left them."""
        sla = environment.get(SLA)
        return cls(db=environment.get(DB) or "streamgauge.db", sla=Path(sla) if sla else None)

    def agreements(self) -> list[Agreement]:
        """What can be picked, the default first."""
        found = [self._given()] if self.sla else []
        found.append(Agreement(NO_SLA))
        taken = {agreement.label for agreement in found}
        files = sorted({file for pattern in _PATTERNS for file in self.folder.glob(pattern)})
        return found + [Agreement(file.name, file) for file in files if file.name not in taken]

    def _given(self) -> Agreement:
        assert self.sla is not None
        return Agreement(BY_SCENARIO if self.sla.is_dir() else self.sla.name, self.sla)
