"""USAGE: what requests leave behind, on both lanes; the database, the prices and the reports."""

from __future__ import annotations

import contextlib
import gzip
import json
import logging
import re
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cliproxy as cp
from support.dialogue import NAMES
from support.models import ask_for
from support.paths import ROOT, SHARED
from support.proxy import Proxy, ProxyMaker
from support.upstream import CLOSE, SILENCE, Upstream, wait_for
from support.usage import EXPECTED, SSE, Told, answer, events, payloads_of, reply, reply_of, said

Json = dict[str, Any]
STREAMED = [pytest.param(False, id="whole"), pytest.param(True, id="stream")]


@pytest.fixture(autouse=True)
def _all_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def ask(proxy: Proxy, client: str, upstream: str, *, stream: bool = False, **headers: str) -> int:
    """Ask as a client of one dialect for the model of another; return the status."""
    asks: dict[str, tuple[str, Json]] = {
        "claude": ("/v1/messages", {"max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}),
        "chat": ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}),
        "responses": ("/v1/responses", {"input": "hi"}),
        "gemini": (
            f"/v1beta/models/up-{upstream}:{'streamGenerateContent?alt=sse' if stream else 'generateContent'}",
            {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]},
        ),
    }
    path, body = asks[client]
    if client != "gemini":
        body = {**body, "model": f"up-{upstream}", "stream": stream}
    if client == "chat" and stream:
        body["stream_options"] = {"include_usage": True}
    return proxy.ask(path, body, {name.replace("_", "-"): value for name, value in headers.items()}).status


def tokens(row: cp.Row) -> Told:
    return Told(row.input, row.cached, row.cache_write, row.output, row.reasoning)


def database(proxy: Proxy) -> cp.Database:
    proxy.app.stats.flush()
    return cp.Database(proxy.app.stats.path)


def report(proxy: Proxy, by: str = "model", **query: Any) -> Json:
    with contextlib.closing(database(proxy)) as base:
        return cp.usage_report(base, cp.Query(by, **query))


# -- what requests leave behind ----------------------------------------------------------


@pytest.mark.parametrize("stream", STREAMED)
@pytest.mark.parametrize("upstream_dialect", NAMES)
@pytest.mark.parametrize("client", NAMES)
def test_tokens_are_the_upstreams_on_both_lanes(
    proxy: Proxy, upstream: Upstream, client: str, upstream_dialect: str, stream: bool
) -> None:
    upstream.replies.append(reply(upstream_dialect, stream=stream))
    assert ask(proxy, client, upstream_dialect, stream=stream, user_agent="codex_cli_rs/0.171.2 (x)") == 200
    (row,) = proxy.rows()
    assert tokens(row) == EXPECTED[upstream_dialect]
    assert (row.dialect, row.model, row.status, row.attempt) == (client, f"up-{upstream_dialect}", 200, 1)
    assert (row.client, row.address, row.streamed) == ("codex 0.171", "127.0.0.1", int(stream))
    assert re.fullmatch("[0-9a-f]{8}", row.request)
    assert re.fullmatch("[0-9a-f]{16}", row.auth_index)
    total = report(proxy)["total"]
    assert Told(*(total[name] for name in Told._fields)) == EXPECTED[upstream_dialect]
    assert (total["requests"], total["failed"]) == (1, 0)


def test_an_answer_that_passes_packed_is_counted(proxy: Proxy, upstream: Upstream) -> None:
    packed = gzip.compress(json.dumps(answer("claude")).encode())
    upstream.reply(packed, headers={"content-encoding": "gzip", "content-type": "application/json"})
    assert ask(proxy, "claude", "claude", accept_encoding="gzip") == 200
    assert tokens(proxy.rows()[0]) == EXPECTED["claude"]


@pytest.mark.parametrize("client", ["claude", "chat"], ids=["passing", "translated"])
def test_a_stream_that_breaks_off_is_counted_as_far_as_it_got(
    proxy: Proxy, upstream: Upstream, client: str
) -> None:
    begun = [cp.sse_frame(event, event["type"]) for event in events("claude")[:3]]
    upstream.reply([*begun, CLOSE], headers=SSE)
    ask(proxy, client, "claude", stream=True)
    (row,) = proxy.rows()
    assert tokens(row) == Told(11, 3, 2, 1)
    assert (row.status, row.error, row.hung_up) == (502, "upstream_failed", 0)
    assert report(proxy)["total"]["failed"] == 1
    assert " in=16 out=1" in proxy.log()


