"""Every login, refresh and import against the world of providers, over real sockets."""

from __future__ import annotations

import contextlib
import http.client
import re
import socket
import sys
import threading
from pathlib import Path
from typing import Any, Callable
from urllib.parse import parse_qsl, urlsplit

import pytest

import cliproxy as cp
from support.logins import Attempt, consent, sign_in, visit
from support.upstream import DEADLINE
from support.world import Clock, Fault, World, free_port

BACK = [
    pytest.param(lambda a, to: a.paste(to), id="address pasted"),
    pytest.param(lambda a, to: a.paste(f"  '{to}'  "), id="address pasted with quotes"),
    pytest.param(lambda a, to: a.paste(to.partition("://")[2]), id="address without its scheme"),
    pytest.param(lambda a, to: a.paste("?" + to.partition("?")[2]), id="query with its mark"),
    pytest.param(lambda a, to: a.paste(to.partition("?")[2]), id="query"),
    pytest.param(lambda a, to: a.paste(to.replace("?", "#")), id="in the fragment"),
    pytest.param(lambda a, to: visit(to), id="browser comes back"),
    pytest.param(lambda a, to: visit(to.replace("localhost", "127.0.0.1")), id="curl on the machine"),
]


@pytest.mark.parametrize("come_back", BACK)
def test_codex_headless(world: World, store: cp.Store, come_back: Callable[[Attempt, str], Any]) -> None:
    attempt = Attempt(world, store, "codex")
    come_back(attempt, consent(attempt.url()))
    credential = attempt.result()
    assert credential.name == "codex-ann@example.com-plus.json"
    data = store.get(credential.name).data
    assert data == credential.data
    assert (data["type"], data["email"], data["account_id"]) == ("codex", "ann@example.com", "acc-1")
    assert (data["access_token"], data["refresh_token"]) == ("codex-access-2", "codex-refresh-2")
    assert cp.expires_at(data) == world.clock() + 3600
    assert cp.last_refresh(data) == world.clock()
    assert cp.plan_of(data) == "plus"


def test_a_claude_login_without_its_profile(world: World, store: cp.Store) -> None:
    world.faults["claude/profile"].append(Fault(0))
    credential = sign_in(world, store, "claude")
    assert (credential.data["email"], cp.plan_of(credential.data)) == ("ann@example.com", "")


def test_a_question_that_nobody_can_answer(world: World, store: cp.Store) -> None:
    world.google["load"] = STANDARD
    attempt = Attempt(world, store, "gemini")
    attempt.paste(None)
    to = consent(attempt.url(1))
    visit(to)
    assert "--project_id" in str(attempt.error())


def test_codex_query_is_what_the_provider_wants(world: World, store: cp.Store) -> None:
    attempt = Attempt(world, store, "codex")
    query = dict(parse_qsl(urlsplit(attempt.url()).query))
    assert query.pop("redirect_uri").endswith("/auth/callback")
    assert len(query.pop("state")) == 32
    assert len(query.pop("code_challenge")) == 43
    assert query == {
        "client_id": "app_EMoamEEZ73f0CkXaXp7hrann", "response_type": "code", "scope": "openid email profile offline_access",
        "code_challenge_method": "S256", "prompt": "login", "id_token_add_organizations": "true",
        "codex_cli_simplified_flow": "true", "originator": "cliproxy",
    }  # fmt: skip
    attempt.paste(consent(attempt.url()))
    attempt.result()
    (ask,) = [ask for ask in world.asks if ask.path == "/codex/token"]
    assert set(ask.body) == {"grant_type", "client_id", "code", "redirect_uri", "code_verifier"}
    assert len(ask.body["code_verifier"]) == 128
    assert ask.headers["user-agent"] == cp.USER_AGENT


