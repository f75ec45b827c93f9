"""Who may import whom (DESIGN §1), and what stays light to import.

The graph is read from the sources, imports inside functions included, so that an arrow that is
only followed now and then is found too.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from collectors.batches import Batch
from collectors.store import Store
from tests.collectors.builders import make_request, make_run

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT: dict[str, set[str]] = {
    "collectors": set(),
    "loadgen": {"collectors", "sla"},
    "scenarios": {"loadgen"},
    "sla": {"collectors"},
    "dashboard": {"collectors", "sla"},
    "reference_server": set(),
    "streamgauge": {
        "collectors",
        "loadgen",
        "scenarios",
        "sla",
        "dashboard",
        "reference_server",
    },
}
OURS = {*MAY_IMPORT, "bench", "tests"}
HEAVY = ("locust", "gevent", "streamlit", "pandas", "plotly", "vllm", "torch")
# Everything that reads, measures or judges a run. The commands are imported on demand, so each
# that is not about sending load or drawing pages must be light by itself.
LIGHT_PACKAGES = ("collectors", "sla")
LIGHT_COMMANDS = ("runs", "report", "export", "check", "serve")


def sources(package: str) -> list[Path]:
    """The Python files of a package."""
    return sorted((ROOT / package).rglob("*.py"))


def module_name(file: Path) -> str:
    """Dotted name of a source file of ours."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(code: str) -> Iterator[tuple[int, str]]:
    """Line and dotted name of every absolute import, wherever in the code it stands."""
    for node in ast.walk(ast.parse(code)):
        match node:
            case ast.Import():
                yield from ((node.lineno, alias.name) for alias in node.names)
            case ast.ImportFrom(module=str(name), level=0):
                yield node.lineno, name
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield node.lineno, name


def forbidden(package: str, code: str) -> list[str]:
    """Imports of ours in a package's code that the table does not list."""
    allowed = MAY_IMPORT[package] | {package}
    return [
        f"line {line} imports {name}"
        for line, name in imported(code)
        if name.split(".")[0] in OURS - allowed
    ]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_every_import_is_an_arrow_of_the_design(package: str) -> None:
    """No module imports a package of ours that its own may not import."""
    assert sources(package)
    assert [
        f"{file.relative_to(ROOT)} {arrow}"
        for file in sources(package)
        for arrow in forbidden(package, file.read_text())
    ] == []


@pytest.mark.parametrize(
    "code",
    [
        "import loadgen",
        "import loadgen.wire as wire",
        "from sla import judge",
        "def late():\n    from dashboard.pages import run",
        "import importlib\nimportlib.import_module('streamgauge.cli')",
        "if False:\n    import tests.conftest",
    ],
)
def test_an_arrow_that_is_not_listed_is_found(code: str) -> None:
    """However an import is written, the walk sees it."""
    assert len(forbidden("collectors", code)) == 1


def test_imports_within_a_package_and_of_others_are_free() -> None:
    """Neither a relative import nor somebody else's package of a like name is an arrow."""
    code = "from . import records\nimport collectors.runs, slack, tests_of_others, json"
    assert forbidden("collectors", code) == []


def test_every_package_of_ours_is_in_the_table() -> None:
    """A new folder that can be imported must get its row."""
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages - {"tests", "bench"} == set(MAY_IMPORT)


def expect_light(modules: list[str]) -> None:
    """Import the modules in a clean interpreter and fail on the first that loads a heavy one."""
    code = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        f"    heavy = sorted(set({HEAVY!r}) & set(sys.modules))\n"
        "    if heavy: sys.exit(f'{name} loads {heavy}')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("package", LIGHT_PACKAGES)
def test_reading_and_judging_loads_nothing_heavy(package: str) -> None:
    """No module of the package loads Locust, gevent, Streamlit, pandas, Plotly or vLLM."""
    # Migrations are run by Alembic, which sets the stage for them; they cannot be imported.
    files = [file for file in sources(package) if "migrations" not in file.parts]
    expect_light([module_name(file) for file in files])


@pytest.mark.parametrize("name", LIGHT_COMMANDS)
def test_light_commands_load_nothing_heavy(name: str) -> None:
    """Nor does a command that only reads a database or starts a server."""
    expect_light(["streamgauge.cli", f"streamgauge.commands.{name}"])


def test_the_command_line_itself_loads_no_package_of_ours() -> None:
    """Each command brings what it needs; asking for help needs none of it."""
    others = sorted(set(MAY_IMPORT) - {"streamgauge"})
    code = f"import sys, streamgauge.cli; sys.exit(str(sorted(set({others}) & set(sys.modules))))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stderr.strip() == "[]"


def test_a_run_is_judged_where_the_heavy_packages_are_absent(tmp_path: Path) -> None:
    """A CI job needs no Locust, gevent, Streamlit or vLLM to report, export and check a run."""
    db = str(tmp_path / "runs.db")
    record_run(db)
    code = (
        "import sys\n"
        f"sys.modules.update(dict.fromkeys({HEAVY!r}))  # None there makes an import fail\n"
        "from streamgauge.cli import main; main()"
    )
    sla, out = str(ROOT / "scenarios" / "chat.sla.yaml"), str(tmp_path / "requests.jsonl")
    for words in (
        ["runs"],
        ["report", "last"],
        ["export", "last", "--to", out],
        ["check", "last", "--sla", sla],
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *words, "--db", db],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == 0, done.stderr


def record_run(db: str) -> None:
    """Four hundred good answers of one run, as the recorder would have written them."""
    run = make_run()
    records = [make_request(seq, seq / 4, worker="0") for seq in range(400)]
    with Store.open(db, create=True) as store:
        store.create_run(run)
        store.add_batch(
            run.id, Batch(worker="0", sequence=0, at_s=101.0, records=records, open=[], samples=[])
        )
