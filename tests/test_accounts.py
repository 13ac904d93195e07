"""Accounts in the running proxy: tokens that are renewed, who is asked, who rests, and for how long."""

from __future__ import annotations

import json
import re
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import pytest

import cliproxy as cp
from support.proxy import Got, Proxy, ProxyMaker
from support.upstream import CLOSE, DEADLINE, Clock, Reply, Seen, Upstream, make_reply
from support.world import Fault, World

Json = cp.Json
HI = [{"role": "user", "content": "hi"}]
CLAUDE_ASK = {"model": "claude-sonnet-4-6", "max_tokens": 9, "messages": HI}
ANSWER = {"type": "message", "role": "assistant", "content": [{"type": "text", "text": "hello"}]}


class House:
    """A proxy whose logins are at the world, and whose Claude API is the scripted upstream."""

    def __init__(self, world: World, make_proxy: ProxyMaker, upstream: Upstream, **config: Any) -> None:
        providers = world.config().data["providers"]
        for name in ("claude", "codex"):
            providers[name]["base-url"] = upstream.url
        self.world, self.upstream = world, upstream
        self.proxy: Proxy = make_proxy(providers=providers, claude_api_key=[], **config)
        upstream.routes["/v1/messages"] = self.serve

    def serve(self, seen: Seen) -> Reply:
        token = seen.headers["authorization"].partition("Bearer ")[2]
        if self.world.access.get(token) == "claude":
            return make_reply(ANSWER)
        error = {"type": "authentication_error", "message": "OAuth token has expired"}
        return make_reply({"type": "error", "error": error}, 401)

    def add(self, name: str = "a", *, ends: float = -60.0, **fields: Any) -> str:
        """Put a Claude credential there; `ends` in seconds from now."""
        tokens = self.world.tokens("claude")
        if ends < 0:
            del self.world.access[tokens["access_token"]]
        file = f"claude-{name}.json"
        data = {
            "type": "claude", "email": f"{name}@example.com", "id_token": "",
            "access_token": tokens["access_token"], "refresh_token": tokens["refresh_token"],
            "expired": cp.write_time(time.time() + ends), "last_refresh": cp.write_time(time.time() - 3600), **fields,
        }  # fmt: skip
        (self.proxy.auth_dir / file).write_text(json.dumps(data))
        self.proxy.app.poll()
        return file

    def ask(self) -> Got:
        return self.proxy.ask("/v1/messages", CLAUDE_ASK)

    def account(self, file: str = "claude-a.json") -> cp.Account:
        return next(a for a in self.proxy.app.router.accounts() if a.name == file)

    def file(self, file: str = "claude-a.json") -> Json:
        data: Json = json.loads((self.proxy.auth_dir / file).read_text())
        return data

    @property
    def refreshes(self) -> int:
        return self.world.count("/claude/token")


@pytest.fixture
def house(world: World, make_proxy: ProxyMaker, upstream: Upstream) -> House:
    return House(world, make_proxy, upstream)


# Tokens


def test_an_expired_token_is_renewed_on_use(house: House) -> None:
    house.add(note="kept")
    assert house.ask().status == 200
    assert house.refreshes == 1
    data = house.file()
    assert data["access_token"] == house.account().token
    assert data["note"] == "kept"
    assert house.ask().status == 200
    assert house.refreshes == 1


def test_fifty_at_once_make_one_refresh(house: House) -> None:
    house.add()
    with ThreadPoolExecutor(50) as pool:
        statuses = Counter(got.status for got in pool.map(lambda _: house.ask(), range(50)))
    assert statuses == {200: 50}
    assert house.refreshes == 1


def test_fifty_at_once_share_a_failure(house: House) -> None:
    house.add()
    gate = threading.Event()
    account = house.account()
    with ThreadPoolExecutor(8) as pool, account.refreshing:
        house.world.faults["claude/token"] += [Fault(500)] * 3
        asks = [pool.submit(house.ask) for _ in range(8)]
        gate.wait(0.3)  # they are all waiting by now
        assert not any(ask.done() for ask in asks)
        account.refreshing.release()
        try:
            statuses = [ask.result(DEADLINE).status for ask in asks]
        finally:
            account.refreshing.acquire()
    assert set(statuses) == {500}
    assert house.refreshes == 3  # the tries of one refresh