@pytest.mark.parametrize(
    ("way", "manual"),
    [
        pytest.param(lambda code, state, to: f"{code}#{state}", True, id="code#state of the page"),
        pytest.param(lambda code, state, to: code, True, id="bare code"),
        pytest.param(lambda code, state, to: to, True, id="address of the page"),
        pytest.param(lambda code, state, to: to, False, id="localhost address"),
    ],
)
def test_claude_headless(world: World, store: cp.Store, way: Callable[..., str], manual: bool) -> None:
    attempt = Attempt(world, store, "claude")
    url = attempt.url(0 if manual else 1)
    to = consent(url)
    assert to.startswith("https://platform.claude.com/oauth/code/callback" if manual else "http://localhost:")
    query = dict(parse_qsl(urlsplit(to).query))
    attempt.paste(way(query["code"], query["state"], to))
    credential = attempt.result()
    assert credential.name == "claude-ann@example.com.json"
    data = credential.data
    assert (data["type"], data["id_token"], data["email"]) == ("claude", "", "ann@example.com")
    assert (data["organization_uuid"], data["account_uuid"], cp.plan_of(data)) == (
        "org-acc-1",
        "acc-1",
        "max",
    )
    assert "terms" in attempt.text
    assert "claude-api-key" in attempt.text


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_the_door_is_open_on_both_loopbacks(
    world: World, store: cp.Store, family: socket.AddressFamily
) -> None:
    attempt = Attempt(world, store, "codex")
    to = urlsplit(consent(attempt.url()))
    host = "127.0.0.1" if family == socket.AF_INET else "::1"
    with socket.socket(family) as browser:
        try:
            browser.connect((host, to.port))
        except OSError:
            attempt.paste(None)
            pytest.skip("this machine has no such loopback")
        browser.sendall(f"GET {to.path}?{to.query} HTTP/1.1\r\nAccept: text/html,*/*\r\n\r\n".encode())
        text = b"".join(iter(lambda: browser.recv(4096), b"")).decode()
    attempt.result()
    assert text.startswith("HTTP/1.1 200 OK")
    assert "logged in. You can close this window." in text
    assert "<h1>" in text
    assert "http" not in text.partition("<")[2], "a foreign asset"


def test_the_door_passes_on_nothing_else(world: World, store: cp.Store) -> None:
    attempt = Attempt(world, store, "codex")
    to = consent(attempt.url())
    base = to.partition("/auth/")[0]
    assert visit(f"{base}/favicon.ico?")[0] == 404
    assert visit(f"{base}/auth/callback2?code=a&state=b")[0] == 404
    parts = urlsplit(to)
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", parts.port, timeout=DEADLINE)) as wire:
        wire.request("POST", f"{parts.path}?{parts.query}", b"")
        assert wire.getresponse().status == 405
    with socket.create_connection(("127.0.0.1", parts.port or 0)) as silent:  # a browser's spare connection
        assert visit(to)[0] == 200
        silent.close()
    attempt.result()


def test_a_wrong_state_does_not_end_the_login(world: World, store: cp.Store) -> None:
    attempt = Attempt(world, store, "codex")
    to = consent(attempt.url())
    status, _, text = visit(re.sub(r"state=\w+", "state=" + "0" * 32, to))
    assert status == 400
    assert "no answer to this login" in text
    attempt.paste("sk-some-token without a state")
    attempt.paste("")
    attempt.paste("helpme")
    attempt.wait_for("holds no code and state")
    attempt.paste(f"code={dict(parse_qsl(urlsplit(to).query))['code']}")  # a query must say its state
    assert not store.scan()
    visit(to)
    assert attempt.result().name == "codex-ann@example.com-plus.json"
    assert world.count("/codex/token") == 1


def test_a_denied_consent(world: World, store: cp.Store) -> None:
    world.denied = "access_denied"
    attempt = Attempt(world, store, "codex")
    status, _, text = visit(consent(attempt.url()))
    assert status == 400
    assert "refused the login: access_denied" in text
    error = attempt.error()
    assert error.kind == "forbidden"
    assert "nothing was saved" in str(error)
    assert not store.scan()


def test_a_denial_from_elsewhere_is_ignored(world: World, store: cp.Store) -> None:
    attempt = Attempt(world, store, "codex")
    to = consent(attempt.url())
    attempt.paste("http://localhost/auth/callback?error=access_denied&state=0123")
    attempt.paste(to)
    attempt.result()


