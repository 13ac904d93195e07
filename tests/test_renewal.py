"""New tokens for old ones: when, by whom, and what a provider's answer comes to."""

from __future__ import annotations

import contextlib
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import cliproxy as cp
from support.accounts import House, Json
from support.logins import Attempt, consent, sign_in
from support.proxy import Proxy
from support.upstream import DEADLINE, Upstream, make_reply
from support.world import OPENAI_AUTH, Fault, World, free_port, jwt


@pytest.mark.parametrize("provider", ["claude", "codex", "gemini", "antigravity", "kimi", "xai", "qwen"])
def test_refresh(world: World, store: cp.Store, provider: str) -> None:
    credential = sign_in(world, store, provider)
    store.merge(credential.name, {"note": "mine"})
    world.clock.advance(4000)
    assert cp.is_due(credential, world.clock())
    renewed = cp.refresh(credential, store, world.config(), world.clock)
    assert renewed == store.get(credential.name)
    assert cp.field_of(renewed.data, "access_token") != cp.field_of(credential.data, "access_token")
    assert cp.field_of(renewed.data, "refresh_token")
    kept = provider in {"gemini", "antigravity"}
    assert (renewed.data["refresh_token"] == credential.data["refresh_token"]) == kept
    assert renewed.data["note"] == "mine"
    assert cp.expires_at(renewed.data) == world.clock() + 3600
    assert not cp.is_due(renewed, world.clock())
    if provider == "gemini":
        assert renewed.data["token"]["refresh_token"] == credential.data["refresh_token"]
        assert renewed.data["token"]["access_token"] == renewed.data["access_token"]


def test_a_file_of_type_gemini_cli_is_gemini_s(world: World, store: cp.Store) -> None:
    credential = sign_in(world, store, "gemini")
    store.merge(credential.name, {"type": "gemini-cli", "note": "mine"})
    world.clock.advance(4000)
    for known in (store.get(credential.name), store.credentials()[0]):
        assert cp.is_due(known, world.clock())
        renewed = cp.refresh(known, store, world.config(), world.clock)
        assert cp.expires_at(renewed.data) == world.clock() + 3600
    assert renewed.data["type"] == "gemini-cli", "as the other program wrote it"
    again = Attempt(world, store, "gemini-cli")
    again.paste(consent(again.url()))
    assert again.result().name == credential.name, "no second file"
    assert store.get(credential.name).data["note"] == "mine"


def test_refresh_fields(world: World, store: cp.Store) -> None:
    for provider, fields in {
        "claude": {"grant_type", "client_id", "refresh_token"},
        "codex": {"grant_type", "client_id", "refresh_token"},
        "gemini": {"grant_type", "client_id", "refresh_token", "client_secret"},
    }.items():
        credential = sign_in(world, store, provider)
        cp.refresh(credential, store, world.config(), world.clock)
        assert set(world.asks[-1].body) == fields


def test_the_token_of_another_process_is_used(world: World, store: cp.Store) -> None:
    credential = sign_in(world, store, "codex")
    theirs = store.merge(credential.name, {"access_token": "theirs"})
    before = len(world.asks)
    assert cp.refresh(credential, store, world.config(), world.clock) == theirs
    assert len(world.asks) == before


def test_fifty_refreshes_are_one(world: World, store: cp.Store) -> None:
    credential = sign_in(world, store, "codex")
    world.clock.advance(4000)
    with ThreadPoolExecutor(50) as pool:
        jobs = [pool.submit(cp.refresh, credential, store, world.config(), world.clock) for _ in range(50)]
        tokens = {job.result().data["access_token"] for job in jobs}
    assert len(tokens) == 1
    assert world.count("/codex/token") == 2  # the login's, and this one


CHILD = """
import json, sys, cliproxy as cp
folder, name, config = sys.argv[1], sys.argv[2], cp.Config(None, json.loads(sys.argv[3]), ())
store = cp.Store(folder)
credential = cp.Credential(name, store.folder / name, "codex", json.loads(sys.argv[4]), (0, 0, 0))
print("ready", flush=True)
sys.stdin.readline()
print(cp.refresh(credential, store, config).data["access_token"], flush=True)
"""


