"""`sinks`, `drain`, `run` and `quarantine`: destinations of a store, what they get, and what they refused."""

from __future__ import annotations

import json
import re
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from repo import Settings, Store
from repo.repositories.attempts import Attempt
from repo.repositories.quarantine import Quarantined
from tests.cli.conftest import Command, MakeOnce
from tests.delivery.servers.scripted import Reply, Scripted
from tests.starter import PipedProcess

T0 = 1_714_521_600


def opened(command: Command) -> Store:
    return Store(command.folder, Settings(background=False))


@pytest.fixture
def site(command: Command, make_once: MakeOnce) -> Command:
    """The command, on a store with ten points, seqs 1 to 10, one a second, and two records."""

    def make() -> None:
        with Store(command.folder, Settings(background=False, engine="sqlite")) as store:
            store.points.insert_many([("PUMP-1", "flow", T0 + n, float(n)) for n in range(10)])
            for name in ("r1", "r2"):
                store.records.add(name, "gw", {"v": name})

    make_once("ten points", command.folder, make)
    return command


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    """A folder that takes deliveries."""
    folder = tmp_path / "stick"
    folder.mkdir()
    (folder / "holdfast-folder.json").touch()
    return folder


@pytest.mark.parametrize(
    "given",
    [
        ("--all-series", "--metric", "flow"),
        ("--no-rate", "--window", "08:00-18:00=0"),
        ("--no-max-backlog", "--max-backlog", "3d"),
    ],
)
def test_an_option_that_contradicts_another_one_is_named(site: Command, given: tuple[str, ...]) -> None:
    site("sinks", "add", "web", "https://host/in", "--from", "now")
    refused = site("sinks", "change", "web", *given, code=2).stderr
    assert f"{given[0]} contradicts" in refused
    assert given[1] in refused


@pytest.mark.parametrize(
    ("attempt", "shown"),
    [
        (Attempt(3, 9, 5, "c", "t", "live", 1, T0 * 1_000_000), "5 points, seqs 3 to 9 (live), 1 try since"),
        (Attempt(3, 9, 0, "c", "t", "backfill", 2, 0), "0 points, seqs 3 to 9 (backfill), 2 tries since"),
        (Attempt(0, 0, 1, "", "t", "records", 1, 0), "1 record, 1 try since"),
        (
            Attempt(4, 4, 1, "c", "t", "live", 1, 0).without_items(),
            "a batch without items, after a refused one (live), 1 try since",
        ),
        (
            Attempt(0, 0, 1, "", "t", "records", 1, 0).without_items(),
            "a batch without items, after a refused one (records), 1 try since",
        ),
    ],
)
def test_a_batch_on_its_way_is_shown_with_what_it_has(site: Command, attempt: Attempt, shown: str) -> None:
    with opened(site) as store:
        store.sinks.add("web", "https://host/in", start="beginning")
        store.sinks.delivery("web").begin(attempt)
    assert f"sending     {shown} " in site("sinks", "show", "web").stdout


def test_a_sink_is_added_shown_listed_and_changed(site: Command) -> None:
    added = site.json(
        *("sinks", "add", "web", "https://host/in", "--from", "2024-05-01T00:00:04Z", "--sensor", "PUMP-*"),
        *("--rate", "500kB/s", "--window", "08:00-18:00=0", "--tz", "Europe/Oslo", "--max-backlog", "30d"),
        *("--option", "format=json", "--secret", "token=env:TOKEN", "--share", 30),
    )
    assert added == site.json("sinks", "show", "web")
    assert [added] == site.json("sinks", "list")
    assert (added["kind"], added["confirmed_seq"], added["behind"], added["hold"]) == ("http", 4, 6, True)
    assert added["options"] == {"format": "json", "token": "env:TOKEN"}
    assert added["filter"] == {"sensor_id": "PUMP-*", "metric_name": None}
    assert added["rate"]["text"] == "500kB/s, 08:00-18:00=0B/s (Europe/Oslo)"
    assert added["lanes"] == {"two": True, "share": 0.3, "order": "oldest"}
    assert added["max_backlog"]["age_us"] == 30 * 86_400_000_000
    assert "token" not in added
    shown = site("sinks", "show", "web").stdout
    assert "token = env:TOKEN" in shown
    assert "points of sensor PUMP-*" in shown
    assert "until confirmed, at most 30 days" in shown
    changed = site.json(
        *(
            "sinks",
            "change",
            "web",
            "--no-rate",
            "--no-hold",
            "--newest-first",
            "--all-series",
            "--option",
            "format=",
        )
    )
    assert (changed["rate"], changed["hold"], changed["filter"]) == (None, False, None)
    assert changed["options"] == {"token": "env:TOKEN"}
    assert changed["lanes"] == {"two": True, "share": 0.3, "order": "newest"}
    assert changed["max_backlog"] == added["max_backlog"], "the others stay as they are"
    assert site.json("sinks", "change", "web", "--one-lane")["lanes"]["two"] is False
    assert "web   http  running       6" in site("sinks", "list").stdout
    assert "gets nothing yet" in site("sinks", "change", "web", "--metric", "nothing").stderr


