"""What must be true of the checkout as a whole."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from streamgauge.cli import COMMANDS

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("requirements/runtime.lock", "requirements/dev.lock")
# Written so that this file does not itself hold what it looks for.
REGISTRIES = re.compile(r"pypi[.]org|python[h]osted|download[.]pytorch")
INDEX_OPTION = re.compile(r"--(?:extra-)?(?:index-url|find-links)[ =]\s*(?:https?|file):")
MACHINE_PATH = re.compile(r"(?<![\w.*)}>/-])/(?:root|work|home|tmp|opt)/\w")


def tracked() -> list[tuple[str, str]]:
    """Path and text of every tracked text file."""
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=30
    )
    if listed.returncode != 0:
        pytest.skip("this is no git checkout")
    files = []
    for path in filter(None, listed.stdout.split("\0")):
        try:
            files.append((path, (ROOT / path).read_text()))
        except (UnicodeDecodeError, FileNotFoundError, IsADirectoryError):
            continue
    return files


def found(pattern: re.Pattern[str], text: str) -> list[str]:
    """The lines of a text that hold the pattern."""
    return [line.strip() for line in text.splitlines() if pattern.search(line)]


def test_no_tracked_file_names_a_registry() -> None:
    """Packages come from wherever pip is set up to look, here as in CI."""
    hits = [
        f"{path}: {line}"
        for path, text in tracked()
        for line in found(REGISTRIES, text) + found(INDEX_OPTION, text)
    ]
    assert hits == []


def test_no_tracked_file_holds_a_path_of_a_build_machine() -> None:
    """A checkout works wherever it lies."""
    assert [
        f"{path}: {line}" for path, text in tracked() for line in found(MACHINE_PATH, text)
    ] == []


@pytest.mark.parametrize(
    ("pattern", "text", "is_found"),
    [
        (REGISTRIES, "https://" + "pypi" + ".org/simple", True),
        (INDEX_OPTION, "--extra-index-url " + "https://example.com", True),
        (INDEX_OPTION, "PIP_EXTRA_INDEX_URL or --find-links, see pip", False),
        (MACHINE_PATH, "see " + "/root" + "/notes", True),
        (MACHINE_PATH, "open('" + "/home" + "/ann/x')", True),
        (MACHINE_PATH, "docs{0}/plan.md, {{tmp_path}}{0}/x, $HOME{0}/x".format("/work"), False),
    ],
)
def test_the_patterns_see_what_they_are_for(
    pattern: re.Pattern[str], text: str, is_found: bool
) -> None:
    """The two tests above could fail."""
    assert bool(found(pattern, text)) == is_found


def requirements(lock: str) -> dict[str, list[str]]:
    """Each pinned requirement of a lock, its marker included, with the options that follow it."""
    entries: dict[str, list[str]] = {}
    for line in (ROOT / lock).read_text().replace("\\\n", "").splitlines():
        requirement, *options = line.split(" --")
        entries[requirement.strip()] = [option.strip() for option in options]
    return entries


@pytest.mark.parametrize("lock", LOCKS)
def test_a_lock_pins_each_requirement_by_hash_and_names_no_address(lock: str) -> None:
    """What was tested is what is installed, from anywhere."""
    entries = requirements(lock)
    assert len(entries) > 50
    for requirement, options in entries.items():
        assert re.match(r"[\w.-]+(\[[\w,-]+\])?==[\w.!+-]+( ; .+)?$", requirement), requirement
        assert options, requirement
        assert all(re.fullmatch(r"hash=sha256:[0-9a-f]{64}", option) for option in options)
    assert "://" not in (ROOT / lock).read_text()


def test_the_two_locks_agree() -> None:
    """Whoever develops runs what users run; only on which machines may differ."""
    runtime, dev = (
        {
            requirement.split(" ; ")[0]: options
            for requirement, options in requirements(lock).items()
        }
        for lock in LOCKS
    )
    assert {name: dev.get(name) for name in runtime} == runtime


def targets() -> set[str]:
    """The targets of the Makefile."""
    return set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def make_commands(text: str) -> set[str]:
    """Targets that a document tells its reader to make: in backticks, or in a block of commands."""
    blocks = text.split("```")[1::2]
    commands = re.findall(r"`(make [^`\n]+)`", text)
    commands += [line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines()]
    words = [command.split("#")[0].split() for command in commands]
    return {
        target for word in words if word[:1] == ["make"] for target in word[1:] if "=" not in target
    }


def test_make_commands_in_documents_exist() -> None:
    """No document names a target that the Makefile lacks."""
    named = {path: make_commands(text) for path, text in tracked() if path.endswith(".md")}
    assert {"demo", "test"} <= named["README.md"]
    assert {path: names - targets() for path, names in named.items() if names - targets()} == {}


def test_the_readme_begins_with_the_two_commands() -> None:
    """A newcomer needs `make demo` and `make test`, and finds `make demo` first."""
    text = (ROOT / "README.md").read_text()
    assert 0 < text.find("make demo") < text.find("make test")


def test_ci_runs_what_the_readme_tells_people_to_run() -> None:
    """CI calls the same targets word for word, each on a line of its own."""
    script = (ROOT / ".ci/run").read_text()
    lines = [line.strip() for line in script.splitlines()]
    for command in ("make check", "make test", "make test-slow", "make demo"):
        assert command in lines


def test_ci_leaves_out_nothing_it_could_have() -> None:
    """What only some machines have must be there in CI."""
    assert "STREAMGAUGE_REQUIRE=browser,postgres,cc" in (ROOT / ".ci/run").read_text()


def test_each_command_is_a_module_and_each_module_a_command() -> None:
    """The table of commands and the folder of commands list the same names."""
    modules = {path.stem for path in (ROOT / "streamgauge" / "commands").glob("[a-z]*.py")}
    assert modules == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_explains_itself(name: str) -> None:
    """`--help` works, and warns of nothing."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "streamgauge", name, "--help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage:")


def test_decisions_are_numbered_without_gaps() -> None:
    """docs/adr counts 0001, 0002 and so on, one decision a number."""
    numbers = sorted(int(path.name[:4]) for path in (ROOT / "docs" / "adr").glob("*.md"))
    assert all(later - earlier == 1 for earlier, later in pairwise([0, *numbers]))
