"""What an application at level INFO reads in its log when a store opens."""

from __future__ import annotations

from pathlib import Path

from tests.conftest import RunPython

SCRIPT = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(name)s %(message)s", stream=sys.stdout)
from repo import Settings, Store
for _ in range(2):
    with Store(sys.argv[1], Settings(background=False, engine=sys.argv[2])) as store:
        store.points.insert("s", "m", 1.0)
        store.flush()
assert logging.getLogger("alembic").level == logging.NOTSET
"""


def test_opening_a_store_is_one_line_and_a_new_one_says_nothing_of_revisions(
    run_python: RunPython, tmp_path: Path, engine: str
) -> None:
    done = run_python(SCRIPT, tmp_path / "store", engine)
    assert done.stdout.splitlines() == [
        f"holdfast.store {what} the store in {tmp_path / 'store'} (schema 0004)"
        for what in ("created", "opened")
    ], done.stderr