@pytest.mark.parametrize("client", ["claude", "chat"], ids=["passing", "translated"])
def test_a_client_that_hangs_up_is_no_failure(proxy: Proxy, upstream: Upstream, client: str) -> None:
    begun = [cp.sse_frame(event, event["type"]) for event in events("claude")[:3]]
    upstream.reply([*begun, SILENCE], headers=SSE)
    path, body = {"claude": ("/v1/messages", {"max_tokens": 9}), "chat": ("/v1/chat/completions", {})}[client]
    talk = [{"role": "user", "content": "hi"}]
    data = json.dumps({"model": "up-claude", "messages": talk, "stream": True, **body}).encode()
    with contextlib.closing(proxy.connect()) as peer:
        peer.sendall(b"POST %b HTTP/1.1\r\nhost: localhost\r\n" % path.encode())
        peer.sendall(b"content-length: %d\r\n\r\n%b" % (len(data), data))
        peer.recv(100)
    (row,) = proxy.rows()
    assert (row.status, row.hung_up, row.input) == (499, 1, 11)
    assert report(proxy)["total"]["failed"] == 0


def two_keys(upstream: Upstream) -> list[Json]:
    entry = {"base-url": upstream.url, "models": [{"name": "up-claude"}]}
    return [{**entry, "api-key": "sk-one"}, {**entry, "api-key": "sk-two"}]


