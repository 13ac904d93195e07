"""What a refusal means: whose fault, for how long, and what the client is told."""

from __future__ import annotations

import json
import re
import time
from typing import Any, NamedTuple

import pytest

import cliproxy as cp
from support.accounts import ANSWER, CLAUDE_ASK, HI, Json, Pool
from support.cost import effort
from support.proxy import Proxy, ProxyMaker
from support.upstream import CLOSE, Reply, Upstream, make_reply

# Who is asked: (status, headers, body) of one account, then what two and one account make of it


class Refusal(NamedTuple):
    status: int
    body: Any
    headers: dict[str, str]
    rest: float  # seconds that the account rests; 0: not at all
    scope: str  # model, account, or empty: the client gets it at once and nobody else is asked
    alone: int  # what the client sees if it was the only account: of the next request


def claude_error(kind: str, message: str = "no") -> Json:
    return {"type": "error", "error": {"type": kind, "message": message}}


def unified(**cells: str) -> dict[str, str]:
    return {f"anthropic-ratelimit-unified-{name.replace('_', '-')}": value for name, value in cells.items()}


SOON, LATE = "NOW+600", "NOW+7200"


# fmt: off
REFUSED = {
    "429, retry-after":           Refusal(429, claude_error("rate_limit_error"), {"retry-after": "77"}, 77, "model", 429),
    "429, no hint":               Refusal(429, claude_error("rate_limit_error"), {}, 1, "model", 429),
    "429, 5h window":             Refusal(429, claude_error("rate_limit_error"),
        unified(status="rejected", **{"5h_status": "rejected", "5h_reset": SOON, "7d_status": "allowed", "7d_reset": LATE}), 600, "account", 429),
    "429, both windows":          Refusal(429, claude_error("rate_limit_error"),
        unified(status="rejected", **{"5h_status": "rejected", "5h_reset": SOON, "7d_status": "rejected", "7d_reset": LATE}), 7200, "account", 429),
    "429, window of one model":   Refusal(429, claude_error("rate_limit_error"),
        unified(status="rejected", **{"5h_status": "allowed", "7d_oi_status": "rejected", "7d_oi_reset": SOON}), 600, "model", 429),
    "429, unnamed window":        Refusal(429, claude_error("rate_limit_error"), unified(status="rejected", reset=SOON), 600, "model", 429),
    "429, Codex resets_at":       Refusal(429, {"error": {"type": "usage_limit_reached", "resets_at": SOON}}, {}, 600, "model", 429),
    "429, resets_in_seconds":     Refusal(429, {"error": {"type": "usage_limit_reached", "resets_in_seconds": 50}}, {}, 50, "model", 429),
    "429, fast mode":             Refusal(429, claude_error("rate_limit_error", "fast mode needs usage credits"), {}, 0, "", 429),
    "429, free usage":            Refusal(429, {"error": {"code": "free-usage-exhausted", "message": "x"}}, {}, 86_400, "account", 429),
    "402":                        Refusal(402, claude_error("billing_error"), {}, 1_800, "model", 403),
    "403":                        Refusal(403, claude_error("permission_error"), {}, 1_800, "model", 403),
    "403, Cloudflare":            Refusal(403, "<html><title>Just a moment...</title></html>", {"content-type": "text/html"}, 10, "account", 429),
    "401 of a key":               Refusal(401, claude_error("authentication_error"), {}, 1_800, "account", 403),
    "404":                        Refusal(404, claude_error("not_found_error"), {}, 43_200, "model", 404),
    "400, not this model":        Refusal(400, {"error": {"message":
        "The 'up' model is not supported when using Codex with a ChatGPT account."}}, {}, 43_200, "model", 404),
    "400":                        Refusal(400, claude_error("invalid_request_error"), {}, 0, "", 400),
    "400, no image input":        Refusal(400, claude_error("invalid_request_error", "model up: image input is not supported"), {}, 0, "", 400),
    "413":                        Refusal(413, claude_error("request_too_large"), {}, 0, "", 413),
    "422":                        Refusal(422, claude_error("invalid_request_error"), {}, 0, "", 422),
    "500":                        Refusal(500, claude_error("api_error"), {}, 60, "model", 500),
    "502, no JSON":               Refusal(502, "<html>bad gateway</html>", {}, 60, "model", 502),
    "503, retry-after":           Refusal(503, claude_error("api_error"), {"retry-after": "5"}, 5, "model", 503),
    "529":                        Refusal(529, claude_error("overloaded_error"), {}, 60, "model", 529),
}
# fmt: on


