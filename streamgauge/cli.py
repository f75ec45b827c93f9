"""The command ``streamgauge``: finds the command asked for, and turns errors into exit codes.

Commands are imported when they are asked for, so that ``streamgauge check`` needs neither Locust
nor Streamlit. Exit codes are stable; CI jobs match on them:
an error that the user can act on is 2, our own failure 4 and never 1, signals 130 and 143.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from typing import NoReturn

import click

from streamgauge.guard import hidden_packages

COMMANDS = {
    "demo": "Run the main job end to end against the bundled simulator.",
    "run": "Run a load scenario against an endpoint and record it.",
    "runs": "List the runs in the database.",
    "report": "Show one run's figures.",
    "export": "Write one run's requests to JSONL, CSV or Parquet.",
    "check": "Judge a run against an SLA file.",
    "dashboard": "Open the dashboard.",
    "doctor": "Ask an endpoint what it can do and what a run would measure.",
    "simulate": "Simulate a load on a fleet of GPUs, without waiting, and record it.",
    "fit": "Fit the simulator to recorded runs of a server.",
    "serve": "Start a server: the simulator, real vLLM, or any other.",
}
OWN_FAILURE = 4


class LazyGroup(click.Group):
    """A group whose commands are modules of ``streamgauge.commands``, imported on demand."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """Names in the order of the table above."""
        return list(COMMANDS)

    def get_command(
        self,
        ctx: click.Context,  # noqa: ARG002  # click's signature
        cmd_name: str,
    ) -> click.Command | None:
        """The command of that name, imported now."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"streamgauge.commands.{cmd_name}")
        command: click.Command = module.command
        return command

    def format_commands(
        self,
        ctx: click.Context,  # noqa: ARG002  # click's signature
        formatter: click.HelpFormatter,
    ) -> None:
        """The list of commands, without importing any."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="streamgauge")
def cli() -> None:
    """Load-test LLM endpoints and judge what their users felt."""


def main() -> NoReturn:
    """Run the command line and leave with its exit code."""
    for sentence in hidden_packages():
        click.echo(f"Error: {sentence}", err=True)
        sys.exit(2)
    try:
        code = cli.main(standalone_mode=False)
    except click.exceptions.Exit as exit_:
        code = exit_.exit_code
    except click.ClickException as error:
        error.show()
        code = 2  # click's own ClickException says 1, which is "an objective is broken" here
    except (click.Abort, KeyboardInterrupt):
        code = 128 + signal.SIGINT
    except BrokenPipeError:  # the reader (head, less) left; nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 0
    except Exception as error:  # noqa: BLE001  # the one place where everything is caught
        code = _explain(error)
    sys.exit(code if isinstance(code, int) else 0)


def _explain(error: Exception) -> int:
    """One sentence for an error the user can act on; a traceback only for our own failure."""
    code = getattr(error, "exit_code", None)
    if code is None or code == OWN_FAILURE:
        traceback.print_exception(error)
        click.echo(
            f"Error: Streamgauge itself failed ({type(error).__name__}); please report this.",
            err=True,
        )
        return OWN_FAILURE
    click.echo(f"Error: {error}", err=True)
    return int(code)