def test_the_kinds_and_their_options_are_listed(site: Command) -> None:
    assert "kafka       kafka://, kafka+ssl://" in site("sinks", "kinds").stdout
    web = site("sinks", "kinds", "http").stdout
    assert "token             token for the header Authorization (secret)" in web
    assert "(gzip | zstd | none; default gzip)" in web
    assert "(true | false; default true)" in web
    assert site.json("sinks", "kinds", "http")["http"]["options"]["receipts"]["default"] is True
    assert "the kinds are folder, holdfast, http" in site("sinks", "kinds", "fax", code=2).stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["https://host/"], "Missing option '--from'"),
        (["https://host/", "--from", "soon"], "'soon' is not a time"),
        (["https://me:hunter2@host/", "--from", "now"], "a user or a password"),
        (["https://host/", "--from", "now", "--secret", "token=hunter2"], "token=env:NAME"),
        (["https://host/", "--from", "now", "--option", "token=hunter2"], "a secret is not stored"),
        (["https://host/", "--from", "now", "--option", "colour=red"], "no option 'colour'"),
        (["https://host/", "--from", "now", "--option", "format"], "KEY=VALUE"),
        (["https://host/", "--from", "now", "--rate", "500kb"], "write 500kB/s for bytes per second"),
        (["host", "--from", "now"], "must begin with one of"),
        (["file:relative", "--from", "now"], "must begin with one of"),
    ],
)
def test_what_is_wrong_about_a_sink_is_said_and_adds_nothing(
    site: Command, given: list[str], message: str
) -> None:
    refused = site("sinks", "add", "web", *given, code=2).stderr
    assert message in refused
    assert "hunter2" not in refused
    assert site.json("sinks", "list") == []


@pytest.mark.parametrize(
    ("option", "typed", "message"),
    [
        ("--rate", "fast", "'fast' is not a rate; write bytes per second, such as 500kB/s"),
        ("--window", "8-18", "'8-18' is not a window; write its start, end and limit: 08:00-18:00=100kB/s"),
        ("--window", "8:00-9:00=1", "'1' is not a rate; write bytes per second"),
        (
            "--max-backlog",
            "30",
            "'30' is not a duration; write numbers with units: us, ms, s, m or min, h, d, w, such",
        ),
        ("--max-backlog", "1mo", "'1mo' has months or years, whose length varies; write days"),
        ("--max-backlog-bytes", "lots", "bytes = 'lots': a number of bytes such as 500MB is expected"),
    ],
)
def test_a_wrong_amount_is_refused_with_its_option_and_the_forms(
    site: Command, option: str, typed: str, message: str
) -> None:
    add = ("sinks", "add", "web", "https://host/", "--from", "now")
    assert f"{option}: {message}" in site(*add, option, typed, code=2).stderr


