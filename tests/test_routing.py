"""Which account serves which request, and which rests."""

from __future__ import annotations

import time
from collections import Counter

import pytest

import cliproxy as cp
from support.accounts import ANSWER, CLAUDE_ASK, HI, House, Json, Pool
from support.proxy import ProxyMaker
from support.upstream import Clock, Upstream, make_reply


def claude_error(kind: str, message: str = "no") -> Json:
    return {"type": "error", "error": {"type": kind, "message": message}}


def unified(**cells: str) -> dict[str, str]:
    return {f"anthropic-ratelimit-unified-{name.replace('_', '-')}": value for name, value in cells.items()}


def test_growing_rests(clock: Clock) -> None:
    """1 s, 2 s, 4 s, ... up to half an hour; refusals of one moment count once; success forgets."""

    def slow_down() -> cp.ProxyError:
        return cp.ProxyError("rate_limited", "slow down")

    router = cp.Router(clock, clock)
    entry = {"api-key": "k", "models": [{"name": "up"}]}
    account = cp.Account("one", cp.PROVIDERS["claude"], entry)
    router.configure([account], cp.load_config(None))
    one = cp.Candidate(account, "up")

    def rest() -> float:
        with pytest.raises(cp.ProxyError) as caught:
            router.candidates("up")
        return caught.value.retry_after or 0.0

    waits = []
    for _ in range(13):
        router.punish(one, slow_down())
        router.punish(one, slow_down())  # was on its way at the same time
        waits.append(rest())
        clock.turn(waits[-1])
    assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 1800, 1800]
    router.reward(one)
    router.punish(one, slow_down())
    assert rest() == 1


@pytest.mark.parametrize(
    ("strategy", "asked"),
    [("round-robin", "abcabc"), ("fill-first", "aaaaaa"), ("weighted-round-robin", "aabaab")],
)
def test_strategies(make_proxy: ProxyMaker, upstream: Upstream, strategy: str, asked: str) -> None:
    entries = {"a": {"weight": 4}, "b": {"weight": 2}, "c": {"weight": 0}}
    pool = Pool(make_proxy, upstream, "abc", entries=entries, routing={"strategy": strategy})
    for _ in range(6):
        pool.ask()
    smooth = {"aabaab": "abaaba"}.get(asked, asked)
    assert pool.asked() == smooth