def at_times(text: str) -> str:
    return re.sub(r'"?NOW\+(\d+)"?', lambda match: str(int(time.time()) + int(match[1])), text)


def scripted(refusal: Refusal) -> Reply:
    body = refusal.body if isinstance(refusal.body, str) else at_times(json.dumps(refusal.body))
    kind = {} if isinstance(refusal.body, str) else {"content-type": "application/json"}
    return make_reply(body, refusal.status, {**kind, **{k: at_times(v) for k, v in refusal.headers.items()}})


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_of_one_of_two(name: str, make_proxy: ProxyMaker, upstream: Upstream) -> None:
    refusal = REFUSED[name]
    pool = Pool(make_proxy, upstream, "ab", request_retry=0)
    pool.script["a"] = scripted(refusal)
    got, asked = pool.ask(), pool.asked()
    rests = pool.rests()
    if not refusal.scope:
        assert (got.status, asked, rests) == (refusal.status, "a", {})
        return
    assert (got.status, asked) == (200, "ab")
    key = ("0", "" if refusal.scope == "account" else "up")
    assert list(rests) == [key]
    assert refusal.rest - 3 <= rests[key] <= refusal.rest + 1
    pool.ask()
    pool.ask()
    assert pool.asked() == "bb"
    pool.ask("other")
    pool.ask("other")
    assert ("a" in pool.asked()) == (refusal.scope == "model")


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_of_the_only_one(name: str, make_proxy: ProxyMaker, upstream: Upstream) -> None:
    """The client sees the refusal as it came; then what is true of the rest."""
    refusal = REFUSED[name]
    pool = Pool(make_proxy, upstream, "a", request_retry=0)
    pool.script["a"] = scripted(refusal)
    first = pool.ask()
    assert first.status == refusal.status
    if first.status == 429 and refusal.scope:  # without it Codex gives up
        assert refusal.rest - 3 <= float(first.headers["retry-after"]) <= refusal.rest + 1
    again = pool.ask()
    assert again.status == refusal.alone
    passing = refusal.status >= 500 or not refusal.scope
    assert pool.asked() == ("aa" if passing else "a")
    if again.status == 403:  # Codex would wait half an hour for it, in silence
        assert "retry-after" not in again.headers
        assert f"({refusal.status}: " in again.json()["error"]["message"]
    if again.status == 429 and not passing:
        wait = float(again.headers["retry-after"])
        assert refusal.rest - 3 <= wait <= refusal.rest + 1
        assert "claude-api-key[0] is free first" in again.json()["error"]["message"]