def test_commands_that_lose_or_repeat_deliveries_ask_first(site: Command) -> None:
    site("sinks", "add", "web", "https://host/in", "--from", "beginning")
    questions = [
        (("sinks", "skip", "web"), "Never deliver 10 seqs to web?"),
        (("sinks", "confirm", "web", 3, 5), "Count the seqs 3 to 5 as delivered to web?"),
        (("sinks", "remove", "web"), "Remove web, which is 10 seqs behind?"),
        (("sinks", "rekey"), "Give this store a new id for its destinations?"),
        (("sinks", "rekey", "--restored"), "Raise the epoch of this store?"),
    ]
    before = (site.json("sinks", "list"), site.json("status")["store_id"])
    for arguments, question in questions:
        assert question in site(*arguments, stdin="n\n", code=1).stderr
        assert "add -y" in site(*arguments, code=2).stderr
        assert "add -y or --dry-run" in site("--json", *arguments, code=2).stderr
        site(*arguments, "--dry-run", "-y", code=2)
        site.json(*arguments, "--dry-run")
    assert (site.json("sinks", "list"), site.json("status")["store_id"]) == before
    site("sinks", "skip", "web", "--to", 4, "-y")
    assert site.json("sinks", "confirm", "web", 6, 7, "-y")["last_seq"] == 7
    assert site.json("sinks", "show", "web")["ranges"] == [[6, 7]]
    site("sinks", "confirm", "web", 8, stdin="y\n")
    assert site.json("sinks", "show", "web")["behind"] == 2
    assert "--from: 'soon' is not" in site("sinks", "replay", "web", "--from", "soon", code=2).stderr
    moved = site("sinks", "replay", "web", "--from", "2024-05-01T00:00:06Z", stdin="y\n")
    assert "Deliver 2 seqs to web again?" in moved.stderr
    assert "web gets seq 7 next, and is 4 seqs behind" in moved.stdout
    site("cleanup", "--end", "2024-05-01T00:00:03Z", "-y")
    again = site("sinks", "replay", "web", "--from", "beginning", "-y")
    assert "3 points of 2024-05-01T00:00:00" in again.stderr
    assert "cannot be delivered: they were dropped" in again.stderr
    assert site.json("sinks", "rekey", "--restored", "-y")["epoch"] == 2
    rekeyed = site.json("sinks", "rekey", "-y")
    assert rekeyed["former_store_id"] == before[1]
    assert site.json("status")["store_id"] == rekeyed["store_id"]
    assert site("sinks", "remove", "web", "-y").stdout == "web was removed; 8 seqs not delivered\n"
    assert "there is no sink 'web'" in site("sinks", "show", "web", code=2).stderr


def test_drain_delivers_everything_and_says_what_did_not_go(
    site: Command, stick: Path, tmp_path: Path
) -> None:
    assert "there is nothing to deliver to" in site("drain").stderr
    assert "--timeout: '5' is not a duration" in site("drain", "--timeout", 5, code=2).stderr
    site("sinks", "add", "stick", stick.as_uri(), "--from", "beginning")
    site("sinks", "add", "gone", (tmp_path / "nowhere").as_uri(), "--from", "beginning")
    assert site.json("drain", "stick") == [
        {"name": "stick", "delivered": 10, "refused": 0, "progress": "idle", "behind": 0, "error": None}
    ]
    refused = site("drain", "--timeout", "50ms", code=1)
    assert "stick: 0 items delivered" in refused.stdout
    assert "gone: 0 items delivered; 10 seqs behind: unreachable" in refused.stdout
    assert site.json("sinks", "show", "gone")["state"] == "failing"
    assert "unreachable since" in site("status").stdout
    site("sinks", "pause", "gone")
    assert site.json("drain", "gone", code=3)[0]["progress"] == "paused"
    assert "paused: `sinks resume` ends the pause" in site("drain", "gone", code=3).stdout
    assert site.json("sinks", "resume", "gone")["state"] == "running"
    assert "there is no sink 'nobody'" in site("drain", "nobody", code=2).stderr
    # A destination that cannot be used is reported, also if there is nothing to deliver at the moment.
    site("sinks", "add", "idle", (stick / "missing").as_uri(), "--from", "now")
    unreachable = site("drain", "idle", code=1)
    assert "there is no folder" in unreachable.stdout
    assert "there is no folder" not in unreachable.stderr, "said once"
    assert "there is no folder" in site("drain", "gone", "--timeout", "50ms", code=1).stderr, "said early"


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        (("sinks", "confirm", "web", 5, 3), "last_seq = 3"),
        (("sinks", "confirm", "web", 11), "seq 11 is not in use yet, the last one is 10"),
        (("sinks", "confirm", "web", 5, 11), "seq 11 is not in use yet"),
        (("sinks", "confirm", "nobody", 5), "there is no sink 'nobody'"),
        (("sinks", "skip", "nobody"), "there is no sink 'nobody'"),
        (("sinks", "replay", "web", "--from-seq", 11), "nothing was written since seq 11"),
        (("quarantine", "drop", 5), "no item 5"),
        (("quarantine", "drop", "--sink", "nobody"), "there is no sink 'nobody'"),
    ],
)
def test_commands_validate_before_they_ask(site: Command, wrong: tuple[object, ...], words: str) -> None:
    site("sinks", "add", "web", "https://host/in", "--from", "now")
    for given in ((), ("--dry-run",), ("-y",)):
        refused = site(*wrong, *given, code=2)
        assert words in refused.stderr
        assert "?" not in refused.stderr
    assert site.json("sinks", "show", "web")["confirmed_seq"] == 10