def test_priority_comes_before_turns(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    entries = {"b": {"priority": 5}, "d": {"priority": 5}}
    pool = Pool(make_proxy, upstream, "abcd", entries=entries, request_retry=0)
    for _ in range(4):
        pool.ask()
    assert pool.asked() == "bdbd"
    for key in "bd":
        pool.script[key] = make_reply(claude_error("rate_limit_error"), 429, {"retry-after": "9"})
    pool.ask()
    assert pool.asked()[:2] == "bd"
    for _ in range(4):
        pool.ask()
    assert Counter(pool.asked()) == {"a": 2, "c": 2}


def test_at_most_so_many_accounts(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    pool = Pool(make_proxy, upstream, "abcd", max_retry_credentials=2, request_retry=0)
    for key in "abcd":
        pool.script[key] = make_reply(claude_error("api_error"), 500)
    assert pool.ask().status == 500
    assert pool.asked() == "ab"


# fmt: off
OFF = [  # settings, the entry's own -> does the account rest after 429, 500, 404, 403?
    pytest.param({}, {}, (True, True, True, True), id="on"),
    pytest.param({"disable_cooling": True}, {}, (False, False, False, True), id="off"),
    pytest.param({"disable_cooling": True}, {"disable-cooling": False}, (True, True, True, True), id="on for this one"),
    pytest.param({}, {"disable-cooling": True}, (False, False, False, True), id="off for this one"),
]
# fmt: on


@pytest.mark.parametrize(("config", "entry", "expected"), OFF)
def test_cooling_can_be_switched_off(
    make_proxy: ProxyMaker, upstream: Upstream, config: Json, entry: Json, expected: tuple[bool, ...]
) -> None:
    found = []
    for status in (429, 500, 404, 403):
        pool = Pool(make_proxy, upstream, "a", entries={"a": entry}, request_retry=0, **config)
        pool.script["a"] = make_reply(claude_error("api_error"), status, {"retry-after": "9"})
        pool.ask()
        found.append(bool(pool.rests()))
    assert tuple(found) == expected


def test_5xx_without_a_rest(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    pool = Pool(make_proxy, upstream, "a", request_retry=0, transient_error_cooldown_seconds=-1)
    pool.script["a"] = make_reply(claude_error("api_error"), 500)
    pool.ask()
    assert not pool.rests()


@pytest.mark.parametrize(("retry", "own", "asked"), [(2, None, "aaa"), (2, 0, "a"), (0, 1, "aa")])
def test_rounds(make_proxy: ProxyMaker, upstream: Upstream, retry: int, own: int | None, asked: str) -> None:
    pool = Pool(make_proxy, upstream, "a", entries={"a": {"request-retry": own}}, request_retry=retry)
    pool.script["a"] = make_reply(claude_error("rate_limit_error"), 429, {"retry-after-ms": "5"})
    assert pool.ask().status == 429
    assert pool.asked() == asked


def test_no_round_for_a_rest_that_is_too_long(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    pool = Pool(make_proxy, upstream, "ab", request_retry=3, max_retry_interval=5)
    for key in "ab":
        pool.script[key] = make_reply(claude_error("rate_limit_error"), 429, {"retry-after": "6"})
    assert pool.ask().status == 429
    assert pool.asked() == "ab"


def test_a_round_for_the_one_that_is_free_soon(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    pool = Pool(make_proxy, upstream, "ab", request_retry=1)
    pool.script["a"] = make_reply(claude_error("rate_limit_error"), 429, {"retry-after-ms": "5"})
    pool.script["b"] = make_reply(claude_error("permission_error"), 403)
    pool.ask()
    assert pool.asked() == "aba"


def test_nothing_is_asked_again_after_the_first_byte(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    pool = Pool(make_proxy, upstream, "ab")
    begin = b'event: message_start\ndata: {"type":"message_start","message":{}}\n\n'
    pool.script["a"] = make_reply([begin, "close"], headers={"content-type": "text/event-stream"})
    got = pool.ask(stream=True)
    assert (got.status, pool.asked()) == (200, "a")
    assert got.payloads()[-1]["type"] == "error"


# Sessions

# fmt: off
SESSIONS = [
    pytest.param({"x-claude-code-session-id": "s"}, {"metadata": {"user_id": "u"}}, "s", id="Claude Code's header"),
    pytest.param({"session_id": "h"}, {"metadata": {"user_id": "user_1_account_2_session_x-y"}}, "x-y", id="old user id"),
    pytest.param({}, {"metadata": {"user_id": '{"device_id":"d","session_id":"j"}'}}, "j", id="new user id"),
    pytest.param({"x-session-id": "b", "session_id": "a"}, {"prompt_cache_key": "k"}, "a", id="Codex's header"),
    pytest.param({"x-amp-thread-id": "T-1"}, {"prompt_cache_key": "k"}, "T-1", id="Amp"),
    pytest.param({}, {"prompt_cache_key": "k", "conversation": "c"}, "k", id="cache key"),
    pytest.param({}, {"conversation": {"id": "c"}}, "c", id="conversation"),
    pytest.param({}, {"metadata": {"user_id": "plain"}}, "plain", id="user"),
    pytest.param({"session_id": "x" * 257}, {"conversation_id": "c"}, "c", id="too long"),
    pytest.param({"session_id": "a\tb"}, {"conversation_id": "c"}, "c", id="unprintable"),
    pytest.param({}, {"metadata": "odd", "conversation": 7}, "", id="of another form"),
    pytest.param({}, {}, "", id="nothing"),
]
# fmt: on


@pytest.mark.parametrize(("headers", "body", "expected"), SESSIONS)
def test_what_names_a_session(headers: dict[str, str], body: Json, expected: str) -> None:
    assert cp.session_of(headers, body) == expected


def test_a_session_by_its_opening() -> None:
    first = {"messages": [{"role": "system", "content": "S"}, *HI]}
    later = {"messages": [*first["messages"], {"role": "assistant", "content": "x"}]}
    other = {"messages": [{"role": "user", "content": "another"}]}
    names = [
        cp.session_of({}, body)
        for body in (first, later, other, {"input": "hi"}, {"system": "S", "contents": HI})
    ]
    assert names[0] == names[1]
    assert len(set(names)) == 4


def test_a_session_stays_with_its_account(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    routing = {"session-affinity": True, "session-affinity-ttl": "1h"}
    pool = Pool(make_proxy, upstream, "abc", routing=routing, request_retry=0)
    for _ in range(3):
        pool.ask(headers={"session_id": "one"})
        pool.ask(headers={"session_id": "two"})
    assert pool.asked() == "ababab"
    pool.script["a"] = make_reply(claude_error("rate_limit_error"), 429, {"retry-after": "9"})
    pool.ask(headers={"session_id": "one"})
    moved = pool.asked()
    assert moved[0] == "a"
    pool.ask(headers={"session_id": "one"})
    assert pool.asked() == moved[1]


def test_a_session_outranks_priority(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    routing = {"session-affinity": True}
    pool = Pool(make_proxy, upstream, "ab", entries={"a": {"priority": 1}}, routing=routing, request_retry=0)
    pool.script["a"] = make_reply(claude_error("rate_limit_error"), 429, {"retry-after-ms": "1"})
    pool.ask(headers={"session_id": "s"})
    del pool.script["a"]
    pool.ask(headers={"session_id": "s"})
    pool.ask(headers={"session_id": "t"})
    assert pool.asked() == "abba"


# What outlives the process


def test_rests_and_limits_outlive_a_restart(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    pool = Pool(make_proxy, upstream, "ab", request_retry=0)
    headers = {
        **unified(status="rejected", reset=str(int(time.time()) + 600)),
        **unified(**{"5h_utilization": "0.5"}),
    }
    pool.script["a"] = make_reply(claude_error("rate_limit_error"), 429, headers)
    pool.ask()
    pool.asked()
    app = pool.proxy.app
    app.save_state()
    state = pool.proxy.auth_dir / ".cliproxy" / "state"
    assert state.stat().st_mode & 0o777 == 0o600
    again = cp.App(app.config_file, app.store, {})
    names = [c.account.name for _ in range(3) for c in again.router.candidates("up")]
    assert set(names) == {"claude-api-key[1]"}
    state.write_text('{"cooldowns": [{"account": "x"}], "limits": 7}')
    assert len(cp.App(app.config_file, app.store, {}).router.candidates("up")) == 2
    state.write_text("half a fi")
    assert len(cp.App(app.config_file, app.store, {}).router.candidates("up")) == 2


def test_a_folder_that_cannot_be_written(
    make_proxy: ProxyMaker, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    pool = Pool(make_proxy, upstream, "a")
    (pool.proxy.auth_dir / ".cliproxy").write_text("a file is in the way")
    for _ in range(3):
        pool.ask()
        pool.proxy.app.poll()
    assert caplog.text.count("no rest will outlive a restart") == 1


def test_another_key_in_the_same_place_is_another_account(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    key = {"base-url": upstream.url, "models": [{"name": "m"}]}
    keys = [{**key, "api-key": name} for name in ("tired", "fresh")]
    proxy = make_proxy(claude_api_key=keys)
    upstream.reply(claude_error("rate_limit_error"), 429, {"retry-after": "3600"})
    ask = {**CLAUDE_ASK, "model": "m"}
    upstream.reply(ANSWER)
    assert proxy.ask("/v1/messages", ask).status == 200
    proxy.write({**proxy.settings, "claude-api-key": keys[1:]})
    proxy.app.poll()
    upstream.reply(ANSWER)
    assert proxy.ask("/v1/messages", ask).status == 200


def test_endpoints_of_one_name_are_two_accounts(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    entry = {"name": "x", "models": [{"name": "m"}], "api-key-entries": [{"api-key": "k"}]}
    entries = [{**entry, "base-url": f"{upstream.url}/{place}"} for place in "ab"]
    proxy = make_proxy(openai_compatibility=entries)
    upstream.routes["/a/chat/completions"] = make_reply({"error": {"message": "no"}}, 429)
    upstream.routes["/b/chat/completions"] = make_reply({"choices": []})
    for _ in range(3):
        got = proxy.ask("/v1/chat/completions", {"model": "m", "messages": HI})
        assert got.status == 200


def test_half_a_character_names_no_session(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = make_proxy(routing={"session-affinity": True})
    upstream.reply(ANSWER)
    body = {**CLAUDE_ASK, "model": "up-claude", "metadata": {"user_id": "\ud800"}}
    assert proxy.ask("/v1/messages", body).status == 200


def test_rests_are_bounded(clock: Clock) -> None:
    router = cp.Router(clock, clock)
    account = cp.Account("one", cp.PROVIDERS["claude"], {"api-key": "k"})
    router.configure([account], cp.load_config(None))
    for number in range(cp.CURSORS + 5):
        router.punish(cp.Candidate(account, f"claude-{number}"), cp.ProxyError("not_found", "no such model"))
    state = router.state()
    assert state
    assert len(state["cooldowns"]) == cp.CURSORS


def test_limits_are_kept(house: House) -> None:
    file = house.add(ends=3600)
    house.upstream.routes["/v1/messages"] = make_reply(
        ANSWER, headers=unified(status="allowed", **{"5h_utilization": "0.25", "5h_reset": "1800000000"})
    )
    assert house.ask().status == 200
    state = house.proxy.app.router.state()
    assert state
    assert state["limits"][file]["windows"] == [["5h", 25.0, 1_800_000_000.0]]
    assert state["answers"] == {file: 1}
    assert house.proxy.app.router.state() is None