def test_an_upstream_writes_no_lines_of_the_log(
    make_proxy: ProxyMaker, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = make_proxy()
    upstream.reply(claude_error("rate_limit_error", "no\nINFO all is well\x1b[31m"), 429)
    assert proxy.ask("/v1/messages", {**CLAUDE_ASK, "model": "up-claude"}).status == 429
    assert "no INFO all is well [31m" in caplog.text


def test_a_refusal_is_explained_to_the_owner(
    make_proxy: ProxyMaker, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    pool = Pool(make_proxy, upstream, "ab", request_retry=0)
    text = "Third-party apps now draw from your extra usage, not your plan limits."
    pool.script["a"] = make_reply(claude_error("invalid_request_error", text), 400)
    got = pool.ask()
    assert (got.status, pool.asked()) == (200, "ab")
    assert "an API key is the other way" in caplog.text
    error = cp.ProxyError("forbidden", "no")
    error.body = b'{"error":{"type":"access_terminated_error"}}'
    assert "Kimi" in cp.explained(error)


LIMITS = [
    pytest.param(
        {"x-codex-primary-used-percent": "12.5", "x-codex-primary-window-minutes": "300", "x-codex-primary-reset-at": "1800000000",
         "x-codex-secondary-used-percent": "40", "x-codex-secondary-window-minutes": "10080", "x-codex-secondary-reset-after-seconds": "60"},
        [("5h", 12.5, 1_800_000_000.0), ("7d", 40.0, 1_000_060.0)], id="Codex"),
    pytest.param(
        unified(status="allowed", reset="1800000000", **{"5h_utilization": "0.25", "5h_reset": "1800000000", "7d_utilization": "0.5",
                "overage_utilization": "0"}),
        [("5h", 25.0, 1_800_000_000.0), ("7d", 50.0, None)], id="Claude"),
    pytest.param({"x-codex-primary-used-percent": "much"}, [], id="garbage"),
    pytest.param({"x-codex-primary-used-percent": "1", "x-codex-primary-window-minutes": "inf"}, [], id="an endless window"),
    pytest.param({"x-codex-primary-used-percent": "nan", "x-codex-primary-window-minutes": "300"}, [], id="no number"),
    pytest.param({"x-codex-primary-used-percent": "1", "x-codex-primary-window-minutes": "300", "x-codex-primary-reset-after-seconds": "inf"},
                 [("5h", 1.0, None)], id="no end"),
    pytest.param({"content-type": "x"}, [], id="nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("headers", "expected"), LIMITS)
def test_limits_in_headers(headers: dict[str, str], expected: list[Any]) -> None:
    assert [tuple(window) for window in cp.told_limits(headers, 1_000_000.0)] == expected


WAITS = [
    pytest.param({"retry-after": "7"}, b"", 7.0, id="header"),
    pytest.param({"retry-after": "7"}, b'{"error":{"resets_at":1000050}}', 50.0, id="resets_at first"),
    pytest.param(
        {},
        b'{"error":{"details":[{"metadata":{"quotaResetDelay":"1h16m0.6s"}}]}}',
        4560.6,
        id="quotaResetDelay",
    ),
    pytest.param(
        {}, b'{"error":{"message":"Your quota will reset after 12s."}}', 12.0, id="Google's message"
    ),
    pytest.param({}, b'{"error":{"details":[{"metadata":{"quotaResetDelay":"soon"}}]}}', None, id="garbage"),
    pytest.param({}, b"", None, id="nothing"),
    pytest.param({}, b'{"error":{"resets_at":"1970-01-12T13:47:00Z"}}', 20.0, id="a date"),
    pytest.param({}, b'{"error":{"resets_in_seconds":"7.5"}}', 7.0, id="resets_in_seconds"),
    pytest.param({}, b'{"error":{"resets_at":"1.2.3"}}', None, id="no number"),
    pytest.param({}, b'{"error":{"resets_in_seconds":"..5"}}', None, id="no seconds"),
    pytest.param({}, b'{"error":{"message":"reset after 1.2.3s"}}', None, id="no duration"),
    pytest.param({}, b'{"error":{"resets_at":%b}}' % (b"9" * 400), None, id="no date"),
]


@pytest.mark.parametrize(("headers", "body", "expected"), WAITS)
def test_how_long_to_wait(headers: dict[str, str], body: bytes, expected: float | None) -> None:
    error = cp.ProxyError("rate_limited", "slow down")
    error.headers, error.body = headers, body
    assert cp.wait_asked(error, 1_000_000.0) == expected


def test_a_preview_stands_in(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    models = [{"name": "gem-pro"}, {"name": "gem-pro-preview"}]
    for switch, status in ((False, 429), (True, 200)):
        pool = Pool(
            make_proxy, upstream, "a", entries={"a": {"models": models}}, request_retry=0,
            quota_exceeded={"switch-preview-model": switch},
        )  # fmt: skip
        pool.router.punish(
            pool.router.candidates("gem-pro")[0], cp.ProxyError("rate_limited", "x", retry_after=60)
        )
        assert pool.ask("gem-pro").status == status
    assert json.loads(upstream.seen[-1].body)["model"] == "gem-pro-preview"


@pytest.mark.parametrize("wait", ["inf", "1e300", "9" * 400])
def test_no_rest_is_endless(make_proxy: ProxyMaker, upstream: Upstream, wait: str) -> None:
    proxy = make_proxy()
    error = {"type": "error", "error": {"type": "rate_limit_error", "message": "no"}}
    upstream.reply(error, 429, {"retry-after": wait})
    for _ in range(2):
        got = proxy.ask("/v1/messages", {**CLAUDE_ASK, "model": "up-claude"})
        assert got.status == 429
    assert 0 < int(got.headers["retry-after"]) <= cp.LONGEST_REST


CUT = b"HTTP/1.1 %d No\r\nretry-after: 60\r\ncontent-length: 99\r\n\r\nhalf"
PACKED = b"HTTP/1.1 %d No\r\nretry-after: 60\r\ncontent-encoding: br\r\ncontent-length: 1\r\n\r\n?"


@pytest.mark.parametrize("raw", [CUT, PACKED], ids=["cut", "packed"])
@pytest.mark.parametrize("status", [401, 429])
def test_a_refusal_that_cannot_be_read_is_one(
    proxy: Proxy, upstream: Upstream, status: int, raw: bytes
) -> None:
    upstream.reply([raw % status, CLOSE], framing="raw")
    ask = {**CLAUDE_ASK, "model": "up-claude"}
    assert [proxy.ask("/v1/messages", ask).status for _ in range(2)] == [status, 429]
    assert len(upstream.seen) == 1


@pytest.mark.parametrize("status", [301, 302, 304, 307, 101])
def test_who_sends_us_elsewhere_has_not_answered(proxy: Proxy, upstream: Upstream, status: int) -> None:
    upstream.reply(b"<html>", status, {"location": "https://elsewhere.example/v1"})
    got = proxy.ask("/v1/messages", {**CLAUDE_ASK, "model": "up-claude"})
    assert got.status == 502
    assert "'https://elsewhere.example/v1'" in got.json()["error"]["message"]


ODD_REFUSALS = [
    pytest.param(b'{"error":{"message":5,"code":{},"type":[]}}', id="types"),
    pytest.param(b'{"error":{"message":null,"details":5}}', id="no details"),
    pytest.param(b"[" * 100_000, id="deep"),
    pytest.param(b"<" * 200_000, id="no page"),
]


@pytest.mark.parametrize("body", ODD_REFUSALS)
@pytest.mark.parametrize("dialect", list(cp.DIALECTS))
def test_an_odd_refusal_is_one(proxy: Proxy, upstream: Upstream, dialect: str, body: bytes) -> None:
    upstream.reply(body, 429)

    def ask() -> None:
        assert proxy.ask("/v1/chat/completions", {"model": f"up-{dialect}", "messages": HI}).status == 429

    assert effort(ask) < 20


@pytest.mark.parametrize("word", ["model is not supported", "bad-credentials"])
def test_what_a_client_says_is_no_refusal(proxy: Proxy, upstream: Upstream, word: str) -> None:
    body = {"model": "up-claude", "messages": [{"role": word, "content": "hi"}]}
    got = proxy.ask("/v1/chat/completions", body)
    assert (got.status, word in got.json()["error"]["message"]) == (400, True)
    upstream.reply(ANSWER)
    assert proxy.ask("/v1/messages", {**CLAUDE_ASK, "model": "up-claude"}).status == 200