def test_two_programs_on_one_folder_make_one_refresh(house: House) -> None:
    """Two stores have two locks each: only the files keep them apart."""
    house.add()
    app = house.proxy.app
    store = cp.Store(house.proxy.auth_dir)
    store.scan()
    other = cp.App(app.config_file, store, {})
    (theirs,) = [a for a in other.router.accounts() if a.credential]
    stale = theirs.token
    with ThreadPoolExecutor(20) as pool:
        renewals = [pool.submit(other.renew, theirs, stale) for _ in range(5)]
        asks = [pool.submit(house.ask) for _ in range(15)]
        assert {ask.result().status for ask in asks} == {200}
        assert [renewal.result() for renewal in renewals] == [None] * 5
    assert theirs.token == house.account().token
    assert house.refreshes == 1


def test_a_401_is_a_new_token_and_the_same_account(house: House) -> None:
    house.add("a", ends=3600)
    house.add("b", ends=3600)
    house.world.access.clear()  # both are revoked, long before their time
    got = house.ask()
    assert got.status == 200
    tokens = [seen.headers["authorization"] for seen in house.upstream.seen]
    assert len(tokens) == 2
    assert tokens[0] != tokens[1]
    assert house.refreshes == 1
    assert house.file("claude-a.json")["access_token"] in tokens[1]


def test_a_second_401_is_final(house: House) -> None:
    house.add("a", ends=3600)
    error = {"type": "error", "error": {"type": "authentication_error", "message": "no"}}
    house.upstream.routes["/v1/messages"] = make_reply(error, 401)
    assert house.ask().status == 401
    assert (len(house.upstream.seen), house.refreshes) == (2, 1)
    got = house.ask()
    assert (got.status, len(house.upstream.seen)) == (403, 2)
    said = re.search(r"free first, in (\d+) s", got.body.decode())
    assert said is not None
    assert 1790 < int(said[1]) <= 1800


def test_a_new_token_ends_the_rest_of_the_old_one(house: House) -> None:
    house.add("a", ends=3600)
    error = {"type": "error", "error": {"type": "authentication_error", "message": "no"}}
    house.upstream.routes["/v1/messages"] = make_reply(error, 401)
    house.ask()
    house.upstream.routes["/v1/messages"] = house.serve
    house.add("a", ends=3600)  # somebody logs in anew
    assert house.ask().status == 200


def test_a_token_that_ends_while_its_account_rests_is_renewed(house: House) -> None:
    """Both ways: by the keeper, whatever the account does; and on use, if the rest was for the token."""
    file = house.add("a", ends=3600)
    limit = {"type": "error", "error": {"type": "rate_limit_error", "message": "slow down"}}
    house.upstream.routes["/v1/messages"] = make_reply(limit, 429, {"retry-after": "3000"})
    assert house.ask().status == 429
    house.proxy.app.store.merge(file, {"expired": cp.write_time(time.time() - 5)})
    house.proxy.app.poll()
    house.proxy.app.renew_due()
    assert house.refreshes == 1
    assert not house.account().expired(time.time())
    assert house.ask().status == 429  # it still rests


def test_right_after_start(house: House, world: World) -> None:
    """The file was there, expired, before the proxy began."""
    house.add()
    app = cp.App(house.proxy.app.config_file, house.proxy.app.store, {})
    app.renew_due()
    assert house.refreshes == 1


def test_renewing_ahead_of_time(house: House, caplog: pytest.LogCaptureFixture) -> None:
    house.add("soon", ends=600)  # of a life of 4200 s
    house.add("later", ends=9000)
    app = house.proxy.app
    app.renew_due()
    assert house.refreshes == 1
    app.renew_due()
    assert house.refreshes == 1
    house.world.faults["claude/token"] += [Fault(503)] * 6
    house.add("soon", ends=600)
    app.renew_due()
    app.renew_due()  # a failure: not again at once
    assert house.refreshes == 4
    assert "claude-access" not in caplog.text