def test_every_account_that_was_asked_has_a_row(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = make_proxy(claude_api_key=two_keys(upstream))
    upstream.reply({"type": "error", "error": {"type": "api_error", "message": "x" * 900 + "\n"}}, 500)
    upstream.replies.append(reply("claude", stream=False))
    assert ask(proxy, "claude", "claude") == 200
    failed, served = proxy.rows(2)
    assert (failed.attempt, failed.status, failed.error) == (1, 500, "upstream_error")
    assert failed.words == "x" * 200
    assert (served.attempt, served.status, served.error) == (2, 200, "")
    assert failed.request == served.request
    assert failed.account != served.account
    assert failed.auth_index != served.auth_index


def test_the_last_failure_is_counted_once(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = make_proxy(claude_api_key=two_keys(upstream))
    for _ in range(2):
        upstream.reply({"type": "error", "error": {"type": "api_error", "message": "no"}}, 500)
    assert ask(proxy, "claude", "claude") == 500
    log = proxy.log()
    assert [row.attempt for row in proxy.rows(2)] == [1, 2]
    assert "account=claude-api-key[1] status=500" in log


REFUSED = {
    "a wrong key": ({"x-api-key": "sk-wrong"}, b"{}", 401, "unauthorized"),
    "an unknown model": ({"x-api-key": "sk-right"}, b'{"model":"no-such-model"}', 404, "model_not_found"),
    "no JSON": ({"x-api-key": "sk-right"}, b"{", 400, "invalid_request"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_requests_count_too(make_proxy: ProxyMaker, case: str) -> None:
    headers, body, status, kind = REFUSED[case]
    proxy = make_proxy(api_keys=["sk-right"])
    assert proxy.ask("/v1/messages", body, headers).status == status
    (row,) = proxy.rows()
    assert (row.attempt, row.status, row.error, row.account, row.key) == (0, status, kind, "", "")
    told = report(proxy)
    assert [(r["model"], r["requests"], r["failed"]) for r in told["rows"]] == [("(refused)", 1, 1)]


def test_what_is_not_for_a_model_is_not_counted(proxy: Proxy) -> None:
    for path in ("/v1/models", "/health", "/nowhere"):
        proxy.ask(path)
    assert proxy.log(3).count("in=") == 0
    assert proxy.app.stats.latest() == []


def test_the_echo_costs_nothing_and_counts(proxy: Proxy) -> None:
    ask_for(proxy, "claude", "echo")
    (row,) = proxy.rows()
    assert (row.model, row.attempt, row.cost) == ("echo", 0, 0.0)
    assert row.output


def test_keys_are_told_as_hashes(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = make_proxy(api_keys=["sk-client-secret"])
    upstream.replies.append(reply("claude", stream=False))
    ask(proxy, "claude", "claude", authorization="Bearer sk-client-secret")
    (row,) = proxy.rows()
    assert re.fullmatch("key-[0-9a-f]{8}", row.key)
    proxy.app.stats.close()
    assert b"secret" not in proxy.app.stats.path.read_bytes()
    assert b"sk-upstream" not in proxy.app.stats.path.read_bytes()


def test_counts_of_an_upstream_are_numbers(proxy: Proxy, upstream: Upstream) -> None:
    usage: Json = {"input_tokens": "7", "output_tokens": -3, "cache_read_input_tokens": 1e300}
    upstream.reply(answer("claude", usage))
    ask(proxy, "claude", "claude")
    assert tokens(proxy.rows()[0]) == Told()


RECORDED = {"claude": "messages", "chat": "chat", "responses": "responses", "gemini": "gemini"}


@pytest.mark.shared
@pytest.mark.parametrize("client", ["same", "other"], ids=["passing", "translated"])
@pytest.mark.parametrize("dialect", NAMES)
def test_tokens_of_every_recording_are_the_upstreams(
    make_proxy: ProxyMaker, upstream: Upstream, dialect: str, client: str
) -> None:
    proxy = make_proxy(disable_cooling=True)
    asks = {"same": dialect, "other": "chat" if dialect == "claude" else "claude"}[client]
    wanted: dict[str, Told] = {}
    found: dict[str, Told] = {}
    for path in sorted((SHARED / "recordings" / "dev" / RECORDED[dialect]).glob("*.json")):
        recorded = json.loads(path.read_text(encoding="utf-8"))["response"]
        broken = recorded["status"] != 200 or '"error": {' in recorded.get("sse", "").replace('":{', '": {')
        told = None if broken else said(dialect, payloads_of(recorded))
        if told:
            before = len(proxy.app.stats.latest())
            upstream.replies.append(reply_of(recorded))
            ask(proxy, asks, dialect, stream="sse" in recorded)
            wanted[path.name] = told
            proxy.log(len(wanted))
            found[path.name] = tokens(proxy.app.stats.latest()[before])
    assert {name: (told, found[name]) for name, told in wanted.items() if told != found[name]} == {}
    assert len(wanted) > 100


# -- who asks ----------------------------------------------------------------------------

AGENTS = {
    "claude-cli/2.1.197 (external, cli)": "claude-code 2.1",
    "codex_cli_rs/0.169.0 (Debian 12; x86_64) xterm": "codex 0.169",
    "codex_exec/0.171.0 (x)": "codex 0.171",
    "codex-tui/0.171.0": "codex 0.171",
    "GeminiCLI-tui/0.61.0/gemini-3-pro-preview (linux; x64; terminal)": "gemini-cli 0.61",
    "QwenCode/0.15.10 (linux; x64)": "qwen-code 0.15",
    "opencode/1.18.33 ai-sdk/provider-utils/4.0.23": "opencode 1.18",
    "factory-cli/0.225.2": "droid 0.225",
    "Anthropic/Python 0.79.0": "anthropic",
    "OpenAI/JS 6.26.0": "openai 6.26",
    "curl/8.5.0": "curl 8.5",
    "amp": "amp",
    "": "",
    "\x1b[31mred": "\\u001b[31mred",
}


@pytest.mark.parametrize("agent", AGENTS)
def test_clients_are_named(agent: str) -> None:
    assert cp.client_of(agent) == AGENTS[agent]


# -- prices ------------------------------------------------------------------------------

COSTS = [
    ("claude-opus-4-5-20251101", cp.Usage(1_000_000), 5.0),
    ("claude-sonnet-4-5", cp.Usage(1_000_000, 400_000, 100_000, 10_000), 1.5 + 0.12 + 0.375 + 0.15),
    ("gemini-3-pro-preview", cp.Usage(200_000, output=1_000), 0.4 + 0.012),
    ("gemini-3-pro-preview", cp.Usage(200_001, output=1_000), 0.800004 + 0.018),
    ("models/gemini-2.5-flash(high)", cp.Usage(1_000_000), 0.3),
    ("anthropic/claude-haiku-4.5", cp.Usage(1_000_000), None),
    ("openrouter/anthropic/claude-haiku-4-5:free", cp.Usage(1_000_000), 1.0),
    ("grok-3-mini", cp.Usage(1_000_000, 1_000_000), 0.3),
    ("qwen3-coder-plus", cp.Usage(300_000), 1.8),
    ("no-such-model", cp.Usage(1), None),
]


@pytest.mark.parametrize(("model", "usage", "cost"), COSTS)
def test_costs(model: str, usage: cp.Usage, cost: float | None) -> None:
    found = cp.cost_of(cp.price_of(model, cp.list_prices()), usage)
    assert found == (cost if cost is None else pytest.approx(cost))


def test_a_cache_of_an_hour_costs_double() -> None:
    extra = {"claude": {"cache_creation": {"ephemeral_1h_input_tokens": 1_000_000}}}
    usage = cp.Usage(1_000_000, 0, 1_000_000, extra=extra)
    assert cp.cost_of(cp.list_prices()["claude-opus-5"], usage) == pytest.approx(10.0)


@given(st.text(max_size=40), st.lists(st.integers(0, 10**9), min_size=5, max_size=5))
def test_any_name_and_any_counts_have_a_cost_or_none(name: str, counts: list[int]) -> None:
    cost = cp.cost_of(cp.price_of(name, cp.list_prices()), cp.Usage(*counts))  # type: ignore[arg-type]
    assert cost is None or cost >= 0


def test_all_prices_are_sound() -> None:
    for name, tiers in cp.list_prices().items():
        assert name == name.lower()
        assert [tier.above for tier in tiers] == sorted({tier.above for tier in tiers})
        for tier in tiers:
            assert tier.input >= (tier.cached or 0)
            assert tier.output is None or tier.output >= tier.input


def test_own_prices_count_most_and_unknown_ones_are_told(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = make_proxy(prices={"Up-Claude": {"input": 1.0, "output": 2}})
    upstream.replies += [reply("claude", stream=False), reply("chat", stream=False)]
    ask(proxy, "claude", "claude")
    proxy.rows()
    ask(proxy, "chat", "chat")
    proxy.rows(2)
    told = report(proxy)
    assert [(row["model"], row["cost"]) for row in told["rows"]] == [("up-chat", None), ("up-claude", 3e-05)]
    assert told["unpriced"] == ["up-chat"]
    assert told["total"]["cost"] == 3e-05


# -- the database ------------------------------------------------------------------------


def row(**fields: Any) -> cp.Row:
    """A row that says little."""
    plain: Json = dict.fromkeys(cp.Row._fields, 0)
    words = (
        "request key client address dialect path asked model provider account auth_index error words".split()
    )
    plain.update(dict.fromkeys(words, ""), time=1_800_000_000.0, attempt=1, status=200, model="m")
    return cp.Row(**{**plain, **fields})


@pytest.fixture
def base(tmp_path: Path) -> Any:
    with contextlib.closing(cp.Database(tmp_path / "u" / "usage.db")) as found:
        yield found


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX's")
def test_nobody_else_may_read_it(base: cp.Database) -> None:
    base.write([row()])
    modes = {path.name: path.stat().st_mode & 0o777 for path in base.path.parent.iterdir()}
    assert set(modes.values()) == {0o600}
    assert base.path.parent.stat().st_mode & 0o777 == 0o700


def test_reports_sum_by_anything_and_survive_a_restart(base: cp.Database) -> None:
    at = time.mktime((2026, 11, 3, 10, 10, 0, 0, 0, -1))
    base.write([
        row(time=at, model="a", account="x", input=5, output=1, cost=0.5),
        row(time=at + 3_600, model="b", account="x", input=7, cost=None),
        row(time=at + 86_400, model="a", account="y", status=500, cost=0.0),
    ])  # fmt: skip
    base.close()
    again = cp.Database(base.path)

    def told(by: str, **query: Any) -> list[tuple[Any, ...]]:
        rows = cp.usage_report(again, cp.Query(by, **query))["rows"]
        return [(row[by], row["requests"], row["failed"], row["input"], row["cost"]) for row in rows]

    assert told("model") == [("a", 2, 1, 5, 0.5), ("b", 1, 0, 7, None)]
    assert told("account") == [("x", 2, 0, 12, 0.5), ("y", 1, 1, 0, 0.0)]
    assert told("day") == [("2026-11-03", 2, 0, 12, 0.5), ("2026-11-04", 1, 1, 0, 0.0)]
    assert [name for name, *_ in told("hour")] == ["2026-11-03 10:00", "2026-11-03 11:00", "2026-11-04 10:00"]
    assert told("key") == [("-", 3, 1, 12, 0.5)]
    assert told("model", model="a*") == [("a", 2, 1, 5, 0.5)]
    assert told("model", account="[y]") == []
    assert told("model", since=at + 7_200) == [("a", 1, 1, 0, 0.0)]
    assert told("model", until=at) == [("a", 1, 0, 5, 0.5)]
    again.close()


def test_rows_go_after_their_days_and_sums_stay(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = make_proxy(usage={"keep-days": 1})
    with contextlib.closing(database(proxy)) as base:
        base.write([row(time=time.time() - 100_000, model="old")])
        upstream.replies.append(reply("claude", stream=False))
        ask(proxy, "claude", "claude")
        proxy.rows()
        proxy.app.stats.flush()
        assert [row.model for _, row in cp.stored_rows(base, 0)] == ["up-claude"]
        assert [row["model"] for row in cp.usage_report(base, cp.Query("model"))["rows"]] == [
            "old",
            "up-claude",
        ]


def test_rows_with_nulls_are_read(base: cp.Database) -> None:
    base.write([row()])
    with contextlib.closing(sqlite3.connect(base.path)) as other:
        columns = ", ".join(f"{name} = NULL" for name in cp.Row._fields)
        other.execute(f"UPDATE rows SET {columns}")
        other.execute("UPDATE sums SET input = NULL, cost = NULL, failed = NULL")
        other.commit()
    for by in cp.USAGE_BY:
        assert cp.usage_report(base, cp.Query(by))["total"]["requests"] == 1
    assert len(cp.stored_rows(base, 0)) == 1
    assert cp.recent_requests(base, 1_800_000_000.0) == {}


def test_a_damaged_database_is_put_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "usage.db"
    path.write_bytes(b"no database" * 500)
    with contextlib.closing(cp.Database(path)) as base:
        base.write([row()])
        assert len(cp.stored_rows(base, 0)) == 1
    assert "put aside as usage.db.damaged-" in caplog.text
    assert len(list(tmp_path.glob("usage.db.damaged-*"))) == 1


def test_a_database_of_a_later_version_is_left_alone(
    proxy: Proxy, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    path = proxy.app.stats.path
    path.parent.mkdir(exist_ok=True)
    with contextlib.closing(sqlite3.connect(path)) as later:
        later.execute("PRAGMA user_version = 99")
    before = path.read_bytes()
    upstream.replies.append(reply("claude", stream=False))
    assert ask(proxy, "claude", "claude") == 200
    proxy.rows()
    for _ in range(3):
        proxy.app.stats.flush()
    assert path.read_bytes() == before
    assert caplog.text.count("later version of cliproxy (99); usage is not recorded") == 1


def test_a_folder_that_cannot_be_written_costs_no_request(
    proxy: Proxy, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    proxy.app.stats.path.parent.write_text("a file", encoding="utf-8")
    upstream.replies += [reply("claude", stream=False)] * 2
    for count in (1, 2):
        assert ask(proxy, "claude", "claude") == 200
        proxy.rows(count)
        proxy.app.stats.flush()
    assert caplog.text.count("usage is not recorded until it can be written") == 1


def test_what_could_not_be_written_is_written_later(proxy: Proxy, upstream: Upstream) -> None:
    folder = proxy.app.stats.path.parent
    folder.write_text("a file", encoding="utf-8")
    upstream.replies.append(reply("claude", stream=False))
    ask(proxy, "claude", "claude")
    proxy.rows()
    proxy.app.stats.flush()
    folder.unlink()
    proxy.app.stats.close()  # it tries at once
    assert report(proxy)["total"]["requests"] == 1


def test_statistics_can_be_switched_off(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = make_proxy(usage_statistics_enabled=False)
    upstream.replies.append(reply("claude", stream=False))
    ask(proxy, "claude", "claude")
    proxy.rows()
    proxy.app.stats.flush()
    assert not proxy.app.stats.path.exists()


def test_clock_jumps_back(base: cp.Database) -> None:
    base.write([row(time=1_900_000_000.0), row(time=1_800_000_000.0)])
    recent = cp.recent_requests(base, 1_800_000_100.0)
    assert recent == {}
    base.write([row(time=1_900_000_000.0, account="a"), row(time=1_800_000_000.0, account="a")])
    (slots,) = cp.recent_requests(base, 1_800_000_100.0).values()
    assert len(slots) == 20
    assert [slot["success"] for slot in slots] == [0] * 19 + [1]


def test_several_writers_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "usage.db"

    def write() -> None:
        with contextlib.closing(cp.Database(path)) as mine:
            for _ in range(20):
                mine.write([row(), row()])

    threads = [threading.Thread(target=write) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with contextlib.closing(cp.Database(path)) as base:
        assert cp.usage_report(base, cp.Query())["total"]["requests"] == 200
        assert len(cp.stored_rows(base, 0)) == 200


# -- times -------------------------------------------------------------------------------


def test_times_of_reports() -> None:
    now = time.mktime((2026, 11, 28, 12, 0, 0, 0, 0, -1))
    midnight = time.mktime((2026, 11, 28, 0, 0, 0, 0, 0, -1))
    assert cp.read_since("7d", now) == now - 7 * 86_400
    assert cp.read_since(" 90M ", now) == now - 5_400
    assert cp.read_since("today", now) == midnight
    assert cp.read_since("2026-11-28", now) == cp.read_since("20261128", now) == midnight
    assert cp.read_since("2026-11-28T12:00", now) == now
    assert cp.read_since("yesterday", now) == midnight - 86_400


@given(st.text(max_size=20))
def test_any_other_text_names_the_forms(text: str) -> None:
    with contextlib.suppress(ValueError):
        cp.read_since(text, 1_800_000_000.0)
        return
    with pytest.raises(ValueError, match="allowed: 90m, 24h, 7d"):
        cp.read_since(text, 1_800_000_000.0)


def test_the_thread_writes_by_itself(proxy: Proxy, upstream: Upstream) -> None:
    thread = threading.Thread(target=proxy.app.scribe.run)
    thread.start()
    upstream.replies.append(reply("claude", stream=False))
    ask(proxy, "claude", "claude")
    wait_for(lambda: proxy.app.stats.path.exists() and not proxy.app.stats.waiting)
    proxy.app.scribe.stop()
    thread.join()
    assert report(proxy)["total"]["requests"] == 1


# -- several processes, and full disks ---------------------------------------------------

MANY = """
import sys, cliproxy as cp
from pathlib import Path
stats = cp.Stats(Path(sys.argv[1]))
stats.configure(cp.load_config(None))
errand = cp.Errand(cp.DIALECTS["claude"], "generate", b"{}")
for number in range(200):
    stats.add([errand.tried(200)])
    if number % 20 == 19:
        stats.flush()
stats._again = 0.0
stats.flush()
stats.close()
assert not stats.waiting
"""


@pytest.mark.slow
def test_twenty_processes_lose_no_row(tmp_path: Path) -> None:
    path = tmp_path / "usage.db"
    command = [sys.executable, "-c", MANY, str(path)]
    running = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) for _ in range(20)]
    for process in running:
        assert process.communicate(timeout=100)[1] == b""
        assert process.returncode == 0
    with contextlib.closing(cp.Database(path)) as base:
        assert cp.usage_report(base, cp.Query())["total"]["requests"] == 4_000
        assert len(cp.stored_rows(base, 0)) == 4_000


FULL_DISK = """
import logging, resource, sys, cliproxy as cp
from pathlib import Path
logging.basicConfig(format="%(message)s")
stats = cp.Stats(Path(sys.argv[1]))
stats.configure(cp.load_config(None))
errand = cp.Errand(cp.DIALECTS["claude"], "generate", b"{}")
stats.add([errand.tried(200)])
stats.flush()
resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))
for _ in range(3):
    stats.add([errand.tried(200)])
    stats._again = 0.0
    stats.flush()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
stats.close()
print(stats.waiting)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX has such limits")
def test_a_full_disk_costs_one_warning_and_no_row(tmp_path: Path) -> None:
    path = tmp_path / "usage.db"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert (done.stdout, done.stderr.count("usage is not recorded")) == ("False\n", 1)
    with contextlib.closing(cp.Database(path)) as base:
        assert cp.usage_report(base, cp.Query())["total"]["requests"] == 4
