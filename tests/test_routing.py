"""Which account serves which request, and which rests."""

from __future__ import annotations

import contextlib
import json
import time
from collections import Counter
from typing import Any, Callable

import pytest

import cliproxy as cp
from support.accounts import ANSWER, CLAUDE_ASK, HI, House, Json, Pool, key_of
from support.models import SSE
from support.proxy import ProxyMaker
from support.upstream import CLOSE, Clock, Upstream, make_reply
from support.world import World


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


def test_nothing_is_asked_again_after_the_first_content(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    pool = Pool(make_proxy, upstream, "ab")
    said = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "x"}}
    begun = cp.sse_frame({"type": "message_start", "message": {}}) + cp.sse_frame(said)
    pool.script["a"] = make_reply([begun, "close"], headers={"content-type": "text/event-stream"})
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
    upstream.routes["/b/chat/completions"] = make_reply({"choices": [{}]})
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


# What ends a rest, and what none comes of

QUOTA = make_reply(
    {
        "type": "error",
        "error": {"type": "usage_limit_reached", "resets_in_seconds": 561_634, "message": "no"},
    },
    429,
)
GONE = make_reply({"error": {"message": "Not Found"}}, 404)
SIDE_ROUTES = ["/v1/embeddings", "/v1/images/generations", "/v1/audio/speech"]


@pytest.mark.parametrize("path", SIDE_ROUTES)
@pytest.mark.parametrize("status", [404, 429, 500, 401])
def test_a_side_route_tells_nothing_of_talks(
    make_proxy: ProxyMaker, upstream: Upstream, path: str, status: int
) -> None:
    proxy = make_proxy()
    upstream.routes[path] = lambda _: make_reply({"error": {"message": "no"}}, status)
    choice = {"index": 0, "message": {"role": "assistant", "content": "hi"}, "finish_reason": "stop"}
    upstream.routes["/v1/chat/completions"] = lambda _: make_reply({"choices": [choice]})
    assert proxy.ask(path, {"model": "up-chat", "input": "x"}).status == status
    assert proxy.ask("/v1/chat/completions", {"model": "up-chat", "messages": HI}).status == 200
    assert len(proxy.app.router.report(proxy.app.router.offers.accounts[-1])["cooling"]) == (status != 404)