def test_an_expired_code(world: World, store: cp.Store) -> None:
    attempt = Attempt(world, store, "codex")
    to = consent(attempt.url())
    world.clock.advance(601)
    status, _, text = visit(to)
    assert status == 400
    assert "run the login again" in text
    assert "run the login again" in str(attempt.error())
    assert not store.scan()


def test_a_code_works_once(world: World, store: cp.Store) -> None:
    attempt = Attempt(world, store, "codex")
    to = consent(attempt.url())
    visit(to)
    attempt.result()
    with pytest.raises(ConnectionError):
        visit(to)  # the door is shut


def test_nobody_comes(world: World, store: cp.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cp, "PATIENCE", 0.05)
    attempt = Attempt(world, store, "codex")
    attempt.paste(None)  # a closed terminal does not end it: a callback may still come
    error = attempt.error()
    assert (error.kind, "in time" in str(error)) == ("caller_timeout", True)
    assert not store.scan()


def test_a_closed_terminal_still_lets_the_browser_in(world: World, store: cp.Store) -> None:
    attempt = Attempt(world, store, "codex")
    attempt.paste(None)
    visit(consent(attempt.url()))
    attempt.result()


def test_a_busy_port(world: World, store: cp.Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        config = world.config(codex={"redirect-port": other.getsockname()[1]})
        attempt = Attempt(world, store, "codex", config)
        attempt.wait_for("pasting works all the same")
        attempt.paste(consent(attempt.url()))
        attempt.result()
        monkeypatch.setenv("DISPLAY", ":0")
        error = Attempt(world, store, "codex", config, browser=True).error()
        assert error.kind == "conflict"
        assert "--no-browser" in str(error)
        assert "--oauth-callback-port" in str(error)
        port = free_port()
        attempt = Attempt(world, store, "codex", config, port=port)
        to = consent(attempt.url())
        assert f"-L {urlsplit(to).port}:127.0.0.1:{port} " in attempt.text, "Codex takes no other port"
        visit(to.replace(f":{urlsplit(to).port}", f":{port}"))
        attempt.result()


def test_another_port_where_the_provider_lets_us(world: World, store: cp.Store) -> None:
    port = free_port()
    attempt = Attempt(world, store, "claude", port=port)
    to = consent(attempt.url(1))
    assert to.startswith(f"http://localhost:{port}/callback?")
    visit(to)
    attempt.result()


def test_a_browser_is_opened(
    world: World, store: cp.Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "browser.py"
    script.write_text("import sys, urllib.request; print(urllib.request.urlopen(sys.argv[1]).read())")
    monkeypatch.setenv("BROWSER", f"{sys.executable} {script} %s >/dev/null")
    monkeypatch.setenv("DISPLAY", ":0")
    import webbrowser  # noqa: PLC0415

    monkeypatch.setattr(webbrowser, "_tryorder", None)
    attempt = Attempt(world, store, "codex", browser=True)
    assert attempt.result().type == "codex"
    assert "ssh" not in attempt.text


def test_an_unknown_provider(world: World, store: cp.Store) -> None:
    assert "claude, codex" in str(Attempt(world, store, "chatgpt").error())


# Files


def test_a_new_login_keeps_the_other_keys(world: World, store: cp.Store) -> None:
    name = sign_in(world, store, "codex").name
    note = {"message": "m", "token": cp.digest("codex-refresh-2")}
    store.merge(name, {"prefix": "work", "disabled": False, "cliproxy": {"refused": note}})
    assert cp.why_dead(store.get(name).data)
    credential = sign_in(world, store, "codex")
    assert credential.name == name
    assert (credential.data["prefix"], credential.data["cliproxy"]) == ("work", {})
    assert len(store.credentials()) == 1


def test_a_file_under_another_name_is_found(world: World, store: cp.Store) -> None:
    old = {"type": "codex", "email": "ann@example.com", "account_id": "acc-1", "access_token": "old"}
    store.create("mine.json", old)
    assert sign_in(world, store, "codex").name == "mine.json"


@pytest.mark.parametrize("provider", ["codex", "claude"])
def test_two_accounts_of_one_address_do_not_overwrite_each_other(
    world: World, store: cp.Store, provider: str
) -> None:
    first = sign_in(world, store, provider)
    world.account = "acc-2"
    second = sign_in(world, store, provider)
    assert first.name != second.name
    assert store.get(first.name).data == first.data
    assert sign_in(world, store, provider).name == second.name


def test_names_of_codex_files(world: World, store: cp.Store) -> None:
    world.plan, world.email = "team", "a/../b@example.com"
    name = sign_in(world, store, "codex").name
    assert re.fullmatch(r"codex-[0-9a-f]{8}-a_.._b@example.com-team.json", name)


STANDARD = {
    "allowedTiers": [{"id": "standard-tier", "isDefault": True, "userDefinedCloudaicompanionProject": True}]
}


# Refresh


def stale(credential: cp.Credential, store: cp.Store, clock: Clock) -> cp.Credential:
    return store.merge(credential.name, {"expired": cp.write_time(clock() - 10)})


# Usage, logout


def test_usage(world: World, store: cp.Store) -> None:
    claude = sign_in(world, store, "claude")
    assert cp.usage_of(claude, world.config()) == [
        cp.Window("5h", 12.5, 1770633611.123456), cp.Window("7d", 80.0, None),
    ]  # fmt: skip
    codex = sign_in(world, store, "codex")
    assert cp.usage_of(codex, world.config()) == [
        cp.Window("5h", 7.5, 1770633600.0), cp.Window("7d", 40.0, 1770633611.0), cp.Window("5h spark", 7.5, 1770633600.0),
    ]  # fmt: skip
    assert cp.usage_of(sign_in(world, store, "kimi"), world.config()) == []
    world.access.clear()
    with pytest.raises(cp.ProxyError, match="OAuth token has expired") as caught:
        cp.usage_of(claude, world.config())
    assert caught.value.kind == "unauthorized"


def test_logout(world: World, store: cp.Store) -> None:
    claude, codex = sign_in(world, store, "claude"), sign_in(world, store, "codex")
    assert "revoked" in cp.logout(claude, store, world.config())
    assert claude.data["refresh_token"] not in world.live
    assert "revoked" not in cp.logout(codex, store, world.config())
    assert not store.credentials()
    again = sign_in(world, store, "claude")
    config = world.config(claude={"revoke-url": f"{world.url}/nowhere"})
    assert "could not be revoked" in cp.logout(again, store, config)


def test_an_error_without_our_state_is_of_any_page(world: World, store: cp.Store) -> None:
    attempt = Attempt(world, store, "codex")
    url = attempt.url()
    attempt.paste("http://localhost/auth/callback?error=access_denied")
    attempt.paste(consent(url))
    assert attempt.result().data["refresh_token"] in world.live


def forward_one(port: int, target: int) -> None:
    """Listen, and hand one exchange on to another port of this machine."""
    listener = socket.create_server(("127.0.0.1", port))

    def serve() -> None:
        with listener, listener.accept()[0] as near, socket.create_connection(("127.0.0.1", target)) as far:
            threading.Thread(target=pump, args=(near, far), daemon=True).start()
            pump(far, near)

    threading.Thread(target=serve, daemon=True).start()


def pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            sink.sendall(data)


def test_a_code_is_not_lost_where_the_way_is_cut(world: World, store: cp.Store) -> None:
    """No DNS, or nobody listens: the code has not been used, and is tried again."""
    config = world.config()
    port = free_port()
    config.data["providers"]["codex"]["token-url"] = f"http://127.0.0.1:{port}/codex/token"
    attempt = Attempt(world, store, "codex", config)
    pauses: list[float] = []

    def mend() -> None:
        pauses.append(world.clock())
        if len(pauses) == 2:
            forward_one(port, world.server_port)

    attempt.on_pause = mend
    attempt.paste(consent(attempt.url()))
    attempt.wait_for("the code is not lost")
    assert attempt.result().data["refresh_token"] in world.live
    assert len(pauses) == 2
