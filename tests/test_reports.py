"""REPORTS, and what SERVER tells of itself: `usage`, `status`, /health, /metrics, the headers."""

from __future__ import annotations

import csv
import io
import json
import re
import threading
import time
from typing import Any

import pytest

import cliproxy as cp
from support.dialogue import NAMES
from support.models import ask_for
from support.proxy import Proxy, ProxyMaker
from support.upstream import Upstream, make_reply
from support.usage import reply

Json = dict[str, Any]


def used(proxy: Proxy, upstream: Upstream) -> None:
    """One request that is served, one that fails, one that nobody was asked for."""
    upstream.replies.append(reply("claude", stream=False))
    assert ask_for(proxy, "claude", "up-claude", "claude-cli/2.1.197 (external, cli)").status == 200
    upstream.reply({"error": {"message": "no"}}, 400)
    assert ask_for(proxy, "chat", "up-chat").status == 400
    assert ask_for(proxy, "chat", "no-such-model").status == 404
    proxy.rows(3)
    proxy.app.stats.close()


def command(proxy: Proxy, *words: str) -> int:
    return cp.main([words[0], "--config", str(proxy.path), *words[1:]])


# -- usage -------------------------------------------------------------------------------


def test_usage_as_json(proxy: Proxy, upstream: Upstream, capsys: pytest.CaptureFixture[str]) -> None:
    used(proxy, upstream)
    assert command(proxy, "usage", "--json", "--by", "model") == 0
    report = json.loads(capsys.readouterr().out)
    assert list(report) == ["since", "until", "by", "rows", "total", "unpriced"]
    assert [row["model"] for row in report["rows"]] == ["(refused)", "up-chat", "up-claude"]
    assert report["rows"][2] == {
        "model": "up-claude", "requests": 1, "failed": 0, "input": 11, "cached": 3, "cache_write": 2, "output": 7,
        "reasoning": 4, "cost": None,
    }  # fmt: skip
    assert (report["total"]["requests"], report["total"]["failed"]) == (3, 2)
    assert report["unpriced"] == ["up-claude"]


def test_usage_as_a_table(proxy: Proxy, upstream: Upstream, capsys: pytest.CaptureFixture[str]) -> None:
    used(proxy, upstream)
    assert command(proxy, "usage", "--by", "client") == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["CLIENT", "REQUESTS", "FAILED", "INPUT", "CACHED", "OUTPUT", "COST"]
    assert re.split(r"\s{2,}", lines[2]) == ["claude-code 2.1", "1", "0", "11", "3", "7", "-"]
    assert lines[3].startswith("total ")
    assert "by list price (of 2026-11-28); plans are flat" in lines[4]
    assert lines[5].startswith("no price is known for: up-claude")


@pytest.mark.parametrize("by", cp.USAGE_BY)
def test_usage_by_anything(
    proxy: Proxy, upstream: Upstream, by: str, capsys: pytest.CaptureFixture[str]
) -> None:
    used(proxy, upstream)
    for form in ("--json", "--csv"):
        assert command(proxy, "usage", "--by", by, "--since", "2d", form) == 0
    assert by in capsys.readouterr().out