def test_the_keeper_runs_until_it_is_stopped(house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cp, "RENEW_INTERVAL", 0.01)
    house.add()
    stop = threading.Event()
    keeper = threading.Thread(target=house.proxy.app.keep_renewed, args=(stop,))
    keeper.start()
    deadline = time.monotonic() + DEADLINE
    while not house.refreshes and time.monotonic() < deadline:
        stop.wait(0.01)
    stop.set()
    keeper.join(DEADLINE)
    assert house.refreshes == 1


def test_a_dead_refresh_token_is_not_asked_again(house: House) -> None:
    house.add()
    house.world.live.clear()
    got = house.ask()
    assert (got.status, house.refreshes) == (401, 1)
    assert "run `cliproxy login claude`" in got.json()["error"]["message"]
    for _ in range(3):
        house.proxy.app.poll()
        house.proxy.app.renew_due()
        got = house.ask()
        assert got.status == 401
        assert "run `cliproxy login claude`" in got.json()["error"]["message"]
    assert house.refreshes == 1
    house.add("a")  # a new login: the file has changed
    assert house.ask().status == 200


def test_others_answer_for_one_that_needs_a_login(house: House) -> None:
    house.add("a")
    house.world.live.clear()
    house.add("b", ends=3600)
    assert [house.ask().status for _ in range(3)] == [200] * 3
    assert house.refreshes == 1


def test_a_token_service_that_fails_is_no_login_problem(house: House) -> None:
    house.add()
    house.world.faults["claude/token"] += [Fault(503, {"error": "busy"})] * 3
    assert house.ask().status == 529
    assert house.ask().status == 200  # it is the only account there is


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


class Pool:
    """A proxy with keys named a, b, ... of the Claude API, all at the upstream, which scripts each."""

    def __init__(self, make_proxy: ProxyMaker, upstream: Upstream, keys: str, **config: Any) -> None:
        models = [{"name": "up"}, {"name": "other"}]
        entries = config.pop("entries", {})
        rows = [
            {"api-key": k, "base-url": upstream.url, "models": models, **entries.get(k, {})} for k in keys
        ]
        self.script: dict[str, Reply] = {}
        self.upstream = upstream
        upstream.routes["/v1/messages"] = self.serve
        self.proxy: Proxy = make_proxy(claude_api_key=rows, **config)
        self.router = self.proxy.app.router

    def serve(self, seen: Seen) -> Reply:
        return self.script.get(key_of(seen), make_reply(ANSWER))

    def ask(self, model: str = "up", headers: dict[str, str] | None = None, **body: Any) -> Got:
        return self.proxy.ask("/v1/messages", {**CLAUDE_ASK, "model": model, **body}, headers)

    def asked(self) -> str:
        """The keys of the requests since the last time."""
        found = "".join(key_of(seen) for seen in self.upstream.seen)
        self.upstream.seen.clear()
        return found

    def rests(self) -> dict[tuple[str, str], float]:
        state = self.router.state() or {"cooldowns": []}
        return {(row["account"][-2], row["model"]): row["end"] - time.time() for row in state["cooldowns"]}


def key_of(seen: Seen) -> str:
    return seen.headers.get("x-api-key") or seen.headers["authorization"].partition("Bearer ")[2]


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


