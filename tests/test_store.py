"""The credential files: what is read, what is kept, and what survives."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cliproxy as cp
from support.upstream import DEADLINE

POSIX = pytest.mark.skipif(os.name != "posix", reason="permission bits are POSIX")
CODEX = {"id_token": "i", "access_token": "a", "type": "codex", "email": "ann@example.com"}


def put(store: cp.Store, name: str, text: str, age: float = 60.0) -> Path:
    """Write a file as another program would, some time ago."""
    path = store.folder / name
    path.write_text(text, encoding="utf-8")
    moment = time.time() - age
    os.utime(path, (moment, moment))
    return path


@pytest.fixture
def reports() -> list[str]:
    return []


@pytest.fixture
def store(tmp_path: Path, reports: list[str]) -> cp.Store:
    return cp.Store(tmp_path / "auth", reports.append)


TIMES = [
    pytest.param("2026-02-09T18:40:11+08:00", 1770633611.0, id="offset"),
    pytest.param("2026-02-09T10:40:11Z", 1770633611.0, id="utc"),
    pytest.param("2026-02-09t10:40:11z", 1770633611.0, id="lower case"),
    pytest.param("2026-02-09T10:40:11.123456789Z", 1770633611.123456789, id="nanoseconds"),
    pytest.param("2026-02-09T05:10:11-0530", 1770633611.0, id="offset without colon"),
    pytest.param("2026-02-09 10:40:11", 1770633611.0, id="no zone"),
    pytest.param("2026-02-09 10:40", 1770633600.0, id="no seconds"),
    pytest.param(1770633611, 1770633611.0, id="seconds"),
    pytest.param(1770633611.5, 1770633611.5, id="fraction"),
    pytest.param(1770633611000, 1770633611.0, id="milliseconds"),
    pytest.param("1770633611", 1770633611.0, id="digits"),
    pytest.param("1770633611000", 1770633611.0, id="digits, ms"),
    pytest.param("2026-13-09T10:40:11Z", None, id="no such month"),
    pytest.param("soon", None, id="a word"),
    pytest.param("", None, id="empty"),
    pytest.param(True, None, id="a flag"),
    pytest.param(10**400, None, id="more digits than a number has"),
    pytest.param(0, None, id="zero"),
    pytest.param(-5, None, id="negative"),
    pytest.param(float("nan"), None, id="nan"),
    pytest.param("0001-01-01T00:00:00+23:00", None, id="before the calendar"),
    pytest.param(None, None, id="none"),
    pytest.param({"a": 1}, None, id="object"),
]


@pytest.mark.parametrize(("value", "moment"), TIMES)
def test_times(value: object, moment: float | None) -> None:
    assert cp.read_time(value) == pytest.approx(moment)


@pytest.mark.parametrize("key", cp.EXPIRY_KEYS)
@pytest.mark.parametrize("inside", [False, True])
def test_every_spelling_of_expiry(key: str, inside: bool) -> None:
    data: cp.Json = {key: "2026-02-09T10:40:11Z"}
    assert cp.expires_at({"token": data} if inside else data) == 1770633611.0


@pytest.mark.parametrize("key", cp.REFRESH_KEYS)
def test_every_spelling_of_the_last_refresh(key: str) -> None:
    assert cp.last_refresh({key: 1770633611}) == cp.last_refresh({"token": {key: 1770633611}})


def test_expiry_details() -> None:
    assert cp.expires_at({"token": "opaque"}) is None
    assert cp.expires_at({"expiry": "", "token": {"expiry": 1770633611}}) == 1770633611.0
    assert cp.expires_at({"expiry": 1770633612, "token": {"expiry": 1770633611}}) == 1770633612.0
    assert cp.expires_at({"timestamp": 1770633611000, "expires_in": 3599}) == 1770637210.0
    assert cp.expires_at({"timestamp": 1770633611000, "expires_in": 10**400}) is None


@pytest.mark.parametrize("stale", cp.EXPIRY_KEYS)
@pytest.mark.parametrize("fresh", cp.EXPIRY_KEYS)
def test_the_latest_of_several_ends_counts(stale: str, fresh: str) -> None:
    """Else a spelling that another program left behind would have every request renew the token."""
    data: cp.Json = {stale: 1770630000, "token": {fresh: 1770633611}}
    assert cp.expires_at(data) == 1770633611.0


@pytest.mark.skipif(not hasattr(time, "tzset"), reason="the zone cannot be set here")
@pytest.mark.parametrize(
    ("zone", "text"),
    [
        ("UTC0", "2026-02-09T10:40:11Z"),
        ("CST-8", "2026-02-09T18:40:11+08:00"),
        ("NST3:30", "2026-02-09T07:10:11-03:30"),
    ],
)
def test_times_are_written_as_go_writes_them(monkeypatch: pytest.MonkeyPatch, zone: str, text: str) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        assert cp.write_time(1770633611.7) == text
        assert cp.write_time(1770633611.7, utc=True) == "2026-02-09T10:40:11Z"
        assert cp.read_time(text) == 1770633611.0
    finally:
        monkeypatch.undo()
        time.tzset()


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 4_000_000_000))
def test_written_times_read_back(moment: int) -> None:
    assert cp.read_time(cp.write_time(moment)) == cp.read_time(cp.write_time(moment, utc=True)) == moment


LAYOUTS = [
    pytest.param('{"type":"codex","a":1}', id="compact"),
    pytest.param('{"type":"codex","a":1}\n', id="compact, newline"),
    pytest.param('{\n  "type": "codex",\n  "a": 1\n}', id="two spaces"),
    pytest.param('{\n    "type": "codex",\n    "a": 1\n}\n', id="four spaces"),
    pytest.param('{\n\t"type": "codex",\n\t"a": 1\n}\n', id="tab"),
    pytest.param('{"type":"codex","a":1,"note":"J\u00fcrgen \u2028"}', id="not ASCII"),
    pytest.param('{"a":1.0,"b":12345678901234567890,"type":"codex"}', id="numbers"),
]


@pytest.mark.parametrize("text", LAYOUTS)
def test_a_merge_keeps_layout_and_order(store: cp.Store, text: str) -> None:
    path = put(store, "a.json", text)
    store.merge("a.json", {"a": 7})
    store.merge("a.json", {"a": json.loads(text)["a"]})
    assert path.read_text(encoding="utf-8") == text


def test_a_merge_keeps_what_others_wrote(store: cp.Store) -> None:
    store.create("a.json", {**CODEX, "token": {"scopes": ["x"], "access_token": "old"}})
    put(store, "a.json", json.dumps({**store.get("a.json").data, "note": "mine", "priority": 3}))
    merged = store.merge("a.json", {"token": {"access_token": "new"}, "email": None, "z": 1})
    expected = {**CODEX, "token": {"scopes": ["x"], "access_token": "new"}, "note": "mine"}
    del expected["email"]
    assert merged.data == {**expected, "priority": 3, "z": 1}
    assert list(merged.data)[-2:] == ["priority", "z"]
    assert store.get("a.json") == merged == store.credentials()[0]


def test_half_a_surrogate_pair_survives(store: cp.Store) -> None:
    put(store, "a.json", '{"type":"codex","note":"\\ud800"}')
    assert store.merge("a.json", {"a": 1}).data["note"] == store.get("a.json").data["note"] == "\ud800"


def test_a_new_file_is_laid_out_as_the_reference_does(store: cp.Store) -> None:
    store.create("a.json", {"type": "codex", "email": "J\u00fc"})
    assert (store.folder / "a.json").read_bytes() == '{"type":"codex","email":"J\u00fc"}\n'.encode()


def test_creating_over_a_file_keeps_its_other_keys(store: cp.Store) -> None:
    put(store, "a.json", '{\n  "prefix": "work",\n  "type": "codex",\n  "access_token": "1"\n}')
    store.create("a.json", {"access_token": "2", "type": "codex", "email": "e"})
    assert list(store.get("a.json").data.items()) == [
        ("prefix", "work"), ("type", "codex"), ("access_token", "2"), ("email", "e"),
    ]  # fmt: skip


def test_creating_over_a_damaged_file_keeps_it_aside(store: cp.Store) -> None:
    put(store, "a.json", '{"type":"co')
    store.create("a.json", CODEX)
    assert store.get("a.json").data == CODEX
    assert (store.folder / "a.json.damaged").read_text() == '{"type":"co'


@POSIX
def test_permissions(tmp_path: Path, reports: list[str]) -> None:
    store = cp.Store(tmp_path / "deep" / "auth", reports.append)
    store.create("a.json", CODEX)
    assert store.folder.stat().st_mode & 0o777 == 0o700
    assert not reports
    (store.folder / "a.json").chmod(0o644)
    store.merge("a.json", {"a": 1})
    assert (store.folder / "a.json").stat().st_mode & 0o777 == 0o600
    store.folder.chmod(0o755)
    cp.Store(store.folder, reports.append)
    assert "chmod 700" in reports[0]


def test_scan_sees_each_change_once(store: cp.Store) -> None:
    assert not store.scan()
    put(store, "b.json", '{"type":"claude"}')
    path = put(store, "a.json", '{"type":"codex"}')
    assert store.scan()
    assert [(c.name, c.type) for c in store.credentials()] == [("a.json", "codex"), ("b.json", "claude")]
    assert not store.scan()
    path.write_text('{"type":"kimi-"}')
    assert store.scan()
    assert store.credentials()[0].type == "kimi-"
    assert not store.scan()
    path.unlink()
    assert store.scan()
    assert [c.name for c in store.credentials()] == ["b.json"]


def test_an_edit_of_the_same_size_and_instant_is_seen(store: cp.Store) -> None:
    path = put(store, "a.json", '{"type":"codex"}', age=0)
    assert store.scan()
    status = path.stat()
    path.write_text('{"type":"xedoc"}')
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert store.scan()
    assert store.credentials()[0].type == "xedoc"


def test_our_own_writes_count_as_a_change_once(store: cp.Store) -> None:
    store.create("a.json", CODEX)
    assert store.credentials()[0].name == "a.json"
    assert store.scan()
    assert not store.scan()
    store.merge("a.json", {"note": "x"})
    assert store.scan()
    store.delete("a.json")
    assert not store.credentials()
    assert store.scan()
    assert not store.scan()


FOREIGN = [
    pytest.param('{"type":"codex"' + " " * 1_000_000 + "}", "damaged", id="huge"),
    pytest.param('{"type":"codex"', "damaged", id="cut"),
    pytest.param("", "damaged", id="empty"),
    pytest.param("\0\0\0\0", "damaged", id="zeros"),
    pytest.param('["type"]', "no `type`", id="a list"),
    pytest.param('{"type":7}', "no `type`", id="type is a number"),
    pytest.param('{"key":"AIza"}', "no `type`", id="no type"),
    pytest.param("[" * 100_000, "damaged", id="nested too deeply"),
]


@pytest.mark.parametrize(("text", "word"), FOREIGN)
def test_damaged_and_foreign_files_are_reported_once_and_left(
    store: cp.Store, reports: list[str], text: str, word: str
) -> None:
    path = put(store, "bad.json", text)
    put(store, "good.json", '{"type":"codex"}')
    assert store.scan()
    assert not store.scan()
    assert [c.name for c in store.credentials()] == ["good.json"]
    assert len(reports) == 1
    assert word in reports[0] == store.problems["bad.json"]
    assert path.read_text() == text
    put(store, "bad.json", '{"type":"codex"}', age=30)
    assert store.scan()
    assert len(store.credentials()) == 2
    assert not store.problems


def test_a_file_that_is_being_written_keeps_its_old_contents(store: cp.Store, reports: list[str]) -> None:
    path = put(store, "a.json", '{"type":"codex"}')
    store.scan()
    path.write_text('{"type":"cod')
    assert not store.scan()
    assert [c.type for c in store.credentials()] == ["codex"]
    put(store, "a.json", '{"type":"cod')
    assert store.scan()
    assert not store.credentials()
    assert "damaged" in reports[0]


def test_only_json_in_the_top_folder_counts(store: cp.Store) -> None:
    (store.folder / "deeper").mkdir()
    for name in ("deeper/a.json", ".a.json", "a.json.bak", "a.cds", "config.json", "x.oauth"):
        put(store, name, '{"type":"codex"}')
    (store.folder / "folder.json").mkdir()
    os.utime(store.folder / "folder.json", (1, 1))
    store.scan()
    assert not store.credentials()
    assert list(store.problems) == ["folder.json"]


def test_a_folder_that_went_away(store: cp.Store) -> None:
    store.folder.rmdir()
    with pytest.raises(cp.ProxyError, match="cannot read"):
        store.scan()
    with pytest.raises(cp.ProxyError, match="cannot write"):
        store.create("a.json", CODEX)


@pytest.mark.parametrize(
    "name", ["../a.json", "a/b.json", "a\\b.json", ".a.json", "a.txt", "", "c:a.json", "config.json"]
)
def test_names_that_are_refused(store: cp.Store, name: str) -> None:
    for call in (store.get, store.delete, lambda n: store.merge(n, {}), lambda n: store.create(n, CODEX)):
        with pytest.raises(cp.ProxyError, match="no name"):
            call(name)


def test_a_file_that_is_not_there(store: cp.Store) -> None:
    for call in (store.get, store.delete, lambda n: store.merge(n, {})):
        with pytest.raises(cp.ProxyError) as caught:
            call("a.json")
        assert caught.value.kind == "not_found"


@POSIX
def test_a_symbolic_link_is_written_through(store: cp.Store, tmp_path: Path) -> None:
    real = tmp_path / "real.json"
    real.write_text('{"type":"codex"}')
    (store.folder / "a.json").symlink_to(real)
    store.merge("a.json", {"a": 1})
    assert (store.folder / "a.json").is_symlink()
    assert json.loads(real.read_text()) == {"type": "codex", "a": 1}


def test_many_threads_lose_nothing(store: cp.Store) -> None:
    store.create("a.json", CODEX)
    jobs = [
        threading.Thread(target=lambda n=n: [store.merge("a.json", {f"k{n}-{i}": i}) for i in range(5)])
        for n in range(8)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert len(store.get("a.json").data) == len(CODEX) + 40


CHILD = """
import sys, cliproxy as cp
store, key, rounds = cp.Store(sys.argv[1]), sys.argv[2], int(sys.argv[3])
for number in range(1, rounds + 1):
    store.merge("a.json", {key: number, "pad": "x" * (number % 5) * 3000})
    print(number, flush=True)
