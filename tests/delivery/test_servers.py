"""A run of the tests says which servers were missing, and `make servers` installs them."""

from __future__ import annotations

from types import SimpleNamespace

from tests.conftest import ROOT, left_out
from tests.delivery.servers.install import PACKAGES, why_missing


def test_the_summary_names_what_was_skipped_for_lack_of_a_server() -> None:
    def skipped(why: object) -> SimpleNamespace:
        return SimpleNamespace(longrepr=why)

    reasons = [f"Skipped: {why_missing(program)}" for program in PACKAGES]
    reports = [skipped(("a file", 1, reason)) for reason in (*reasons, reasons[0])]
    reports += [skipped(("a file", 2, "Skipped: confluent-kafka is not installed"))]
    others = [skipped(("f", 1, "Skipped: needs DuckDB, which is not installed here")), skipped("x")]
    others += [skipped(("f", 1, "Skipped: only as root"))]
    assert left_out([*reports, *others]) == (
        "NOT PROVED HERE, tests skipped for lack of: confluent-kafka (1), influxd (1), mosquitto (2), postgres (1), "
        "victoria-metrics (1); `make servers` installs the servers"
    )
    assert left_out(others) == ""


def test_make_installs_every_server() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "\nservers:\n\t$(PYTHON) -m tests.delivery.servers.install\n" in makefile