def test_usage_of_nothing(proxy: Proxy, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(proxy, "usage") == 0
    assert "nothing was recorded" in capsys.readouterr().out
    assert command(proxy, "usage", "--json") == 0
    assert json.loads(capsys.readouterr().out)["total"]["requests"] == 0
    assert not proxy.app.stats.path.exists()


def test_a_time_that_is_none_names_the_forms(proxy: Proxy, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(proxy, "usage", "--since", "yesterdayish") == 1
    assert "'yesterdayish' is no time; allowed: 90m, 24h, 7d" in capsys.readouterr().err


def test_names_with_commas_and_quotes_as_csv() -> None:
    numbers = cp.usage_numbers([1] * len(cp.NUMBERS))
    name = 'a "b", c\nd'
    text = cp.usage_csv({"by": "account", "rows": [{"account": name, **numbers}]})
    (row,) = csv.DictReader(io.StringIO(text))
    assert (row["account"], row["requests"]) == (name, "1")


def test_what_is_live_is_told_as_it_ends(
    proxy: Proxy, upstream: Upstream, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cp, "LIVE_TICK", 0.01)
    used(proxy, upstream)
    stop = threading.Event()
    found: list[cp.Row] = []

    def follow() -> None:
        for row in cp.live_rows(proxy.app.stats, cp.Query(model="up-*"), stop):
            found.append(row)
            stop.set()

    thread = threading.Thread(target=follow)
    thread.start()
    upstream.replies += [make_reply({"error": {"message": "no"}}, 400)] * 1000
    while thread.is_alive():  # one that comes after it has begun
        ask_for(proxy, "chat", "no-such-model")
        ask_for(proxy, "chat", "up-chat")
        proxy.rows(5)
        proxy.app.stats.flush()
    thread.join()
    assert (found[0].model, found[0].status) == ("up-chat", 400)
    assert "up-chat" in cp.live_line(found[0])


def test_prices_are_fetched(proxy: Proxy, upstream: Upstream, capsys: pytest.CaptureFixture[str]) -> None:
    listed = {
        "gateway": {"models": {"up-claude": {"cost": {"input": 9, "output": 9}}, "odd": {"cost": {"input": "x"}}}},
        "anthropic": {"models": {"Up-Claude": {"cost": {
            "input": 1, "output": 2, "cache_read": 0.5, "cache_write": 4, "tiers": [{"tier": {"size": 5}, "input": 10, "output": 20}],
        }}, "free": {}}},
    }  # fmt: skip
    upstream.reply(listed)
    assert command(proxy, "usage", "--refresh-prices", f"{upstream.url}/api.json") == 0
    assert capsys.readouterr().out.startswith("1 prices")
    proxy.app.reload()
    used(proxy, upstream)
    row = proxy.app.stats.latest()[0]
    assert row.cost == pytest.approx((11 * 10 + 3 * 10 + 2 * 10 + 7 * 20) / 1e6)
    assert command(proxy, "usage", "--by", "model") == 0
    assert f"(of {time.strftime('%Y-%m-%d')})" in capsys.readouterr().out


@pytest.mark.parametrize(
    "body", [b"{}", b"[]", b"no JSON", b'{"a":{"models":{"m":{"cost":{"input":null}}}}}']
)
def test_what_is_no_list_of_prices_is_refused(
    proxy: Proxy, upstream: Upstream, body: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    upstream.reply(body)
    assert command(proxy, "usage", "--refresh-prices", f"{upstream.url}/api.json") == 1
    assert "has no list of prices" in capsys.readouterr().err


# -- status ------------------------------------------------------------------------------


def test_status_of_a_server_that_runs(
    proxy: Proxy, upstream: Upstream, capsys: pytest.CaptureFixture[str]
) -> None:
    used(proxy, upstream)
    cp.note_running(proxy.auth_dir, proxy.url, proxy.path)
    assert command(proxy, "status") == 0
    said = capsys.readouterr().out
    assert f"cliproxy {cp.__version__} runs at {proxy.url} since" in said
    assert str(proxy.path) in said
    assert re.search(r"claude-api-key\[0\] .* ready +1 +0 +23 +-", said)
    assert "no-such-model" in said.partition("last failures:")[2]
    assert "sk-upstream-key" not in said


def test_status_as_json(proxy: Proxy, upstream: Upstream, capsys: pytest.CaptureFixture[str]) -> None:
    used(proxy, upstream)
    cp.note_running(proxy.auth_dir, proxy.url, proxy.path)
    assert command(proxy, "status", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["running"], report["can_serve"]) == (True, True)
    assert report["servers"][0]["address"] == proxy.url
    today = {row["name"]: row["today"]["requests"] for row in report["accounts"]}
    assert today["claude-api-key[0]"] == 1


def test_status_without_a_server(proxy: Proxy, capsys: pytest.CaptureFixture[str]) -> None:
    assert command(proxy, "status") == 1
    assert "no server runs" in capsys.readouterr().out


def test_the_file_of_a_server_that_was_killed_is_no_server(
    proxy: Proxy, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = proxy.auth_dir / ".cliproxy"
    cp.note_running(proxy.auth_dir, proxy.url, proxy.path)
    old = json.loads(next(folder.glob("server-*")).read_text(encoding="utf-8"))
    (folder / "server-1").write_text(json.dumps({**old, "since": 1.0, "pid": 1}), encoding="utf-8")
    (folder / "server-2").write_text(json.dumps({**old, "address": "http://127.0.0.1:1"}), encoding="utf-8")
    (folder / "server-3").write_text("[", encoding="utf-8")
    assert command(proxy, "status", "--json") == 0
    assert len(json.loads(capsys.readouterr().out)["servers"]) == 1


# -- what the server tells ---------------------------------------------------------------


def test_health_is_small_and_has_no_names(proxy: Proxy, upstream: Upstream) -> None:
    used(proxy, upstream)
    told = proxy.ask("/health").json()
    assert set(told) == {"status", "version", "uptime_s", "models", "accounts", "requests"}
    assert told["accounts"] == {"ready": 4, "cooling": 0, "needs_login": 0}
    assert (told["status"], told["requests"], told["models"]) == ("ok", 3, 4)


def samples(text: str) -> dict[str, float]:
    parser = pytest.importorskip("prometheus_client.parser")
    return {
        f"{sample.name}{json.dumps(sample.labels, sort_keys=True)}": sample.value
        for family in parser.text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_metrics_are_prometheus(proxy: Proxy, upstream: Upstream) -> None:
    used(proxy, upstream)
    got = proxy.ask("/metrics")
    assert got.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = samples(got.body.decode())

    def value(name: str, **labels: str) -> float:
        return found[f"cliproxy_{name}{json.dumps(labels, sort_keys=True)}"]

    assert value("requests_total", provider="claude", model="up-claude", status="200") == 1
    assert value("requests_total", provider="", model="(refused)", status="404") == 1
    assert value("tokens_total", provider="claude", model="up-claude", kind="output") == 7
    assert value("request_seconds_count", provider="claude") == 1
    assert value("request_seconds_bucket", provider="claude", le="+Inf") == 1
    assert value("accounts", state="ready") == 4
    assert value("running_requests") == 1
    assert value("uptime_seconds") >= 0


def test_labels_are_escaped() -> None:
    line = cp.metrics_text({"requests": {('a"b', "c\\d\ne", "200"): 1.0}})
    found = samples(line)
    assert json.loads(re.sub(r"^[^{]*", "", next(iter(found)))) == {
        "provider": 'a"b', "model": "c\\d\ne", "status": "200",
    }  # fmt: skip


def test_metrics_want_a_key_of_others(make_proxy: ProxyMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"secret-key": "sk-management-key"}
    proxy = make_proxy(api_keys=["sk-right"], remote_management=settings)
    assert proxy.ask("/metrics").status == 200
    monkeypatch.setattr(cp, "is_loopback", lambda host: host == "localhost")
    asks = [
        {},
        {"x-api-key": "wrong"},
        {"x-api-key": "sk-right"},
        {"authorization": "Bearer sk-management-key"},
    ]
    statuses = [proxy.ask("/metrics", headers={"host": "localhost", **headers}).status for headers in asks]
    assert statuses == [401, 401, 200, 200]


def test_many_names_are_counted_together(proxy: Proxy) -> None:
    stats = proxy.app.stats
    known = cp.LABELS + 50
    for number in range(known):
        stats._count(
            cp.Row._make([0.0, "", 1] + [""] * 6 + [f"m{number}"] + [""] * 3 + [200, "", ""] + [0] * 10)
        )
    names = {labels[1] for labels in stats.counters()["requests"]}
    assert len(names) == cp.LABELS + 1
    assert "(other)" in names


@pytest.mark.parametrize("client", NAMES)
def test_answers_tell_where_to_find_them(proxy: Proxy, upstream: Upstream, client: str) -> None:
    upstream.replies.append(reply("claude", stream=False))
    served = ask_for(proxy, client, "up-claude")
    refused = ask_for(proxy, client, "no-such-model")
    rows = {row.request: row for row in proxy.rows(2)}
    for got in (served, refused):
        row = rows[got.headers["x-cliproxy-request-id"]]
        assert got.headers["x-cliproxy-attempts"] == str(row.attempt)
    assert served.headers["x-cliproxy-account"] == "claude-api-key[0]"
    assert served.headers["x-cliproxy-model"] == "up-claude"
    assert refused.headers["x-cliproxy-account"] == "-"


def test_a_wrong_key_can_be_found_too(make_proxy: ProxyMaker) -> None:
    proxy = make_proxy(api_keys=["sk-right"])
    got = ask_for(proxy, "claude", "up-claude")
    assert (got.status, got.headers["x-cliproxy-request-id"]) == (401, proxy.rows()[0].request)


def test_accounts_are_masked() -> None:
    assert cp.account_mark("claude-ann.smith@example.com.json") == "claude-ann....mith@example.com.json"
    assert cp.account_mark("é\r\nx: y") == "%C3%A9%0D%0Ax: y"