def spawn(
    world: World, store: cp.Store, credential: cp.Credential, program: str = CHILD
) -> subprocess.Popen[str]:
    config = world.config()
    command = [
        sys.executable,
        "-c",
        program,
        str(store.folder),
        credential.name,
        json.dumps(config.data),
        json.dumps(credential.data),
    ]
    environment = {**os.environ, "PYTHONPATH": str(Path(cp.__file__).parent)}
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    return process


@pytest.mark.slow
def test_two_processes_make_one_refresh(world: World, store: cp.Store) -> None:
    credential = sign_in(world, store, "codex")
    children = [spawn(world, store, credential) for _ in range(3)]
    for process in children:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    tokens = {process.communicate(timeout=DEADLINE)[0] for process in children}
    assert len(tokens) == 1
    assert world.count("/codex/token") == 2


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="kills itself by signal")
def test_a_kill_between_the_answer_and_the_rename(world: World, store: cp.Store) -> None:
    """The old refresh token is dead by then: the new one must be found again."""
    credential = sign_in(world, store, "codex")
    doomed = CHILD.replace("import json, sys", "import json, os, sys").replace(
        "store = ",
        "replaces = [cp.replace, lambda *a: os.kill(os.getpid(), 9)]; "  # the first only tries
        "cp.replace = lambda *a: replaces.pop(0)(*a); store = ",
    )
    process = spawn(world, store, credential, doomed)
    assert process.communicate("\n", timeout=DEADLINE)[0] == ""
    assert process.returncode == -9
    assert store.get(credential.name).data == credential.data
    assert store.scan()
    (saved,) = store.credentials()
    assert saved.data["refresh_token"] in world.live
    assert cp.refresh(credential, store, world.config(), world.clock) == saved