@pytest.mark.parametrize(
    "idle",
    [("sinks", "skip", "web"), ("quarantine", "drop", "--all"), ("quarantine", "drop", "--sink", "web")],
)
def test_commands_do_not_ask_if_nothing_would_change(site: Command, idle: tuple[str, ...]) -> None:
    site("sinks", "add", "web", "https://host/in", "--from", "now")
    said = site(*idle)
    assert said.stdout.startswith("0 ")
    assert "?" not in said.stderr


def test_reconcile_names_what_the_destination_lacks(site: Command, stick: Path) -> None:
    site("sinks", "add", "stick", stick.as_uri(), "--from", "beginning")
    site("sinks", "add", "web", "https://host/in", "--from", "now")
    site("drain", "stick")
    assert "stick: 10 confirmed points compared, nothing is missing" in site("reconcile", "stick").stdout
    site.write(*(("PUMP-1", "flow", T0 + 100 + n, 1.0) for n in range(5)))
    site("sinks", "confirm", "stick", 12, 13, "-y")
    lacking = site.json("reconcile", "stick", code=3)
    assert (lacking["missing"], lacking["ranges"], lacking["behind"]) == (2, [[12, 13]], 3)
    assert (
        "sinks replay stick --from-seq 12` delivers them again" in site("reconcile", "stick", code=3).stderr
    )
    site("sinks", "replay", "stick", "--from-seq", 12, "-y")
    site("drain", "stick")
    assert site.json("reconcile", "stick")["missing"] == 0
    assert "keeps no position" in site("reconcile", "web", code=2).stderr


def test_a_copy_that_delivers_is_noticed_and_continues_after_a_rekey(
    site: Command, stick: Path, tmp_path: Path
) -> None:
    site("sinks", "add", "stick", stick.as_uri(), "--from", "beginning")
    assert "ok: connected; it has nothing of this store yet" in site("sinks", "test", "stick").stdout
    copy = Command(tmp_path / "copy")
    shutil.copytree(site.folder, copy.folder)
    site("drain")
    assert site.json("sinks", "test", "stick") == {
        "name": "stick",
        "outcome": "ok",
        "found": "connected; it has the last batch",
        "exact": True,
    }
    copy.write(("PUMP-2", "flow", T0, 1.0))
    assert "sinks rekey" in copy("sinks", "test", "stick", code=3).stdout
    assert copy.json("drain", code=3)[0]["progress"] == "forked"
    assert [one["code"] for one in copy.json("status")["warnings"]] == ["sink-forked"]
    copy("sinks", "rekey", "-y")
    assert copy.json("drain")[0]["delivered"] == 11
    assert "nowhere" in site("sinks", "add", "far", (tmp_path / "nowhere").as_uri(), "--from", "now").stdout
    assert "unreachable" in site("sinks", "test", "far", code=1).stdout
    for path in stick.iterdir():  # another stick
        shutil.rmtree(path) if path.is_dir() else path.write_text("")
    assert "put the original one back and run `holdfast sinks resume stick`" in (
        site("sinks", "test", "stick", code=3).stdout
    )


def test_a_test_of_a_sink_says_what_was_not_checked_and_a_wrong_login_where_it_can(site: Command) -> None:
    with Scripted(lambda _: Reply(401, b"who is this?")) as server:
        site("sinks", "add", "web", server.url, "--from", "now")
        assert "ok: connected; it keeps no position" in (said := site("sinks", "test", "web").stdout)
        assert "accepts the login and the path is known only after a delivery" in said
        database = ("--option", "format=influx1", "--option", "database=site")
        site("sinks", "add", "influx", server.url, "--from", "now", *database)
        said = site("sinks", "test", "influx", code=3).stdout
        assert re.search("influx: halted: .* answered 401 .*; check the token, or the user", said)


