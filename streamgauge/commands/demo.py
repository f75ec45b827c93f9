"""``streamgauge demo``: the main job end to end, on this machine, without a GPU."""

from __future__ import annotations

import click

from streamgauge.commands._options import db_option

USERS = 16
DURATION_S = 30
VERDICTS = (0, 1, 3)  # exit codes of a check that could judge

# Shorter turns than the scenario's own, so that half a minute is enough for a verdict.
CHAT = ["--input-tokens", "80", "--max-tokens", "200", "--think-time", "500ms"]
# Answers of all lengths: with equal ones the users would fall into step.
SERVER = ["--eos-probability", "0.02"]
DASHBOARD_HINT = "See it in the browser:  streamgauge dashboard --db {db}"


@click.command()
@db_option
@click.option(
    "--duration",
    type=click.IntRange(min=5, max=600),
    default=DURATION_S,
    show_default=True,
    metavar="S",
    help="Seconds of load.",
)
def command(db: str, duration: int) -> int:
    """Start the simulator, chat with it for a while, print the report and the verdict.

    The run stays in the database. Exits 0 once a verdict is shown, whichever it is: this is a
    demonstration, and no gate.
    """
    from reference_server.process import SimProcess
    from streamgauge.commands.run import show_run
    from streamgauge.load import SCENARIOS, find_scenario, run_load
    from streamgauge.progress import ProgressLine

    with SimProcess(*SERVER) as server:
        click.echo(f"simulator on {server.url}; {USERS} users chat with it for {duration} s")
        options = ["--host", server.url, "-u", str(USERS), "-t", f"{duration}s"]
        options += ["--ramp", "2", "--run-name", "demo", "--db", db, "--gpu-hour-price", "2.5"]
        options += CHAT
        result = run_load(find_scenario("chat"), options, ProgressLine(duration_s=duration))
    if result.run_id is None:
        return 128 + result.signal if result.signal else result.exit_code or 4
    click.echo()
    code = show_run(db, result.run_id, SCENARIOS / "chat.sla.yaml", "text")
    click.echo(f"\n{DASHBOARD_HINT.format(db=db)}")
    if result.signal is not None:
        return 128 + result.signal
    return 0 if code in VERDICTS and result.kept else 4