def test_an_upstream_writes_no_lines_of_the_log(
    make_proxy: ProxyMaker, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = make_proxy()
    upstream.reply(claude_error("rate_limit_error", "no\nINFO all is well\x1b[31m"), 429)
    assert proxy.ask("/v1/messages", {**CLAUDE_ASK, "model": "up-claude"}).status == 429
    assert "no INFO all is well [31m" in caplog.text


def test_half_a_character_names_no_session(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = make_proxy(routing={"session-affinity": True})
    upstream.reply(ANSWER)
    body = {**CLAUDE_ASK, "model": "up-claude", "metadata": {"user_id": "\ud800"}}
    assert proxy.ask("/v1/messages", body).status == 200


def test_a_refusal_is_explained_to_the_owner(
    make_proxy: ProxyMaker, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    pool = Pool(make_proxy, upstream, "ab", request_retry=0)
    text = "Third-party apps now draw from your extra usage, not your plan limits."
    pool.script["a"] = make_reply(claude_error("invalid_request_error", text), 400)
    got = pool.ask()
    assert (got.status, pool.asked()) == (400, "a")
    assert "an API key is the other way" in caplog.text
    error = cp.ProxyError("forbidden", "no")
    error.body = b'{"error":{"type":"access_terminated_error"}}'
    assert "Kimi" in cp.explained(error)


def test_rests_are_bounded(clock: Clock) -> None:
    router = cp.Router(clock, clock)
    account = cp.Account("one", cp.PROVIDERS["claude"], {"api-key": "k"})
    router.configure([account], cp.load_config(None))
    for number in range(cp.CURSORS + 5):
        router.punish(cp.Candidate(account, f"claude-{number}"), cp.ProxyError("not_found", "no such model"))
    state = router.state()
    assert state
    assert len(state["cooldowns"]) == cp.CURSORS


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
    assert cp.told_wait(error, 1_000_000.0) == expected


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


# Files of other providers

# fmt: off
FILES = [
    pytest.param("kimi", {"device_id": "d" * 32}, "/v1/chat/completions", "/v1/chat/completions", "kimi-k2.5", "k2.5", id="kimi"),
    pytest.param("kimi", {"device_id": "d" * 32}, "/v1/messages",         "/v1/messages",         "kimi-k2.5", "k2.5", id="kimi, Claude's dialect"),
    pytest.param("qwen", {},                      "/v1/chat/completions", "/chat/completions",    "coder-model", "coder-model", id="qwen"),
    pytest.param("iflow", {"api_key": "tok", "access_token": "other"}, "/v1/chat/completions", "/chat/completions", "glm-4.6", "glm-4.6", id="iflow"),
    pytest.param("xai",  {"sub": "s"},            "/v1/responses",        "/responses",           "grok-4.5", "grok-4.5", id="xai"),
]
# fmt: on


@pytest.mark.parametrize(("type", "fields", "path", "upstream_path", "model", "sent"), FILES)
def test_files_of_other_providers(  # noqa: PLR0917 -- a column each
    make_proxy: ProxyMaker,
    upstream: Upstream,
    type: str,
    fields: Json,
    path: str,
    upstream_path: str,
    model: str,
    sent: str,
) -> None:
    names = {type: {"base-url": upstream.url}}
    proxy = make_proxy(providers=names)
    data = {
        "type": type,
        "access_token": "tok",
        "refresh_token": "r",
        "expired": cp.write_time(time.time() + 3600),
        **fields,
    }
    (proxy.auth_dir / f"{type}-x.json").write_text(json.dumps(data))
    proxy.app.poll()
    upstream.routes[upstream_path] = make_reply({"ok": True})
    body = (
        {"model": model, "messages": HI, "max_tokens": 9}
        if "responses" not in path
        else {"model": model, "input": "hi", "stop": "x"}
    )
    assert proxy.ask(path, body).status == 200
    (seen,) = upstream.seen
    assert (seen.path.partition("?")[0], seen.json()["model"]) == (upstream_path, sent)
    assert seen.headers["authorization"] == "Bearer tok"
    assert "stop" not in seen.json()
    assert ("x-msh-device-id" in seen.headers) == (type == "kimi")


def test_every_login_can_be_used() -> None:
    assert set(cp.LOGINS) <= set(cp.FILE_PROVIDERS)
    rows = [name for names in cp.FILE_PROVIDERS.values() for name in names if name]
    assert set(rows) <= set(cp.PROVIDERS)


def test_qwen_goes_where_its_login_said(tmp_path: Path) -> None:
    data = {"type": "qwen", "access_token": "t", "resource_url": "portal.example.com"}
    credential = cp.Credential("qwen-x.json", tmp_path, "qwen", data, (0, 0, 0))
    (account,) = cp.find_accounts(cp.load_config(None), [credential], {})
    assert (account.origin.host, account.path) == ("portal.example.com", "/v1")


def test_fields_of_files(tmp_path: Path) -> None:
    data = {
        "type": "claude", "access_token": "t", "priority": "3", "weight": "2", "request_retry": 1, "disable-cooling": True,
        "prefix": "work", "excluded_models": ["claude-3*"], "excluded-models": ["*"],
    }  # fmt: skip
    credential = cp.Credential("claude-x.json", tmp_path, "claude", data, (0, 0, 0))
    (account,) = cp.find_accounts(cp.load_config(None), [credential], {})
    assert (account.priority, account.weight, account.retries, account.disable_cooling) == (3, 2, 1, True)
    assert (account.prefix, account.excluded) == ("work", ["claude-3*"])


UNFIT = [
    pytest.param("excluded_models", 5, id="no list"),
    pytest.param("excluded_models", [[]], id="no texts in it"),
    pytest.param("headers", "x", id="no mapping"),
    pytest.param("model_aliases", ["x"], id="no mappings in it"),
    pytest.param("model_aliases", {"a": "b"}, id="a mapping of aliases"),
    pytest.param("request_scoped_errors", ["x"], id="no rule"),
    pytest.param("prefix", {}, id="no text"),
    pytest.param("proxy_url", "10.0.0.1:8080", id="no proxy"),
    pytest.param("base_url", "localhost:8080", id="no URL"),
    pytest.param("resource_url", "http://[", id="no URL that is made"),
]


@pytest.mark.parametrize(("key", "value"), UNFIT)
def test_a_file_that_says_what_cannot_be_stops_nobody(
    house: House, caplog: pytest.LogCaptureFixture, key: str, value: Any
) -> None:
    kind = "qwen" if key == "resource_url" else "claude"
    unfit = {"type": kind, "access_token": "t", key: value}
    (house.proxy.auth_dir / "unfit.json").write_text(json.dumps(unfit))
    house.proxy.app.poll()
    names = {account.name for account in house.proxy.app.router.accounts()}
    assert "unfit.json" not in names
    assert names, "of the others"
    assert "unfit.json is not used: " in caplog.text


def test_what_a_file_says_that_means_nothing_here(tmp_path: Path) -> None:
    data = {
        "type": "claude",
        "access_token": "t",
        "models": 5,
        "quirks": 5,
        "also": [],
        "priority": "x",
        "weight": [],
    }
    credential = cp.Credential("claude-x.json", tmp_path, "claude", data, (0, 0, 0))
    (account,) = cp.find_accounts(cp.load_config(None), [credential], {})
    assert (account.models, account.priority, account.weight) == (None, 0, 1)


def test_an_endpoint_with_a_key_that_nobody_knows() -> None:
    """It is kept, with a warning: there may be anything in it."""
    row = {"name": "up", "base-url": "http://h/v1", "api-key-entries": [{"api-key": "k", "models": [{}]}]}
    config = cp.parse_config(None, json.dumps({"openai-compatibility": [row]}))
    assert [account.key for account in cp.find_accounts(config, [], {})] == ["k"]


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
    begun = time.monotonic()
    ask = {"model": f"up-{dialect}", "messages": HI}
    assert proxy.ask("/v1/chat/completions", ask).status == 429
    assert time.monotonic() - begun < 2


@pytest.mark.parametrize("word", ["model is not supported", "bad-credentials"])
def test_what_a_client_says_is_no_refusal(proxy: Proxy, upstream: Upstream, word: str) -> None:
    body = {"model": "up-claude", "messages": [{"role": word, "content": "hi"}]}
    got = proxy.ask("/v1/chat/completions", body)
    assert (got.status, word in got.json()["error"]["message"]) == (400, True)
    upstream.reply(ANSWER)
    assert proxy.ask("/v1/messages", {**CLAUDE_ASK, "model": "up-claude"}).status == 200


# Google's Code Assist

WRAPPED = {
    "response": {
        "candidates": [{"content": {"role": "model", "parts": [{"text": "hello"}]}, "finishReason": "STOP"}],
        "usageMetadata": {"promptTokenCount": 3, "candidatesTokenCount": 1, "totalTokenCount": 4},
    },
    "traceId": "t",
}
WRAPPED_STREAM = f"data: {json.dumps(WRAPPED)}\r\n\r\n".encode()
GEMINI_ASK = {
    "contents": [{"role": "user", "parts": [{"text": "hi"}]}],
    "generationConfig": {"maxOutputTokens": 9},
}


class CodeAssist:
    """A proxy with one Google login of some projects, the upstream being Code Assist."""

    def __init__(
        self, make_proxy: ProxyMaker, upstream: Upstream, type: str, projects: str, **config: Any
    ) -> None:
        self.upstream, self.spent = upstream, ""
        upstream.routes["/v1internal:generateContent"] = self.serve
        upstream.routes["/v1internal:streamGenerateContent"] = self.serve
        names = {name: {"base-url": upstream.url, "enabled": True} for name in ("gemini-cli", "antigravity")}
        self.proxy: Proxy = make_proxy(providers=names, gemini_api_key=[], request_retry=0, **config)
        token = {"access_token": "tok", "refresh_token": "r", "expiry": cp.write_time(time.time() + 3600)}
        data = {"type": type, "email": "a@b.c", "project_id": projects, "token": token}
        (self.proxy.auth_dir / f"{type}-a.json").write_text(json.dumps(data))
        self.proxy.app.poll()

    def serve(self, seen: Seen) -> Reply:
        if seen.json()["project"] == self.spent:
            details = [{"@type": "x/google.rpc.RetryInfo", "retryDelay": "30s"}]
            error = {"code": 429, "message": "spent", "status": "RESOURCE_EXHAUSTED", "details": details}
            return make_reply({"error": error}, 429)
        if "stream" in seen.path:
            return make_reply(WRAPPED_STREAM, headers={"content-type": "text/event-stream"})
        return make_reply(WRAPPED)


@pytest.mark.parametrize("type", ["gemini", "antigravity"])
@pytest.mark.parametrize("stream", [False, True])
def test_code_assist(make_proxy: ProxyMaker, upstream: Upstream, type: str, stream: bool) -> None:
    model = "gemini-3-flash" if type == "antigravity" else "gemini-2.5-pro"
    google = CodeAssist(make_proxy, upstream, type, "proj-1")
    action = "streamGenerateContent?alt=sse" if stream else "generateContent"
    got = google.proxy.ask(f"/v1beta/models/{model}:{action}", GEMINI_ASK)
    assert got.status == 200, got.body
    answer = got.payloads()[0] if stream else got.json()
    assert answer["candidates"][0]["content"]["parts"][0]["text"] == "hello"
    assert "traceId" not in answer
    got = google.proxy.ask("/v1/messages", {**CLAUDE_ASK, "model": model, "stream": stream})
    assert got.status == 200, got.body
    assert b"hello" in got.body
    for seen in upstream.seen:
        body = seen.json()
        assert (body["project"], body["model"]) == ("proj-1", model)
        assert body["request"]["contents"][0]["parts"][0]["text"] == "hi"
        assert seen.headers["authorization"] == "Bearer tok"
        assert ("maxOutputTokens" in body["request"].get("generationConfig", {})) == (type == "gemini")
        assert body.get("userAgent", "cliproxy") == "cliproxy"


@pytest.mark.parametrize("type", ["gemini", "gemini-cli"])
@pytest.mark.parametrize("switch", [False, True])
def test_the_projects_of_one_login(
    make_proxy: ProxyMaker, upstream: Upstream, switch: bool, type: str
) -> None:
    google = CodeAssist(make_proxy, upstream, type, "one, two", quota_exceeded={"switch-project": switch})
    logins = [a for a in google.proxy.app.router.accounts() if a.credential]
    assert [account.renewable for account in logins] == [True, True]
    path = "/v1beta/models/gemini-2.5-pro:generateContent"
    assert [google.proxy.ask(path, GEMINI_ASK).status for _ in range(2)] == [200, 200]
    assert [seen.json()["project"] for seen in upstream.seen] == ["one", "two"]
    google.spent = "one"
    upstream.seen.clear()
    statuses = [google.proxy.ask(path, GEMINI_ASK).status for _ in range(2)]
    projects = [seen.json()["project"] for seen in upstream.seen]
    assert (statuses, projects) == (([200, 200], ["one", "two", "two"]) if switch else ([429, 429], ["one"]))