def test_a_store_restored_from_a_copy_delivers_nothing_under_old_seqs_and_everything_after_a_rekey(
    site: Command, stick: Path, tmp_path: Path
) -> None:
    site("sinks", "add", "stick", stick.as_uri(), "--from", "beginning")
    site("drain")
    shutil.copytree(site.folder, tmp_path / "kept")
    site.write(("PUMP-1", "flow", T0 + 50, 50.0))
    assert site.json("drain")[0]["delivered"] == 1
    shutil.rmtree(site.folder)
    shutil.copytree(tmp_path / "kept", site.folder)
    site.write(*(("PUMP-1", "flow", T0 + 60 + n, 60.0) for n in range(3)))
    assert site.json("drain", code=3)[0]["progress"] == "forked"
    assert site.json("sinks", "show", "stick")["behind"] == 3, "nothing counts as delivered that was not"
    site("sinks", "rekey", "--restored", "-y")
    assert site.json("drain")[0] | {"name": ""} == {
        "name": "",
        "delivered": 3,
        "refused": 0,
        "progress": "idle",
        "behind": 0,
        "error": None,
    }
    assert site.json("reconcile", "stick")["missing"] == 0


def test_refused_items_are_listed_sent_again_exported_and_dropped(
    site: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site("sinks", "add", "web", "https://host/in", "--from", "beginning", "--records")
    with opened(site) as store:
        point = Quarantined(
            "web", "too wide", T0 * 1_000_000, seq=1, sensor_id="PUMP-1", metric_name="flow", value=0.5
        )
        [record, _] = store.sinks.delivery("web").records()
        bad = Quarantined(
            "web", "no topic", record.timestamp_us, record_id="r1", source="gw", data=record.data
        )
        delivery = store.sinks.delivery("web")
        delivery.confirm(Attempt(1, 10, 10, "c", "t", "live", 1, 5), [point, point._replace(seq=2), bad])
    listed = site.json("quarantine", "list", "web")
    assert [(one["id"], one.get("seq"), one.get("record_id"), one["reason"]) for one in listed] == [
        (1, 1, None, "too wide"),
        (2, 2, None, "too wide"),
        (3, None, "r1", "no topic"),
    ]
    assert "3 items in quarantine" in site("quarantine", "list").stdout
    assert site.json("quarantine", "show", 3) == listed[2]
    missing = site("quarantine", "show", 4, code=2).stderr
    assert "no item 4 in quarantine; `holdfast" in missing
    assert "quarantine list` lists the existing ones" in missing
    assert "reason      too wide" in site("quarantine", "show", 1).stdout
    monkeypatch.setenv("COLUMNS", "40")
    assert "…" not in site("quarantine", "list").stdout  # nothing is cut in a pipe
    assert "3 in quarantine" in site("status").stdout
    assert site.json("quarantine", "export", tmp_path / "refused.ndjson") == {
        "path": str(tmp_path / "refused.ndjson"),
        "items": 3,
    }
    assert [json.loads(line)["id"] for line in (tmp_path / "refused.ndjson").read_text().splitlines()] == [
        1,
        2,
        3,
    ]
    assert "is not a regular file" in site("quarantine", "export", ".", code=1).stderr
    assert site.json("quarantine", "retry", 1, 3) == {"points": 1, "records": 1, "replaced": 0}
    assert site.json("status")["records_pending"] == 2
    assert [one["retry"] for one in site.json("quarantine", "list")] == [True, False]
    assert "choose items" in site("quarantine", "drop", "-y", code=2).stderr
    assert "choose items" in site("quarantine", "drop", 1, "--all", "-y", code=2).stderr
    assert "no item 9" in site("quarantine", "drop", 1, 9, "-y", code=2).stderr
    assert site.json("quarantine", "drop", "--sink", "web", "--dry-run")["dropped"] == 2
    assert "Drop 2 items for good?" in site("quarantine", "drop", "--all", stdin="y\n").stderr
    assert site.json("quarantine", "list") == []
    listed = site("losses").stdout
    assert (
        "refused by the sink web and dropped from quarantine: too wide; the points are still stored" in listed
    )
    assert "lost nothing\n" in listed


RUN = "from repo.commands import main; main()"


def test_run_delivers_until_sigterm_and_claims_the_sink_until_then(
    site: Command, stick: Path, spawn: Callable[..., PipedProcess]
) -> None:
    site("sinks", "add", "stick", stick.as_uri(), "--from", "beginning")
    assert "for --receive" in site("run", "--token", "env:T", code=2).stderr
    assert "HOST:PORT" in site("run", "--receive", "8080", code=2).stderr
    assert "env:NAME" in site("run", "--receive", "0.0.0.0:0", "--token", "hunter2", code=2).stderr
    assert "needs tokens" in site("run", "--receive", "0.0.0.0:0", code=2).stderr
    process = spawn(RUN, "--store", site.folder, "run", "--receive", "127.0.0.1:0")
    said: list[str] = []
    while not any("delivering to stick" in line for line in said):
        said.append(process.stderr.readline())
        assert said[-1], said
    assert any("receiving at http+holdfast://127.0.0.1:" in line for line in said)
    assert str(process.pid) in site("drain", code=4).stderr
    assert str(process.pid) in site("sinks", "test", "stick", code=4).stderr
    site.write(("PUMP-2", "flow", T0, 1.0))
    while site.json("sinks", "show", "stick")["behind"]:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 0
    assert site.json("drain")[0]["delivered"] == 0
    assert site.json("sinks", "show", "stick")["sent_points"] == 11


def test_an_unknown_command_of_a_group_is_refused_with_what_was_meant(site: Command) -> None:
    for given, meant in (
        (("sinks", "rm"), "there is no command sinks 'rm'; did you mean 'remove'?"),
        (("sinks", "delete"), "did you mean 'remove'?"),
        (("sinks", "ls"), "did you mean 'list'?"),
        (("sinks", "pauze"), "did you mean 'pause'?"),
        (("sinks", "frobnicate"), "--help lists the commands"),
        (("quarantine", "rm"), "did you mean 'drop'?"),
    ):
        assert meant in site(*given, "x", code=2).stderr


def test_status_says_of_each_sink_in_which_state_it_is_and_since_when(site: Command) -> None:
    with opened(site) as store:
        for state in ("failing", "halted", "forked", "stopped", "paused"):
            store.sinks.add(state, "", start="now")
            if state == "paused":
                store.sinks.pause(state)
            else:
                store.sinks.delivery(state).failed(state, f"{state} by a test")
        store.sinks.add("closed", "", start="beginning", rate="0")
    shown = site("status")
    lines = {line.split()[1]: line for line in shown.stdout.splitlines() if line.startswith("sink ")}
    for name, words in (
        ("failing", r"unreachable since .* UTC: a running forwarder tries again.*\(failing by a test\)"),
        ("halted", r" halted since .* UTC: nothing is delivered until the cause is fixed"),
        ("forked", r" forked since .* UTC: nothing is sent until"),
        ("stopped", r" stopped since .* UTC: an error ended the delivery"),
        ("paused", r" paused since .* UTC: `sinks resume` ends the pause"),
        ("closed", r"10 behind, .*its rate is 0 now, so nothing is sent$"),
    ):
        assert re.search(words, lines[name]), lines[name]
    for name in ("halted", "forked", "stopped"):
        assert f"{name} by a test" in shown.stderr
    assert "the error says how" in site("sinks", "show", "forked").stdout


def test_another_stick_stops_the_sink_and_the_message_has_both_ways_out(
    site: Command, stick: Path, tmp_path: Path
) -> None:
    site("sinks", "add", "stick", stick.as_uri(), "--from", "beginning")
    site("drain")
    stick.rename(tmp_path / "first")
    stick.mkdir()
    (stick / "holdfast-folder.json").touch()
    site.write(("PUMP-1", "flow", T0 + 60, 60.0))
    [drained] = site.json("drain", code=3)
    assert drained["progress"] == "forked"
    for words in (
        "another stick or disk is there",
        "`holdfast sinks resume stick`",
        "`sinks replay --from-seq 11`",
    ):
        assert words in drained["error"]
    shutil.rmtree(stick)
    (tmp_path / "first").rename(stick)
    site("sinks", "resume", "stick")
    assert site.json("drain")[0]["delivered"] == 1