"""


def child(store: cp.Store, key: str, rounds: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CHILD, str(store.folder), key, str(rounds)]
    environment = {**os.environ, "PYTHONPATH": str(Path(cp.__file__).parent)}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)


@pytest.mark.slow
def test_several_processes_lose_nothing(store: cp.Store) -> None:
    store.create("a.json", CODEX)
    children = [child(store, f"k{n}", 30) for n in range(3)]
    for process in children:
        process.communicate(timeout=DEADLINE)
    data = store.get("a.json").data
    assert [data[f"k{n}"] for n in range(3)] == [30, 30, 30]


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.0007, 0.0013, 0.0021, 0.0034, 0.0055])
def test_kill_at_any_instruction(store: cp.Store, delay: float) -> None:
    """The file stays whole, holds at least the last acknowledged write, and no lock is left."""
    store.create("a.json", {**CODEX, "keep": "me"})
    with child(store, "n", 1_000_000) as process:
        assert process.stdout
        for _ in range(5):
            acknowledged = int(process.stdout.readline())
        threading.Event().wait(delay)
        process.kill()
        acknowledged = int(process.stdout.read().split("\n")[-2:][0] or acknowledged)
    data = store.get("a.json").data
    assert data["n"] >= acknowledged
    assert data["keep"] == "me"
    store.scan()  # finishes or drops an unfinished write
    assert not list(store.folder.glob(".*.new"))
    assert store.merge("a.json", {"n": 0}).data["n"] == 0


@pytest.mark.parametrize(
    ("draft", "age", "access"),
    [
        pytest.param('{"type":"codex","access_token":"new"}', 0, "new", id="whole and newer: finished"),
        pytest.param('{"type":"codex","access_token":"ne', 0, "old", id="cut: dropped"),
        pytest.param('{"type":"codex","access_token":"older"}', 90, "old", id="older: dropped"),
    ],
)
def test_an_unfinished_write_is_settled(store: cp.Store, draft: str, age: float, access: str) -> None:
    put(store, "a.json", '{"type":"codex","access_token":"old"}', age=60)
    put(store, ".a.json.0123abcd.new", draft, age)
    put(store, ".config.json.0123abcd.new", "{}")
    put(store, ".gone.json.0123abcd.new", '{"type":"codex"}')
    others = ["b.json.1.new", "a.json.bak.new", ".a.json.mine.new"]
    for name in others:
        put(store, name, "somebody's own")
    store.scan()
    assert [name for name in others if not (store.folder / name).exists()] == []
    for name in others:
        (store.folder / name).unlink()
    assert [c.data["access_token"] for c in store.credentials()] == [access]
    assert [path.name for path in store.folder.glob(".*.new")] == [".config.json.0123abcd.new"]


def test_a_refresh_lock_outlives_the_deletion_of_its_file(store: cp.Store) -> None:
    store.create("a.json", CODEX)
    order: list[str] = []
    entered = threading.Event()

    def second() -> None:
        entered.set()
        with store.refreshing("a.json"):
            order.append("second")

    with store.refreshing("a.json"):
        thread = threading.Thread(target=second)
        thread.start()
        entered.wait(DEADLINE)
        store.delete("a.json")
        order.append("first")
    thread.join(DEADLINE)
    assert order == ["first", "second"]


def test_an_unwritable_draft_leaves_no_trace(store: cp.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.create("a.json", CODEX)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(cp.ProxyError, match="No space left"):
        store.merge("a.json", {"a": 1})
    assert store.get("a.json").data == CODEX
    assert not list(store.folder.glob(".*.new"))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
def test_a_pipe_is_no_credential(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.json")
    store = cp.Store(tmp_path)
    assert not store.scan(), "and it does not wait for a writer"
    assert store.credentials() == []