def test_a_route_that_lacks_is_no_model_that_lacks(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = make_proxy()
    upstream.routes["/v1/responses/compact"] = lambda _: GONE
    upstream.routes["/v1/responses"] = lambda _: make_reply(
        {"object": "response", "status": "completed", "output": []}
    )
    ask = {"model": "up-responses", "input": "x"}
    assert [proxy.ask("/v1/responses/compact", ask).status for _ in range(2)] == [404, 404]
    assert proxy.ask("/v1/responses", ask).status == 200


def test_side_routes_rest_by_themselves(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    keys = [{"api-key": key} for key in "ab"]
    entry = {
        "name": "up",
        "base-url": f"{upstream.url}/v1",
        "models": [{"name": "m"}],
        "api-key-entries": keys,
    }
    proxy = make_proxy(openai_compatibility=[entry])
    upstream.routes["/v1/embeddings"] = lambda seen: (
        QUOTA if key_of(seen) == "a" else make_reply({"data": [], "object": "list"})
    )
    assert [proxy.ask("/v1/embeddings", {"model": "m", "input": "x"}).status for _ in range(3)] == [200] * 3
    assert [key_of(seen) for seen in upstream.seen] == ["a", "b", "b", "b"]


@pytest.mark.parametrize("status", [401, 404, 405, 500])
def test_a_relay_that_cannot_count(make_proxy: ProxyMaker, upstream: Upstream, status: int) -> None:
    pool = Pool(make_proxy, upstream, "a")
    upstream.routes["/v1/messages/count_tokens"] = lambda _: make_reply(claude_error("x"), status)
    got = pool.proxy.ask("/v1/messages/count_tokens", {**CLAUDE_ASK, "model": "up"})
    assert (got.status, got.headers["x-cliproxy-estimate"]) == (200, "bytes/4")
    assert (pool.rests(), pool.ask().status) == ({}, 200)


CORRECTED = [
    pytest.param({"base-url": "URL/wrong"}, {"base-url": "URL"}, id="base-url"),
    pytest.param({"headers": {"x-team": "a"}}, {"headers": {"x-team": "b"}}, id="headers"),
    pytest.param({"api-key": "old"}, {"api-key": "new"}, id="api-key"),
]


@pytest.mark.parametrize(("wrong", "right"), CORRECTED)
@pytest.mark.parametrize("restart", [False, True])
def test_a_corrected_entry_is_tried_at_once(
    make_proxy: ProxyMaker, upstream: Upstream, wrong: Json, right: Json, restart: bool
) -> None:
    def entry(own: Json) -> list[Json]:
        own = {
            key: value.replace("URL", upstream.url) if key == "base-url" else value
            for key, value in own.items()
        }
        return [{"api-key": "k", "base-url": upstream.url, "models": [{"name": "up"}], **own}]

    proxy = make_proxy(claude_api_key=entry(wrong))
    upstream.reply(claude_error("not_found_error"), 404)
    assert [proxy.ask("/v1/messages", {**CLAUDE_ASK, "model": "up"}).status for _ in range(2)] == [404, 404]
    assert len(upstream.seen) == 1, "it rests"
    config = json.loads(proxy.path.read_text())
    proxy.write({**config, "claude-api-key": entry(right)})
    proxy.app.save_state()
    app = cp.App(cp.ConfigFile(proxy.path), proxy.app.store, {}) if restart else proxy.app
    app.poll()
    assert len(app.router.candidates("up")) == 1


def out_of_quota(house: House) -> None:
    house.upstream.routes["/v1/messages"] = lambda _: QUOTA
    assert house.ask().status == 429
    house.upstream.routes["/v1/messages"] = lambda _: make_reply(ANSWER)
    assert house.ask().status == 429, "it rests for days"
    assert house.proxy.app.router.report(house.account())["state"] == "cooling"


def edit(house: House, **changes: Any) -> None:
    path = house.proxy.auth_dir / "claude-a.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    house.proxy.app.poll()


def put_back(house: House) -> None:
    path = house.proxy.auth_dir / "claude-a.json"
    old = path.read_bytes()
    path.unlink()
    house.proxy.app.poll()
    path.write_bytes(old)
    house.proxy.app.poll()


def re_enable(house: House) -> None:
    edit(house, disabled=True)
    edit(house, disabled=False)


def stop_cooling(house: House) -> None:
    house.proxy.write({**json.loads(house.proxy.path.read_text()), "disable-cooling": True})
    house.proxy.app.poll()


def command(house: House, *words: str) -> None:
    """Run a command beside the server, as another process does."""
    assert cp.main([*words, "--config", str(house.proxy.path)]) == 0
    house.proxy.app.poll()


ENDS: dict[str, Callable[[House], None]] = {
    "disable-cooling": stop_cooling,
    "an edit": lambda house: edit(house, note="x"),
    "disabled and enabled": re_enable,
    "removed and put back": put_back,
    "wake": lambda house: command(house, "accounts", "wake"),
    "wake, by name": lambda house: command(house, "accounts", "wake", "claude-a"),
    "refresh": lambda house: command(house, "accounts", "refresh", "claude-a"),
    "limits with room": lambda house: command(house, "accounts", "--limits"),
}


@pytest.mark.parametrize("way", ENDS)
def test_news_end_a_rest(house: House, way: str) -> None:
    house.add(ends=3600)
    out_of_quota(house)
    ENDS[way](house)
    assert house.ask().status == 200


def test_who_is_woken_while_nobody_serves_is_awake_later(house: House) -> None:
    house.add(ends=3600)
    out_of_quota(house)
    app = house.proxy.app
    app.save_state()
    cp.tell_awake(app.store.folder, "claude-a.json")
    again = cp.App(app.config_file, app.store, {})
    assert [c.account.name for c in again.router.candidates("claude-sonnet-4-6")] == ["claude-a.json"]


def test_limits_without_room_end_nothing(house: House, world: World) -> None:
    house.add(ends=3600)
    out_of_quota(house)
    world.used = 100.0
    command(house, "accounts", "--limits")
    assert house.ask().status == 429


def test_renewing_tokens_by_itself_is_no_news(house: House) -> None:
    house.add(ends=3600)
    out_of_quota(house)
    account = house.account()
    house.proxy.app.renew(account, account.token)
    house.proxy.app.poll()
    assert house.ask().status == 429


def test_a_wake_is_not_for_what_comes_after_it(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    pool = Pool(make_proxy, upstream, "ab", request_retry=0)
    pool.proxy.app.wake("claude-api-key[0]")
    pool.script = dict.fromkeys("ab", QUOTA)
    pool.ask()
    pool.proxy.app.poll()
    with pytest.raises(cp.ProxyError):
        pool.router.candidates("up")
    pool.proxy.app.wake("claude-api-key[1]")
    assert [c.account.name for c in pool.router.candidates("up")] == ["claude-api-key[1]"]


def test_while_all_rest_one_is_asked_now_and_then(clock: Clock) -> None:
    """After 30 s, then at growing distances of at most 10 minutes; each in its turn; an answer ends it."""
    router = cp.Router(clock, clock)
    entry = {"api-key": "k", "models": [{"name": "up"}]}
    accounts = [cp.Account(name, cp.PROVIDERS["claude"], entry) for name in ("one", "two")]
    router.configure(accounts, cp.load_config(None))
    for account in accounts:
        router.punish(cp.Candidate(account, "up"), cp.ProxyError("rate_limited", "no", retry_after=9e9))
    began, asked = clock(), []
    while clock() < began + 3600:
        clock.turn(1.0)
        with contextlib.suppress(cp.ProxyError):
            (candidate,) = router.candidates("up")
            asked.append((clock() - began, candidate.account.name))
            router.punish(candidate, cp.ProxyError("rate_limited", "no", retry_after=9e9))
            with pytest.raises(cp.ProxyError):
                router.candidates("up")
    times = [moment for moment, _ in asked]
    assert times[:5] == [30, 90, 210, 450, 930]
    assert [after - before for before, after in zip(times[4:], times[5:])] == [600] * len(times[5:])
    assert [name for _, name in asked[:4]] == ["one", "two", "one", "two"]
    clock.turn(600.0)
    (candidate,) = router.candidates("up")
    router.reward(candidate)
    assert router.candidates("up") == [candidate]


@pytest.mark.parametrize("kind", ["billing", "forbidden"])
def test_who_has_just_paid_is_served_soon(clock: Clock, kind: str) -> None:
    router = cp.Router(clock, clock)
    account = cp.Account("one", cp.PROVIDERS["claude"], {"api-key": "k", "models": [{"name": "up"}]})
    router.configure([account], cp.load_config(None))
    router.punish(cp.Candidate(account, "up"), cp.ProxyError(kind, "no"))
    for _ in range(9):
        clock.turn(30.0)
        (candidate,) = router.candidates("up")
        router.punish(candidate, cp.ProxyError(kind, "no"))


def test_a_probe_goes_out_over_the_wire(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    pool = Pool(make_proxy, upstream, "ab", request_retry=0)
    pool.script = dict.fromkeys("ab", QUOTA)
    assert pool.ask().status == 429
    assert pool.asked() == "ab"
    state = pool.router.state()
    assert state
    for rest in state["cooldowns"]:
        assert rest["end"] - time.time() < 561_635
        rest["since"] -= 31
    pool.router.restore(state)
    pool.script = {}
    assert [pool.ask().status, pool.asked()] == [200, "a"]
    assert [pool.ask().status, pool.asked()] == [200, "a"]


def test_a_conversation_that_is_bound_moves_no_turn(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    pool = Pool(make_proxy, upstream, "ab", routing={"session-affinity": True}, request_retry=0)
    for number in range(6):
        for _ in range(2):
            pool.ask(headers={"session_id": f"conversation {number}"})
    assert pool.asked() == "aabbaabbaabb"


OF_THE_ACCOUNT = [
    "This organization has been disabled.",
    "Third-party apps now draw from your extra usage, not your plan limits. Add more at claude.ai/settings/usage",
]


@pytest.mark.parametrize("text", OF_THE_ACCOUNT)
def test_a_400_of_the_account(make_proxy: ProxyMaker, upstream: Upstream, text: str) -> None:
    pool = Pool(make_proxy, upstream, "ab", request_retry=0)
    pool.script["a"] = make_reply(claude_error("invalid_request_error", text), 400)
    assert [pool.ask().status for _ in range(3)] == [200] * 3
    assert (pool.asked(), list(pool.rests())) == ("abbb", [("0", "")])
    alone = Pool(make_proxy, upstream, "a", request_retry=0)
    alone.script["a"] = pool.script["a"]
    alone.ask()
    got = alone.ask()
    assert (got.status, text[:30] in got.json()["error"]["message"]) == (403, True)


@pytest.mark.parametrize("status", [500, 502, 503, 529])
def test_a_single_bad_moment_is_not_told(make_proxy: ProxyMaker, upstream: Upstream, status: int) -> None:
    pool = Pool(make_proxy, upstream, "a", request_retry=3)
    replies = [make_reply(claude_error("api_error"), status), make_reply(ANSWER)]
    upstream.routes["/v1/messages"] = lambda _: replies.pop(0)
    assert pool.ask().status == 200
    upstream.routes["/v1/messages"] = lambda _: make_reply(claude_error("api_error"), status)
    upstream.seen.clear()
    assert (pool.ask().status, len(upstream.seen)) == (status, 2), "once, and not more"
    pool = Pool(make_proxy, upstream, "ab", request_retry=3)
    upstream.routes["/v1/messages"] = lambda _: make_reply(claude_error("api_error"), status)
    upstream.seen.clear()
    assert (pool.ask().status, len(upstream.seen)) == (status, 2), "there is another one"


OVERLOADED = cp.sse_frame(claude_error("overloaded_error"), "error")


@pytest.mark.parametrize(
    ("pieces", "framing"), [([OVERLOADED], ""), ([CLOSE], "raw")], ids=["an error in a 200", "no answer"]
)
def test_a_bad_moment_of_another_form(
    make_proxy: ProxyMaker, upstream: Upstream, pieces: list[Any], framing: str
) -> None:
    pool = Pool(make_proxy, upstream, "a", request_retry=3)
    bad = make_reply(pieces, headers=SSE, framing=framing) if framing else make_reply(pieces, headers=SSE)
    replies = [bad, make_reply(ANSWER)]
    upstream.routes["/v1/messages"] = lambda _: replies.pop(0)
    assert (pool.ask(stream=True).status, replies) == (200, [])


def test_a_probe_of_a_client_rests_nobody(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    pool = Pool(make_proxy, upstream, "a", request_retry=0)
    pool.script["a"] = QUOTA
    assert (pool.ask(max_tokens=1).status, pool.rests()) == (429, {})
    pool.script.clear()
    assert pool.ask().status == 200
