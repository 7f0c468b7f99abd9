"""`demo`: runs the demonstration and prints its result."""

from __future__ import annotations

from pathlib import Path

import click

from repo.commands.exits import Exit
from repo.commands.global_options import output_options
from repo.commands.output import print_json
from repo.commands.session import Session

__all__ = ["demo"]


@click.command()
@click.option("--seconds", type=float, default=8.0, show_default=True, help="How long the site writes.")
@click.option("--rate", type=float, default=10_000.0, show_default=True, help="Points per second.")
@click.option("--seed", type=int, help="Seed of the site's readings; random by default.")
@click.option(
    "--keep",
    metavar="FOLDER",
    type=click.Path(file_okay=False, path_type=Path),
    help="Keep both stores and the logs in this new or empty folder.",
)
@output_options
@click.pass_obj
def demo(session: Session, seconds: float, rate: float, seed: int | None, keep: Path | None) -> None:
    """Run a site through an outage and two kills, and verify the delivery.

    A writer fills a store while the link is down and is killed with SIGKILL. The link returns, new readings overtake
    the backlog, and the sender is killed between the receiver's answer and its confirmation. One reading is refused.
    Then the demo compares every point on both sides. It uses only the loopback interface and its own folder, not
    --store. The exit code is 1 if a check fails.

    \b
    JSON: {"ok", "seed", "rate", "engine", "checks": [{"what", "store",
    "receiver", "holds"}], "figures": {name with unit: number}, "events":
    [{"at_s", "what"}]}
    """
    import random
    from tempfile import TemporaryDirectory

    from repo.demo.report import event_line, heading, plot, table
    from repo.demo.scenario import Scenario

    def say(text: str) -> None:
        if not session.as_json:
            session.say(text)

    if seed is None:
        seed = random.randrange(10_000)  # noqa: S311  printed, so that a run can be repeated
    with TemporaryDirectory(prefix="holdfast-demo-") as temporary:
        scenario = Scenario(
            keep or Path(temporary),
            seconds=seconds,
            rate=rate,
            seed=seed,
            on_event=lambda at_s, what: say(event_line(at_s, what)),
        )
        say(heading(seed, rate))
        result = scenario.run()
    if session.as_json:
        print_json(result.as_dict())
    say(table(result))
    say("")
    say(plot(result))
    if keep is not None:
        say(f"\nKept in {keep}; inspect it with: holdfast --store {keep / 'store'} status")
    if not result.ok:
        raise click.exceptions.Exit(Exit.FAILED)
