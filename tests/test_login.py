"""Every login, refresh and import against the world of providers, over real sockets."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import re
import socket
import subprocess
import sys
import time
from concurrent import futures
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable
from urllib.parse import parse_qsl, urlsplit

import pytest

import cliproxy as cp
from support.world import Clock, Fault, World, free_port, jwt

Json = cp.Json
URL = re.compile(r"^https?://\S+$", re.MULTILINE)


@pytest.fixture
def store(tmp_path: Path) -> cp.Store:
    return cp.Store(tmp_path / "auth")


def visit(url: str, **headers: str) -> tuple[int, str, str]:
    """GET a URL as a browser does, without following; return status, location and text."""
    parts = urlsplit(url)
    with contextlib.closing(http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=5)) as wire:
        wire.request("GET", f"{parts.path}?{parts.query}", headers={"user-agent": "test", **headers})
        reply = wire.getresponse()
        return reply.status, reply.headers["location"] or "", reply.read().decode()


class Attempt:
    """A login under way in its own thread, and the user in front of it."""

    def __init__(
        self, world: World, store: cp.Store, provider: str, config: cp.Config | None = None, **options: Any
    ) -> None:
        self.said: queue.Queue[str] = queue.Queue()
        self.text = ""
        self.terminal = cp.Terminal(self.said.put, screen=options.pop("screen", (0, 0)))
        self.terminal.pause = self.pause
        self.on_pause: Callable[[], None] = lambda: None
        self.world = world
        config = config or world.config()
        options = {"browser": False, **options}
        pool = ThreadPoolExecutor(1)
        self.future = pool.submit(
            cp.login, provider, cp.Options(**options), config, store, self.terminal, world.clock
        )
        pool.shutdown(wait=False)

    def pause(self, seconds: float) -> None:
        self.world.clock.advance(seconds)
        self.on_pause()

    def wait_for(self, pattern: str) -> str:
        """Return the first match in what the program says."""
        while not (match := re.search(pattern, self.text, re.MULTILINE)):
            self.text += self.said.get(timeout=5) + "\n"
        return str(match[0])

    def url(self, at: int = 0) -> str:
        self.wait_for(r"ssh -N -L")
        return str(URL.findall(self.text)[at])

    def paste(self, line: str | None) -> None:
        self.terminal.inbox.put(cp.Arrival(line))

    def result(self) -> cp.Credential:
        return self.future.result(timeout=8)

    def error(self) -> cp.ProxyError:
        error = self.future.exception(timeout=8)
        assert isinstance(error, cp.ProxyError), error
        return error


def consent(url: str) -> str:
    """Let the user consent at the provider; return where the browser is sent."""
    status, location, text = visit(url)
    assert status == 302, text
    return location


def sign_in(world: World, store: cp.Store, provider: str, **options: Any) -> cp.Credential:
    """Log in the shortest way, to have a credential to work with."""
    attempt = Attempt(world, store, provider, **options)
    if options.get("device") or not cp.LOGINS[provider].redirect_path:
        attempt.wait_for("Waiting")
        for device in world.devices.values():
            device["state"] = "granted"
        if provider == "qwen":
            attempt.paste("ann@example.com")
    else:
        attempt.paste(consent(attempt.url()))
    return attempt.result()


# The browser flow


def test_pkce_vector() -> None:
    """RFC 7636, appendix B."""
    assert (
        cp.challenge("dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk")
        == "E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"
    )


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
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", parts.port, timeout=5)) as wire:
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


@pytest.mark.parametrize(
    ("environment", "headless"),
    [({"SSH_CONNECTION": "1.2.3.4 5 6.7.8.9 22", "DISPLAY": ":0"}, True), ({"DISPLAY": ":0"}, False), ({"WAYLAND_DISPLAY": "w"}, False)],
)  # fmt: skip
def test_when_no_browser_can_open(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], headless: bool
) -> None:
    for name in ("SSH_CONNECTION", "DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    assert cp.is_headless() == sys.platform.startswith("linux")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert cp.is_headless() == headless


def test_the_tunnel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("USER", "ann")
    monkeypatch.setenv("SSH_CONNECTION", "10.0.0.1 51000 10.0.0.2 2222")
    assert cp.tunnel(1455, 1455) == "ssh -N -L 1455:127.0.0.1:1455 -p 2222 ann@10.0.0.2"
    monkeypatch.delenv("SSH_CONNECTION")
    assert cp.tunnel(1455, 99) == f"ssh -N -L 1455:127.0.0.1:99 ann@{socket.gethostname()}"


def test_an_unknown_provider(world: World, store: cp.Store) -> None:
    assert "claude, codex" in str(Attempt(world, store, "chatgpt").error())


# Files


def test_a_new_login_keeps_the_other_keys(world: World, store: cp.Store) -> None:
    name = sign_in(world, store, "codex").name
    note = {"message": "m", "token": cp.digest("codex-refresh-2")}
    store.merge(name, {"prefix": "work", "disabled": False, "cliproxy": {"refused": note}})
    assert cp.refused(store.get(name).data)
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


# Google


def test_gemini_with_a_project_that_is_known(world: World, store: cp.Store) -> None:
    attempt = Attempt(world, store, "gemini")
    to = consent(attempt.url())
    assert to.startswith("https://codeassist.google.com/authcode")
    attempt.paste(dict(parse_qsl(urlsplit(to).query))["code"])
    credential = attempt.result()
    assert credential.name == "gemini-ann@example.com-proj-1.json"
    token = credential.data["token"]
    assert token["access_token"] == credential.data["access_token"]
    assert token["refresh_token"] == credential.data["refresh_token"]
    assert cp.expires_at(credential.data) == world.clock() + 3600
    assert "open-secret" not in json.dumps(credential.data)
    assert "2026-06-18" in attempt.text
    assert "gemini-api-key" in attempt.text


FREE = {"allowedTiers": [{"id": "free-tier", "isDefault": True}]}
STANDARD = {
    "allowedTiers": [{"id": "standard-tier", "isDefault": True, "userDefinedCloudaicompanionProject": True}]
}


def test_onboarding_of_the_free_tier(world: World, store: cp.Store) -> None:
    world.google["load"] = FREE
    attempt = Attempt(world, store, "gemini")
    attempt.paste(consent(attempt.url()))
    assert attempt.result().data["project_id"] == "free-project"


def test_onboarding_with_a_choice_of_projects(world: World, store: cp.Store) -> None:
    world.google["load"] = STANDARD
    attempt = Attempt(world, store, "gemini")
    attempt.paste(consent(attempt.url()))
    attempt.wait_for("proj-1, proj-2")
    attempt.paste("proj-2")
    assert attempt.result().name == "gemini-ann@example.com-proj-2.json"
    assert world.google["enabled"] == {"proj-2"}


def test_a_project_number_is_refused(world: World, store: cp.Store) -> None:
    world.google["load"] = STANDARD
    attempt = Attempt(world, store, "gemini")
    attempt.paste(consent(attempt.url()))
    attempt.paste("123456")
    assert "--project_id" in str(attempt.error())
    assert not store.scan()


def test_all_projects(world: World, store: cp.Store) -> None:
    world.google["load"] = STANDARD
    attempt = Attempt(world, store, "gemini", project="ALL")
    attempt.paste(consent(attempt.url()))
    credential = attempt.result()
    assert credential.name == "gemini-ann@example.com-all.json"
    assert credential.data["project_id"] == "proj-1,proj-2"


def test_an_account_that_google_does_not_serve(world: World, store: cp.Store) -> None:
    reason = {
        "reasonCode": "UNSUPPORTED_CLIENT",
        "reasonMessage": "no longer supported",
        "validationUrl": "https://x.y",
    }
    world.google["load"] = {"ineligibleTiers": [reason]}
    attempt = Attempt(world, store, "gemini")
    attempt.paste(consent(attempt.url()))
    assert "no longer supported https://x.y" in str(attempt.error())
    assert not store.scan()


@pytest.mark.parametrize("provider", ["gemini", "antigravity", "iflow"])
def test_a_missing_client_secret_is_said_before_anything_else(
    world: World, store: cp.Store, provider: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "")
    attempt = Attempt(world, store, provider, world.config(**{provider: {"client-secret": ""}}))
    assert f"providers.{provider}.client-secret" in str(attempt.error())
    assert not world.asks


@pytest.mark.skipif(os.name != "posix", reason="makes a symbolic link and an executable")
@pytest.mark.parametrize(
    "place",
    [
        "gemini-cli/bundle/chunk-ABC.js", "gemini-cli/node_modules/@google/gemini-cli-core/dist/src/code_assist/oauth2.js",
        "gemini-cli-core/dist/src/code_assist/oauth2.js",
    ],
)  # fmt: skip
def test_the_secret_of_the_installed_gemini_cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    package = tmp_path / "lib/node_modules/@google"
    program = package / "gemini-cli/bundle/gemini.js"
    program.parent.mkdir(parents=True)
    program.write_text("#!/usr/bin/env node\n")
    program.chmod(0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gemini").symlink_to(program)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert not cp.installed_secret()
    path = package / place
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('var OAUTH_CLIENT_ID = "x";\nvar OAUTH_CLIENT_SECRET = "not-really-secret";\n')
    assert cp.installed_secret() == "not-really-secret"


def test_antigravity_says_that_it_may_not_work(world: World, store: cp.Store) -> None:
    attempt = Attempt(world, store, "antigravity")
    attempt.paste(consent(attempt.url()))
    data = attempt.result().data
    assert (data["project_id"], data["expires_in"], data["timestamp"]) == (
        "proj-1",
        3600,
        world.clock() * 1000,
    )
    assert attempt.result().name == "antigravity-ann@example.com.json"
    assert "refuse" in attempt.text


def test_iflow_logs_in_for_its_key(world: World, store: cp.Store) -> None:
    credential = sign_in(world, store, "iflow")
    assert credential.data["api_key"] == f"key-of-{credential.data['access_token']}"
    renewed = cp.refresh(credential, store, world.config(), world.clock)
    assert renewed.data["api_key"] == f"key-of-{renewed.data['access_token']}" != credential.data["api_key"]


# Device flows


@pytest.mark.parametrize("provider", ["kimi", "xai", "qwen", "codex"])
def test_device_login(world: World, store: cp.Store, provider: str) -> None:
    attempt = Attempt(world, store, provider, device=True)
    states = iter(
        ["pending", "slow", "pending", "granted"] if provider != "codex" else ["pending", "granted"]
    )

    def later() -> None:
        for device in world.devices.values():
            device["state"] = next(states, "granted")

    attempt.on_pause = later
    attempt.wait_for("Waiting")
    if provider == "qwen":
        attempt.paste("ann@example.com")
    credential = attempt.result()
    assert credential.type == provider
    assert "WXYZ" in attempt.text or "ABCD-1234" in attempt.text
    assert credential.data["refresh_token"].startswith(f"{provider}-refresh")


def test_device_files(world: World, store: cp.Store) -> None:
    kimi = sign_in(world, store, "kimi")
    assert kimi.name == f"kimi-{kimi.data['timestamp']}.json"
    assert kimi.data["expired"].endswith("Z")
    assert len(kimi.data["device_id"]) == 32
    xai = sign_in(world, store, "xai")
    assert xai.name == "xai-ann@example.com.json"
    assert xai.data["token_endpoint"] == f"{world.url}/xai/token"
    qwen = sign_in(world, store, "qwen")
    assert (qwen.name, qwen.data["resource_url"]) == ("qwen-ann@example.com.json", "portal.qwen.ai")


@pytest.mark.parametrize(
    ("state", "word"), [("denied", "was refused"), ("old", "came too late"), ("pending", "took too long")]
)
def test_device_logins_that_fail(world: World, store: cp.Store, state: str, word: str) -> None:
    attempt = Attempt(world, store, "kimi")

    def later() -> None:
        for device in world.devices.values():
            device["state"] = state

    attempt.on_pause = later
    assert word in str(attempt.error())
    assert not store.scan()


def test_device_polls_survive_a_bad_line(world: World, store: cp.Store) -> None:
    world.faults["kimi/token"] += [Fault(0), Fault(502, b"<html>"), Fault(429)]
    assert sign_in(world, store, "kimi").type == "kimi"
    assert world.count("/kimi/token") == 4


def test_an_account_without_device_login(world: World, store: cp.Store) -> None:
    world.device_login = False
    assert "--no-browser" in str(Attempt(world, store, "codex", device=True).error())


def test_xai_must_name_its_own_endpoints(world: World, store: cp.Store) -> None:
    world.google["xai"] = "https://x.ai.example.com/device"
    assert "not its own" in str(Attempt(world, store, "xai").error())


# Refresh


def stale(credential: cp.Credential, store: cp.Store, clock: Clock) -> cp.Credential:
    return store.merge(credential.name, {"expired": cp.write_time(clock() - 10)})


@pytest.mark.parametrize("provider", ["claude", "codex", "gemini", "antigravity", "kimi", "xai", "qwen"])
def test_refresh(world: World, store: cp.Store, provider: str) -> None:
    credential = sign_in(world, store, provider)
    store.merge(credential.name, {"note": "mine"})
    world.clock.advance(4000)
    assert cp.due(credential, world.clock())
    renewed = cp.refresh(credential, store, world.config(), world.clock)
    assert renewed == store.get(credential.name)
    assert cp.field_of(renewed.data, "access_token") != cp.field_of(credential.data, "access_token")
    assert cp.field_of(renewed.data, "refresh_token")
    kept = provider in {"gemini", "antigravity"}
    assert (renewed.data["refresh_token"] == credential.data["refresh_token"]) == kept
    assert renewed.data["note"] == "mine"
    assert cp.expires_at(renewed.data) == world.clock() + 3600
    assert not cp.due(renewed, world.clock())
    if provider == "gemini":
        assert renewed.data["token"]["refresh_token"] == credential.data["refresh_token"]
        assert renewed.data["token"]["access_token"] == renewed.data["access_token"]


def test_a_file_of_type_gemini_cli_is_gemini_s(world: World, store: cp.Store) -> None:
    credential = sign_in(world, store, "gemini")
    store.merge(credential.name, {"type": "gemini-cli", "note": "mine"})
    world.clock.advance(4000)
    for known in (store.get(credential.name), store.credentials()[0]):
        assert cp.due(known, world.clock())
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


def test_two_processes_make_one_refresh(world: World, store: cp.Store) -> None:
    credential = sign_in(world, store, "codex")
    children = [spawn(world, store, credential) for _ in range(3)]
    for process in children:
        assert process.stdin
        process.stdin.write("\n")
        process.stdin.flush()
    tokens = {process.communicate(timeout=10)[0] for process in children}
    assert len(tokens) == 1
    assert world.count("/codex/token") == 2


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
    assert process.communicate("\n", timeout=10)[0] == ""
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
    assert bool(cp.refused(after.data)) == final
    assert cp.due(after, world.clock()) != final
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
    assert not cp.refused(renewed.data)
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
    assert not cp.refused(store.get(credential.name).data)


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
    assert not cp.due(credential, world.clock())


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
    assert cp.due(credential, NOW) == answer


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


# Import


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "home"
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("USERPROFILE", str(home))
    for vendors in cp.VENDOR_FILES.values():
        for vendor in vendors:
            monkeypatch.delenv(vendor.variable or "NONE", raising=False)
    return home


def lay(path: Path, data: Json) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(data))
    return path


def take_over(world: World, store: cp.Store, provider: str, source: str = "auto") -> tuple[Json, str]:
    attempt = Attempt(world, store, provider, source=source)
    if provider == "qwen":
        attempt.paste("ann@example.com")
    data = attempt.result().data
    with contextlib.suppress(queue.Empty):
        while True:
            attempt.text += attempt.said.get_nowait()
    return data, attempt.text


def test_import_from_codex(
    world: World, store: cp.Store, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    access = jwt({"exp": int(world.clock()) + 777})
    tokens = {
        "id_token": world.id_token(),
        "access_token": access,
        "refresh_token": "r",
        "account_id": "acc-1",
    }
    path = lay(
        home / "elsewhere/auth.json",
        {"OPENAI_API_KEY": None, "tokens": tokens, "last_refresh": "2026-02-09T10:40:11.1Z"},
    )
    monkeypatch.setenv("CODEX_HOME", str(path.parent))
    before = path.read_bytes()
    data, text = take_over(world, store, "codex")
    assert {key: data[key] for key in tokens} == tokens
    assert cp.expires_at(data) == world.clock() + 777
    assert (data["email"], cp.plan_of(data)) == ("ann@example.com", "plus")
    assert "log" in text
    assert "cliproxy login codex" in text
    assert path.read_bytes() == before


def test_import_from_claude_code(world: World, store: cp.Store, home: Path) -> None:
    held = {
        "accessToken": "at",
        "refreshToken": "rt",
        "expiresAt": 1770633611000,
        "subscriptionType": "pro",
        "clientId": "own-id",
    }
    lay(home / ".claude/.credentials.json", {"claudeAiOauth": held})
    owner = {"emailAddress": "bob@example.com", "accountUuid": "u", "organizationUuid": "o"}
    lay(home / ".claude.json", {"oauthAccount": owner})
    world.access["at"] = "claude"
    data, text = take_over(world, store, "claude")
    assert (data["access_token"], data["refresh_token"], data["email"]) == ("at", "rt", "bob@example.com")
    assert cp.expires_at(data) == 1770633611.0
    assert data["client_id"] == "own-id"
    assert "Claude Code and cliproxy now share" in text


def test_import_of_a_token_that_cannot_be_renewed(world: World, store: cp.Store, home: Path) -> None:
    lay(home / ".claude/.credentials.json", {"claudeAiOauth": {"accessToken": "at", "refreshToken": ""}})
    data, text = take_over(world, store, "claude")
    assert "refresh_token" not in data
    assert "share" not in text
    assert [credential.name for credential in store.credentials()] == ["claude-account.json"]


def test_import_of_an_sdk_profile(world: World, store: cp.Store, home: Path) -> None:
    folder = home / ".config/anthropic"
    held = {
        "version": "1.0",
        "type": "oauth_token",
        "access_token": "at",
        "expires_at": 1770633611,
        "refresh_token": "rt",
    }
    lay(
        folder / "credentials/default.json",
        {**held, "organization_uuid": "o", "account_email": "bob@example.com"},
    )
    way = {"type": "user_oauth", "client_id": "sdk-client"}
    lay(folder / "configs/default.json", {"version": "1.0", "base_url": world.url, "authentication": way})
    data, _ = take_over(world, store, "claude")
    assert (data["email"], data["client_id"]) == ("bob@example.com", "sdk-client")
    assert data["token_endpoint"] == f"{world.url}/v1/oauth/token"
    flow = cp.Flow(cp.LOGINS["claude"], world.config(claude={"token-url": ""}), data)
    assert (flow.row.token_url, flow.row.client_id) == (data["token_endpoint"], "sdk-client")


@pytest.mark.parametrize(
    ("provider", "path", "held"),
    [
        ("gemini", ".gemini/oauth_creds.json", {"expiry_date": 1999999999000, "token_type": "Bearer"}),
        ("qwen", ".qwen/oauth_creds.json", {"expiry_date": 1999999999000, "resource_url": "portal.qwen.ai"}),
        ("kimi", ".kimi/credentials/kimi-code.json", {"expires_at": 1999999999.0, "expires_in": 900}),
    ],
)
def test_import_of_plain_files(
    world: World, store: cp.Store, home: Path, provider: str, path: str, held: Json
) -> None:
    lay(home / path, {"access_token": "at", "refresh_token": "rt", **held})
    world.access["at"] = provider
    data, text = take_over(world, store, provider)
    assert (data["access_token"], data["refresh_token"], data["type"]) == ("at", "rt", provider)
    assert cp.expires_at(data) == 1999999999.0
    assert ("share one refresh token" in text) == (provider != "gemini")


def test_an_expired_import_from_gemini_is_renewed(world: World, store: cp.Store, home: Path) -> None:
    held = {**world.tokens("gemini"), "expiry_date": 1770633611000}
    lay(home / ".gemini/oauth_creds.json", held)
    world.access.pop(held["access_token"])
    data, _ = take_over(world, store, "gemini")
    assert data["refresh_token"] == held["refresh_token"]
    assert cp.expires_at(data) == world.clock() + 3600


def test_import_from_grok(world: World, store: cp.Store, home: Path) -> None:
    path = lay(
        home / "copy.json",
        {"https://auth.x.ai::id": {"key": "at", "refresh_token": "rt", "expires_at": 1770633611}},
    )
    data, _ = take_over(world, store, "xai", str(path))
    assert (data["access_token"], data["refresh_token"]) == ("at", "rt")


@pytest.mark.parametrize("provider", ["codex", "claude", "antigravity"])
def test_nothing_to_import(world: World, store: cp.Store, home: Path, provider: str) -> None:
    lay(home / ".claude/.credentials.json", {"claudeAiOauth": {"accessToken": "", "expiresAt": 0}})
    assert "log in instead" in str(Attempt(world, store, provider, source="auto").error())
    assert not store.scan()


# Small parts


@pytest.mark.parametrize("token", ["", "a", "a.b", "a.!!.c", "a.bnVsbA.c", None, 7, "a.W10.c", "a.\u00fc.c"])
def test_a_jwt_that_is_none(token: object) -> None:
    assert cp.jwt_claims(token) == {}


def test_lines_of_a_terminal() -> None:
    reading, writing = os.pipe()
    terminal = cp.Terminal(lambda text: None, reading)
    os.write(writing, b"one\r\ntw")
    os.write(writing, "o \u00fc\nlast".encode())
    os.close(writing)
    got = [terminal.take(time.monotonic() + 5).text for _ in range(4)]
    assert got == ["one", "two \u00fc", "last", None]
    os.close(reading)


# QR codes: golden matrices, checked once with a decoder (zxing), kept as digests


@pytest.mark.parametrize(("size", "modules", "seal"), [
    (17, 21, "bdde646f1f4da712810e0f78"),
    (18, 25, "4406b71767061cabf72de48b"),
    (134, 41, "9112918b93f44a8a9c10fd28"),
    (420, 69, "5a9bbc3eadcfd82838a1686e"),
    (858, 97, "15520edb47989767454501fe"),
])  # fmt: skip
def test_qr_codes(size: int, modules: int, seal: str) -> None:
    rows = cp.qr_matrix(("https://example.com/?" + "abcDEF123-_~" * 80)[:size].encode())
    assert len(rows) == modules
    assert cp.digest(rows) == seal


def test_qr_limits() -> None:
    with pytest.raises(ValueError, match="too long"):
        cp.qr_matrix(b"x" * 859)


def test_qr_is_shown_when_it_fits(world: World, store: cp.Store) -> None:
    for screen, shown in (((200, 60), True), ((60, 60), False), ((200, 24), False), ((0, 0), False)):
        attempt = Attempt(world, store, "codex", screen=screen)
        attempt.url()
        assert ("\u2580" in attempt.text) == shown
        attempt.paste(consent(attempt.url()))
        attempt.result()