def test_a_full_disk_costs_no_refresh_token(
    world: World, store: cp.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old one dies with its use: it is used only if the new one can be kept."""
    credential = sign_in(world, store, "codex")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(cp.ProxyError, match="No space left"):
            cp.refresh(credential, store, world.config(), world.clock)
    assert credential.data["refresh_token"] in world.live
    assert cp.refresh(credential, store, world.config(), world.clock)


def test_a_login_waits_for_a_refresh_under_way(world: World, store: cp.Store) -> None:
    """Else that would lay the tokens of the old login over those of the new one."""
    credential = sign_in(world, store, "codex")
    with store.refreshing(credential.name):
        attempt = Attempt(world, store, "codex")
        attempt.paste(consent(attempt.url()))
        with pytest.raises(futures.TimeoutError):
            attempt.future.result(timeout=0.5)
        store.merge(credential.name, {"access_token": "renewed", "refresh_token": "renewed"})
    fresh = attempt.result().data
    assert fresh["refresh_token"] in world.live
    assert fresh["access_token"] != "renewed"


def test_the_client_that_a_file_names_renews_it(world: World, store: cp.Store) -> None:
    """A refresh token is of use to the client alone that got it."""
    credential = sign_in(world, store, "gemini")
    token = {"client_id": "theirs", "client_secret": "theirs"}
    store.merge(credential.name, {"token": token})
    config = world.config()
    del config.data["providers"]["gemini"]["client-secret"]
    world.faults["google/token"].append(Fault(200, {"access_token": "new", "expires_in": 3600}))
    renewed = cp.refresh(credential, store, config, world.clock)
    sent = world.asks[-1].body
    assert (sent["client_id"], sent["client_secret"]) == ("theirs", "theirs")
    assert renewed.data["token"]["client_id"] == "theirs"


REFUSALS = [
    pytest.param("codex", 400, {"error": {"code": "refresh_token_reused"}}, True, id="reused"),
    pytest.param("codex", 401, {"error": "token_expired"}, True, id="error is a word"),
    pytest.param("codex", 403, {"error_code": "account_deactivated"}, True, id="error_code"),
    pytest.param("codex", 401, {"error": {"message": "?"}}, True, id="401 without a code"),
    pytest.param("codex", 403, b"<html>Just a moment...</html>", False, id="a challenge page"),
    pytest.param("codex", 400, {"error": {"code": "invalid_request"}}, False, id="our own fault"),
    pytest.param("claude", 400, {"error": "invalid_grant"}, True, id="invalid_grant"),
    pytest.param(
        "claude", 403, {"error": {"type": "permission_error", "message": "no"}}, True, id="claude 403"
    ),
    pytest.param("claude", 403, b"<html>", False, id="claude's cloudflare"),
    pytest.param("gemini", 401, {"error": "invalid_client"}, False, id="a wrong client secret"),
    pytest.param("qwen", 400, {"error": "invalid_request"}, True, id="qwen 400"),
    pytest.param("kimi", 403, {"error": "x"}, True, id="kimi 403"),
]


@pytest.mark.parametrize(("provider", "status", "body", "final"), REFUSALS)
def test_refusals(world: World, store: cp.Store, provider: str, status: int, body: Any, final: bool) -> None:
    credential = sign_in(world, store, provider)
    world.clock.advance(4000)
    path = f"{provider.replace('gemini', 'google')}/token"
    world.faults[path].append(Fault(status, body))
    before = world.count(f"/{path}")
    with pytest.raises(cp.ProxyError) as caught:
        cp.refresh(credential, store, world.config(), world.clock)
    assert world.count(f"/{path}") == before + 1
    after = store.get(credential.name)
    assert bool(cp.why_dead(after.data)) == final
    assert cp.is_due(after, world.clock()) != final
    if not final:
        assert after.data == credential.data
        cp.refresh(credential, store, world.config(), world.clock)
        return
    assert caught.value.kind == "unauthorized"
    assert f"cliproxy login {provider}" in str(caught.value)
    with pytest.raises(cp.ProxyError, match="cliproxy login"):
        cp.refresh(after, store, world.config(), world.clock)
    assert world.count(f"/{path}") == before + 1, "it was asked again"
    store.merge(
        credential.name, {"refresh_token": world.tokens(provider)["refresh_token"]}
    )  # the file changes
    renewed = cp.refresh(after, store, world.config(), world.clock)
    assert not cp.why_dead(renewed.data)
    assert not renewed.data["cliproxy"].get("refused")


@pytest.mark.parametrize(
    ("headers", "wait"),
    [({"retry-after": "17"}, 17), ({"retry-after": "17", "retry-after-ms": "16500"}, 16.5), ({"retry-after": "nan"}, 60),
     ({"retry-after-ms": "8500"}, 8.5), ({"retry-after": "1"}, 5), ({"retry-after": "9999"}, 300), ({}, 60)],
)  # fmt: skip
def test_too_many_requests(world: World, store: cp.Store, headers: dict[str, str], wait: float) -> None:
    credential = sign_in(world, store, "claude")
    world.faults["claude/token"].append(Fault(429, {"error": {"type": "rate_limit_error"}}, headers))
    before = len(world.asks)
    with pytest.raises(cp.ProxyError) as caught:
        cp.refresh(credential, store, world.config(), world.clock)
    assert (caught.value.kind, caught.value.retry_after) == ("rate_limited", wait)
    assert len(world.asks) == before + 1
    assert not cp.why_dead(store.get(credential.name).data)


def test_server_errors_are_tried_three_times(world: World, store: cp.Store) -> None:
    credential = sign_in(world, store, "claude")
    world.faults["claude/token"] += [Fault(500), Fault(503)]
    cp.refresh(credential, store, world.config(), world.clock)
    credential = store.get(credential.name)
    world.faults["claude/token"] += [Fault(500), Fault(503), Fault(502, b"<html>")]
    with pytest.raises(cp.ProxyError) as caught:
        cp.refresh(credential, store, world.config(), world.clock)
    assert caught.value.status == 502
    assert cp.refresh(credential, store, world.config(), world.clock)


def test_a_lost_answer_is_not_asked_for_again_where_tokens_rotate(world: World, store: cp.Store) -> None:
    credential = sign_in(world, store, "codex")
    world.faults["codex/token"].append(Fault(0, spend=True))
    with pytest.raises(cp.ProxyError) as caught:
        cp.refresh(credential, store, world.config(), world.clock)
    assert caught.value.sent
    assert world.count("/codex/token") == 2
    assert store.get(credential.name).data == credential.data


def test_a_lost_answer_is_asked_for_again_at_google(world: World, store: cp.Store) -> None:
    credential = sign_in(world, store, "antigravity")
    world.faults["google/token"] += [Fault(0, spend=True), Fault(0)]
    assert cp.refresh(credential, store, world.config(), world.clock)


def test_an_unreachable_provider_is_tried_again(
    world: World, store: cp.Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    credential = sign_in(world, store, "codex")
    tries: list[str] = []
    real = cp.fetch

    def counted(method: str, url: str, *args: Any, **options: Any) -> cp.Reply:
        tries.append(url)
        return real(method, url, *args, **options)

    monkeypatch.setattr(cp, "fetch", counted)
    config = world.config(codex={"token-url": f"http://127.0.0.1:{free_port()}/token"})
    with pytest.raises(cp.ProxyError) as caught:
        cp.refresh(credential, store, config, world.clock)
    assert not caught.value.sent
    assert len(tries) == 3


def test_no_refresh_token(world: World, store: cp.Store) -> None:
    credential = store.create("claude-x.json", {"type": "claude", "access_token": "a", "email": "x"})
    with pytest.raises(cp.ProxyError, match="no refresh token"):
        cp.refresh(credential, store, world.config(), world.clock)
    assert not cp.is_due(credential, world.clock())


def test_a_file_that_is_gone(world: World, store: cp.Store) -> None:
    credential = sign_in(world, store, "codex")
    store.delete(credential.name)
    with pytest.raises(cp.ProxyError) as caught:
        cp.refresh(credential, store, world.config(), world.clock)
    assert caught.value.kind == "not_found"


NOW = 1_770_000_000.0
DUE = [
    pytest.param("claude", {"expired": NOW + 4 * 3600 - 1}, True, id="claude, in four hours"),
    pytest.param("claude", {"expired": NOW + 4 * 3600 + 60}, False, id="claude, later"),
    pytest.param("claude", {"expired": NOW + 3000, "last_refresh": NOW - 600}, False, id="a short life: half of it"),
    pytest.param("claude", {"expired": NOW + 1700, "last_refresh": NOW - 1900}, True, id="a short life, over half"),
    pytest.param("codex", {"expired": NOW + 5 * 86400 - 1}, True, id="codex, in five days"),
    pytest.param("codex", {"expired": NOW + 6 * 86400}, False, id="codex, later"),
    pytest.param("codex", {"last_refresh": NOW - 6 * 86400}, True, id="no expiry, long ago"),
    pytest.param("codex", {"last_refresh": NOW - 86400}, False, id="no expiry, lately"),
    pytest.param("codex", {}, True, id="neither"),
    pytest.param("codex", {"expired": NOW - 1, "disabled": True}, False, id="disabled"),
    pytest.param("kimi", {"expired": NOW + 301}, False, id="kimi, later"),
    pytest.param("kimi", {"expired": NOW + 299}, True, id="kimi, soon"),
    pytest.param("codex", {"refresh_interval": 60, "last_refresh": NOW - 61, "expired": NOW + 9e6}, True, id="interval"),
    pytest.param("codex", {"refresh_interval_seconds": "60", "last_refresh": NOW - 59, "expired": NOW - 9}, False, id="interval, not yet"),
    pytest.param("vertex", {}, False, id="nothing to renew"),
]  # fmt: skip


@pytest.mark.parametrize(("provider", "data", "answer"), DUE)
def test_due(provider: str, data: Json, answer: bool) -> None:
    token = {"refresh_token": "r"} if provider != "vertex" else {}
    credential = cp.Credential(
        "a.json", Path("a.json"), provider, {"type": provider, **token, **data}, (0, 0, 0)
    )
    assert cp.is_due(credential, NOW) == answer


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
    (theirs,) = [a for a in other.router.offers.accounts if a.credential]
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


# What one account, its file or its token service does is no matter of the others


@pytest.mark.parametrize("header", ["Mon, 01 Jan 99999999999999999999 00:00:00 GMT", "inf", "1e300", "nan"])
def test_an_odd_hint_stops_no_other_renewal(house: House, header: str) -> None:
    house.add("a", ends=30)
    house.add("b", ends=30)
    house.world.faults["claude/token"].append(Fault(429, {"error": "slow_down"}, {"retry-after": header}))
    before = house.account("claude-b.json").token
    house.proxy.app.renew_due()
    assert house.account("claude-b.json").token != before


def test_a_failure_that_nobody_thought_of_stops_no_other_renewal(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.add("a", ends=30)
    house.add("b", ends=30)

    def fail(*_: Any) -> None:
        raise KeyError("nobody thought of it")

    monkeypatch.setattr(house.account(), "renew", fail)
    before = house.account("claude-b.json").token
    house.proxy.app.renew_due()
    assert house.account("claude-b.json").token != before


@contextlib.contextmanager
def held(path: Path) -> Iterator[None]:
    """Hold a lock as another process does that was stopped in the middle."""
    code = "import fcntl, sys; file = open(sys.argv[1], 'a'); fcntl.flock(file, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout
        assert other.stdin
        assert other.stdout.readline() == b"held\n"
        yield
        other.stdin.close()


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cp, "LOCK_PATIENCE", 0.2)
    monkeypatch.setattr(cp, "TOKEN_PATIENCE", 0.2)


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("lock", [".claude-a.json.lock", ".lock"])
def test_a_lock_that_another_holds_costs_one_account(house: House, lock: str) -> None:
    house.add("a")
    house.add("b", ends=8 * 3600)
    with held(house.proxy.auth_dir / lock):
        assert [house.ask().status for _ in range(4)] == [200] * 4
        house.proxy.app.poll()
        house.proxy.app.renew_due()
    assert house.refreshes == 0
    house.proxy.app.wake("*")
    assert [house.ask().status for _ in range(2)] == [200] * 2
    assert house.refreshes == 1


@pytest.mark.usefixtures("impatient")
def test_a_folder_that_another_holds_does_not_stop_the_main_loop(house: House) -> None:
    house.add("a", ends=3600)
    store = house.proxy.app.store
    with held(house.proxy.auth_dir / ".lock"), ThreadPoolExecutor(1) as pool:
        (house.proxy.auth_dir / ".claude-a.json.0123abcd.new").write_text("{")
        writing = pool.submit(store.merge, "claude-a.json", {"note": "x"})
        while not writing.done():
            store.scan()
    assert isinstance(writing.exception(), cp.ProxyError)


@pytest.mark.usefixtures("impatient")
def test_a_token_service_that_hangs_costs_its_account_one_wait(house: House) -> None:
    """Whoever waited for an attempt shares its end; then the account rests while there are others."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = json.loads(house.proxy.path.read_text())
        config["providers"]["claude"]["token-url"] = f"http://127.0.0.1:{silent.getsockname()[1]}/token"
        house.proxy.write(config)
        house.add("a")
        house.add("b", ends=3600)
        with ThreadPoolExecutor(8) as pool:
            assert {got.status for got in pool.map(lambda _: house.ask(), range(8))} == {200}
        assert house.ask().status == 200
        silent.settimeout(0.01)
        tries = 0
        with contextlib.suppress(OSError):
            while True:
                silent.accept()[0].close()
                tries += 1
    assert tries == 1


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no named pipes")
@pytest.mark.parametrize("name", [".a.json.01234567.new", ".cliproxy/state", ".cliproxy/wake", "b.json"])
def test_a_pipe_in_the_folder_stops_nobody(tmp_path: Path, name: str) -> None:
    (tmp_path / "a.json").write_text('{"type": "codex", "access_token": "x"}')
    (tmp_path / ".cliproxy").mkdir()
    os.utime(tmp_path / "a.json", (1.0, 1.0))
    os.mkfifo(tmp_path / name)
    store = cp.Store(tmp_path)
    store.scan()
    app = cp.App(cp.ConfigFile(None), store, {})
    app.poll()
    assert [account.name for account in app.router.offers.accounts] == ["a.json"]


# fmt: off
UNSENDABLE = [
    pytest.param({"access_token": "two\r\nlines"}, "holds what no header can carry", id="a token"),
    pytest.param({"headers": {"x-team": "two\nlines"}}, "holds what no header can carry", id="a header"),
    pytest.param({"headers": {"Content-Length": "7"}}, "is ours to send", id="framing"),
    pytest.param({"headers": {"host": "elsewhere"}}, "is ours to send", id="host"),
    pytest.param({"headers": {"x-copy": "$Authorization"}}, "would hand on the key of a client", id="the key of a client"),
]
# fmt: on


@pytest.mark.parametrize(("fields", "why"), UNSENDABLE)
def test_an_account_that_cannot_be_asked_is_named(
    house: House, caplog: pytest.LogCaptureFixture, fields: Json, why: str
) -> None:
    house.add("b", ends=3600)
    house.add("a", ends=3600, **fields)
    assert [house.ask().status for _ in range(3)] == [200] * 3
    assert "claude-a.json" not in {account.name for account in house.proxy.app.router.offers.accounts}
    assert why in caplog.text


def test_an_id_that_no_header_can_carry_is_the_account_s_own_fault(codex: Proxy, upstream: Upstream) -> None:
    file = codex.auth_dir / "codex-a.json"
    data = json.loads(next(codex.auth_dir.glob("codex-*.json")).read_text())
    next(codex.auth_dir.glob("codex-*.json")).unlink()
    file.write_text(json.dumps({**data, "account_id": "a\r\nb"}))
    codex.app.poll()
    got = codex.ask("/v1/responses", {"model": "gpt-5.5", "input": "x"})
    assert (got.status, upstream.seen) == (502, [])
    assert "holds a line break" in got.json()["error"]["message"]


def test_a_folder_that_cannot_be_written_costs_one_account(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.add("a")
    house.add("b", ends=3600)

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert [house.ask().status for _ in range(4)] == [200] * 4


def test_new_tokens_that_cannot_be_written_are_used_and_written_later(
    house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    house.add("a", note="kept")
    real, calls = os.fsync, []

    def fills_up(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) > 2:  # one write: its file and its folder
            raise OSError(28, "No space left on device")
        real(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fills_up)
        assert [house.ask().status for _ in range(3)] == [200] * 3
        assert house.refreshes == 1
        house.proxy.app.poll()
        house.proxy.app.reload()
        assert house.ask().status == 200
        spent = house.file()["refresh_token"]
    path = house.proxy.auth_dir / "claude-a.json"
    path.write_text(json.dumps({**house.file(), "note": "of another program"}))
    house.proxy.app.poll()
    assert house.file()["refresh_token"] != spent
    assert (house.file()["access_token"], house.file()["note"]) == (
        house.account().token,
        "of another program",
    )
    house.proxy.app.renew(house.account(), house.account().token)
    assert house.ask().status == 200


def test_a_new_login_outranks_what_could_not_be_written(store: cp.Store) -> None:
    store.create("a.json", {"type": "codex", "access_token": "old", "refresh_token": "old"})
    store.keep_unwritten("a.json", {"access_token": "new", "refresh_token": "new"})
    assert store.get("a.json").data["refresh_token"] == "new"
    store.create("a.json", {"type": "codex", "access_token": "login", "refresh_token": "login"})
    store.flush()
    assert store.get("a.json").data["refresh_token"] == "login"


@pytest.mark.parametrize(
    "answer",
    [
        {"access_token": ["x"]},
        {"access_token": "x", "refresh_token": {"a": 1}},
        {"access_token": "x\r\ny"},
        {"access_token": "ü"},
    ],
)
def test_an_answer_of_wrong_types_is_no_token(world: World, store: cp.Store, answer: Json) -> None:
    credential = sign_in(world, store, "claude")
    world.faults["claude/token"].append(Fault(200, {"expires_in": 60, **answer}))
    with pytest.raises(cp.ProxyError, match="no token") as caught:
        cp.refresh(credential, store, world.config(), world.clock)
    assert caught.value.kind == "upstream_failed"
    assert store.get(credential.name).data["refresh_token"] == credential.data["refresh_token"]


@pytest.mark.parametrize(
    ("provider", "path", "odd"),
    [
        ("claude", "claude/token", {"account": ["x"], "organization": "y"}),
        ("codex", "codex/token", {"id_token": jwt({OPENAI_AUTH: []})}),
    ],
)
def test_odd_facts_beside_new_tokens_cost_nothing(
    world: World, store: cp.Store, provider: str, path: str, odd: Json
) -> None:
    credential = sign_in(world, store, provider)
    world.faults[path].append(
        Fault(200, {"access_token": "new", "refresh_token": "next", "expires_in": 60, **odd})
    )
    assert cp.refresh(credential, store, world.config(), world.clock).data["refresh_token"] == "next"


def test_a_client_that_leaves_while_tokens_are_renewed_is_let_go(house: House) -> None:
    house.add()
    account = house.account()

    class LeftError(Exception):
        """The client has hung up."""

    def tick() -> None:
        raise LeftError

    with account.refreshing, pytest.raises(LeftError):
        house.proxy.app.renew(account, account.token, tick)
    assert house.refreshes == 0
    assert house.ask().status == 200
