"""`cliproxy doctor`: each check finds what it is for, and what people look for in guides is found."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import cliproxy as cp
from support.dialogue import SSE, STREAMS, Said
from support.home import Home
from support.proxy import Proxy, ProxyMaker
from support.upstream import Upstream

Json = cp.Json
VENDOR_VARIABLES = {row.name for row in cp.VARIABLES} | set(cp.PROXY_VARIABLES) | {"NO_PROXY", "no_proxy"}


@pytest.fixture
def patient(home: Home, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A home in which nothing is wrong but that no server runs and there is no account."""
    for name in VENDOR_VARIABLES | {row.folder.variable for row in cp.CLIENTS.values()} - {""}:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(home.folder / "bin"))
    home.write({"port": free_port()})
    (home.auth / "config.json").chmod(0o600)
    return home


def free_port() -> int:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        return int(listener.getsockname()[1])


def seen(home: Home, *words: str) -> tuple[int, list[Json]]:
    status, text = home.run("doctor", "--json", "--offline", *words)
    rows: list[Json] = json.loads(text)
    return status, rows


def problems(home: Home, *words: str) -> dict[str, list[Json]]:
    found: dict[str, list[Json]] = {}
    for row in seen(home, *words)[1]:
        if row["status"] in {"warn", "fail"}:
            found.setdefault(row["id"], []).append(row)
    return found


def test_nothing_is_made_where_nothing_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    with contextlib.suppress(SystemExit):
        cp.main(["doctor", "--offline"])
    assert list(tmp_path.iterdir()) == []


def test_every_check_has_a_name_and_says_something(patient: Home) -> None:
    status, rows = seen(patient)
    assert status == 1
    assert {row["id"] for row in rows} == {check.id for check in cp.CHECKS}
    old = {"python"} if sys.version_info < (3, 10) else set()  # it gets no more fixes
    assert set(problems(patient)) == {"server", "accounts"} | old
    assert all(row["fix"] for row in rows if row["status"] == "fail")


# fmt: off
def settings(**config: Any) -> Callable[[Home, pytest.MonkeyPatch], None]:
    def write(home: Home, _: pytest.MonkeyPatch) -> None:
        home.write({"port": free_port(), **{key.replace("_", "-"): value for key, value in config.items()}})
    return write


def variable(name: str, value: str) -> Callable[[Home, pytest.MonkeyPatch], None]:
    return lambda _, monkeypatch: monkeypatch.setenv(name, value)


def file(name: str, content: Any, mode: int = 0o600) -> Callable[[Home, pytest.MonkeyPatch], None]:
    def write(home: Home, _: pytest.MonkeyPatch) -> None:
        path = home.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        path.chmod(mode)
    return write


def both(*steps: Callable[[Home, pytest.MonkeyPatch], None]) -> Callable[[Home, pytest.MonkeyPatch], None]:
    def prepare(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
        for step in steps:
            step(home, monkeypatch)
    return prepare


def rest(home: Home, _: pytest.MonkeyPatch) -> None:
    row = {"account": "claude-a.json", "model": "", "end": time.time() + 600, "status": 429, "why": "slow down"}
    file(".cli-proxy-api/.cliproxy/state", {"cooldowns": [row]})(home, _)


LOGIN = {"type": "claude", "access_token": "claude-access-0123456789", "refresh_token": "claude-refresh-0123456789", "email": "a@example.com",
         "expired": "2999-01-01T00:00:00Z"}
CODEX = {"tokens": {"access_token": "a", "refresh_token": "codex-refresh-0123456789"}}
A_KEY = {"api-key": "sk-ant-0123456789abcdef"}
UNIT = f"[Service]\nExecStart=/no/such/python3.9 -u {Path(cp.__file__).resolve()} serve\n"
FOUND = [  # what is wrong, the check that finds it, its status, what it says, what mends it
    pytest.param(settings(prot=1), "config", "warn", "did you mean port?", "config edit", id="an unknown key"),
    pytest.param(settings(port="http"), "config", "fail", "a whole number", "config edit", id="a config that is none"),
    pytest.param(both(settings(), file("cliproxy.yaml", "port: 1\n")), "config", "warn", "is not read", "--config", id="two configs"),
    pytest.param(both(settings(), file(".cli-proxy-api/claude-a.json", LOGIN, 0o644)),
                 "modes", "warn", "others can read", "chmod 600", id="a login that others read"),
    pytest.param(settings(host="0.0.0.0", api_keys=["k" * 20]), "exposure", "warn", "without TLS", "tls.enable", id="bind: open to the network"),
    pytest.param(settings(host="0.0.0.0"), "exposure", "fail", "add a key", "key new", id="bind: open without keys"),
    pytest.param(settings(api_keys=["short"]), "exposure", "warn", "easily guessed", "key new", id="a weak key"),
    pytest.param(file(".cli-proxy-api/claude-a.json", "{"), "accounts", "fail", "is damaged", "log in again", id="a damaged login"),
    pytest.param(file(".cli-proxy-api/claude-a.json", {**LOGIN, "refresh_token": "", "expired": "2001-01-01T00:00:00Z"}),
                 "accounts", "fail", "needs a new login", "login claude", id="401: an expired login"),
    pytest.param(both(file(".cli-proxy-api/claude-a.json", LOGIN), rest), "accounts", "warn", "rests until", "accounts wake", id="429: an account rests"),
    pytest.param(both(file(".cli-proxy-api/claude-a.json", LOGIN), file(".cli-proxy-api/claude-b.json", {**LOGIN, "email": "b"})),
                 "accounts", "fail", "share one login", "login claude", id="one login in two files"),
    pytest.param(both(file(".cli-proxy-api/codex-a.json", {**LOGIN, "type": "codex", "refresh_token": "codex-refresh-0123456789"}),
                      file(".codex/auth.json", CODEX)), "accounts", "warn", "share one login", "login codex", id="the vendor's own login"),
    pytest.param(both(file(".cli-proxy-api/claude-a.json", LOGIN), file(".cli-proxy-api/claude-b.json", {**LOGIN, "refresh_token": "r2"})),
                 "accounts", "warn", "the same account", "remove one", id="an account twice"),
    pytest.param(settings(model_fallbacks={"m": ["claude-opus-9"]}), "models", "warn", "nobody serves claude-opus-9", "models", id="a fallback that is none"),
    pytest.param(lambda home, _: home.write({"port": 8123, "claude-api-key": [{**A_KEY, "base-url": "http://127.0.0.1:8123"}]}),
                 "loop", "fail", "asks this proxy itself", "base-url", id="its own upstream"),
    pytest.param(both(lambda home, _: home.write({"port": 8123}), variable("HTTPS_PROXY", "http://127.0.0.1:8123")),
                 "loop", "fail", "HTTPS_PROXY", "unset", id="its own proxy"),
    pytest.param(both(variable("ANTHROPIC_BASE_URL", "https://u:pass-0123456789@x.example"), file(".bashrc", "#\nexport ANTHROPIC_BASE_URL=x\n")),
                 "shell", "warn", "ANTHROPIC_BASE_URL=https://...@x.example", "~/.bashrc line 2", id="wrong host in the shell"),
    pytest.param(variable("CLAUDE_CODE_USE_BEDROCK", "1"), "shell", "warn", "whatever the address", "unset", id="Bedrock"),
    pytest.param(variable("HTTP_PROXY", "http://10.0.0.1:3128"), "shell", "warn", "NO_PROXY lacks 127.0.0.1", "export NO_PROXY", id="a proxy for loopback too"),
    pytest.param(file(".gemini/settings.json", '{"a": [1,],}'), "clients", "fail", "a comma too many", "setup gemini-cli", id="gemini-cli and a comma"),
    pytest.param(file(".factory/settings.json", "\ufeff{}"), "clients", "fail", "byte order mark", "setup droid", id="droid and a mark"),
    pytest.param(file(".claude/settings.json", "{} // mine"), "clients", "fail", "settings.json is not read", "by hand", id="Claude Code and a comment"),
    pytest.param(both(file(".gemini/x", ""), file(".env", "A=1\n")), "leftovers", "warn", "hides ~/.gemini/.env", "run gemini-cli", id="a project's .env"),
    pytest.param(file(".factory/config.json", {}), "leftovers", "warn", "left over", "remove", id="an old file of a client"),
    pytest.param(file(".config/systemd/user/cliproxy.service", UNIT),
                 "service", "fail", "/no/such/python3.9, which is gone", "service install", id="a service without its Python"),
    pytest.param(both(file(".config/systemd/user/cliproxy.service", UNIT), variable("OPENAI_API_KEY", "sk-0123456789abcdef")),
                 "env-keys", "warn", "OPENAI_API_KEY is set in this shell", "key add-account", id="a key that a service does not see"),
]
# fmt: on


@pytest.mark.parametrize(("prepare", "check", "status", "says", "fix"), FOUND)
def test_what_is_wrong_is_found(  # noqa: PLR0917
    patient: Home,
    monkeypatch: pytest.MonkeyPatch,
    prepare: Callable[[Home, pytest.MonkeyPatch], None],
    check: str,
    status: str,
    says: str,
    fix: str,
) -> None:
    if check in {"service", "env-keys"} and sys.platform != "linux":
        pytest.skip("systemd's")
    prepare(patient, monkeypatch)
    rows = problems(patient).get(check, [])
    assert any(says in row["message"] and fix in row["fix"] and row["status"] == status for row in rows), rows
    text = json.dumps(rows)
    assert "0123456789" not in text  # no secret


def test_only_modes_are_mended(patient: Home) -> None:
    login = patient.auth / "claude-a.json"
    login.write_text(json.dumps(LOGIN))
    login.chmod(0o640)
    assert "modes" in problems(patient)
    assert stat.S_IMODE(login.stat().st_mode) == 0o640
    assert "modes" not in problems(patient, "--fix")
    assert stat.S_IMODE(login.stat().st_mode) == 0o600
    assert "modes" not in problems(patient)


def test_another_program_on_the_port(patient: Home) -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as listener:
        listener.settimeout(5.0)
        patient.write({"port": listener.getsockname()[1]})
        (row,) = problems(patient)["server"]
    assert "which is not cliproxy" in row["message"]
    assert "config set port" in row["fix"]


def test_a_running_server_is_asked_in_all_dialects(patient: Home, make_proxy: ProxyMaker) -> None:
    proxy = make_proxy(api_keys=["client-key-0123456789"])
    patient.write({"port": proxy.port, "api-keys": ["client-key-0123456789"]})
    rows = {row["id"]: row for row in seen(patient)[1]}
    assert (rows["server"]["status"], rows["echo"]["status"]) == ("ok", "ok")
    patient.write({"port": proxy.port, "api-keys": ["another-key-0123456789"]})
    (row,) = problems(patient)["echo"]
    assert "does not take the first of api-keys" in row["message"]


def test_every_account_is_asked_by_itself(patient: Home, upstream: Upstream) -> None:
    keyed = {"base-url": f"{upstream.url}/v1", "models": [{"name": "m"}]}
    entries = [
        {"name": name, **keyed, "api-key-entries": [{"api-key": f"key-of-{name}"}]} for name in ("one", "two")
    ]
    patient.write({"port": free_port(), "openai-compatibility": entries, "request-retry": 0})
    upstream.reply(STREAMS["chat"](Said("", "hi")), headers=SSE)
    upstream.reply({"error": {"message": "no such key: key-of-two"}}, 401)
    (row,) = problems(patient, "--live")["live"]
    assert row["message"].startswith("two[0]: m: ")
    assert "key-of-two" not in row["message"]
    assert [ask.headers["authorization"] for ask in upstream.seen] == [
        "Bearer key-of-one",
        "Bearer key-of-two",
    ]


def test_upstreams_are_reached_without_a_key(patient: Home, upstream: Upstream) -> None:
    ago = "Sat, 01 Jan 2000 00:00:00 GMT"
    upstream.reply({}, 404, {"date": ago})
    entry = {**A_KEY, "base-url": upstream.url}
    patient.write({"port": free_port(), "claude-api-key": [entry]})
    text = patient.run("doctor")[1]
    assert "network: this machine's clock is" in text
    assert "x-api-key" not in upstream.seen[0].headers
    patient.write(
        {"port": free_port(), "claude-api-key": [{**A_KEY, "base-url": f"http://127.0.0.1:{free_port()}"}]}
    )
    text = patient.run("doctor")[1]
    assert "network: 127.0.0.1 cannot be reached" in text


# -- clients: what setup wrote is in order, and each way to get it wrong is named ------------

SET_UP = sorted(name for name, row in cp.CLIENTS.items() if not row.variables)


@pytest.mark.parametrize("client", SET_UP)
def test_what_setup_writes_is_in_order(patient: Home, make_proxy: ProxyMaker, client: str) -> None:
    proxy = make_proxy(api_keys=["client-key-0123456789"])
    patient.write({"port": proxy.port, "api-keys": ["client-key-0123456789"]})
    assert problems(patient, client)["clients"][0]["fix"] == f"`cliproxy setup {client}`"
    status, text = patient.run("setup", client, "--yes", "--model", "echo")
    assert status == 0, text
    assert "clients" not in problems(patient, client), text
    patient.write({"port": proxy.port, "api-keys": ["another-key-0123456789"]})
    said = problems(patient, client).get("clients", [])
    if client not in {"zed", "goose"}:  # whose key is elsewhere
        assert any("api-keys" in row["message"] for row in said), said
    assert "0123456789" not in json.dumps(said)


# fmt: off
WRONG = [  # what stands in Codex's file instead, what is said
    ("http://127.0.0.1:PORT/v1/v1", "twice /v1"),
    ("http://127.0.0.1:PORT",       "it lacks /v1"),
    ("http://127.0.0.1:PORT/v1/",   "a slash at its end"),
    ("http://localhost:PORT/v1",    "for ::1"),
    ("https://127.0.0.1:PORT/v1",   "TLS or none"),
    ("http://127.0.0.1:1/v1",       "another port"),
]
# fmt: on


@pytest.mark.parametrize(("address", "says"), WRONG)
def test_a_wrong_address_is_explained(patient: Home, make_proxy: ProxyMaker, address: str, says: str) -> None:
    proxy: Proxy = make_proxy()
    patient.write({"port": proxy.port})
    assert patient.run("setup", "codex", "--yes", "--model", "echo")[0] == 0
    path = patient.folder / ".codex" / "config.toml"
    path.write_text(path.read_text().replace(f"{proxy.url}/v1", address.replace("PORT", str(proxy.port))))
    (row,) = problems(patient, "codex")["clients"]
    assert says in row["message"]


def test_a_model_that_nobody_serves_is_named(patient: Home, make_proxy: ProxyMaker) -> None:
    proxy = make_proxy()
    patient.write(
        {"port": proxy.port, "claude-api-key": [{**A_KEY, "models": [{"name": "claude-sonnet-5"}]}]}
    )
    assert patient.run("setup", "codex", "--yes", "--model", "claude-sonet-5")[0] == 0
    (row,) = problems(patient, "codex")["clients"]
    assert "names claude-sonet-5, which nobody serves; did you mean claude-sonnet-5?" in row["message"]


@pytest.mark.skipif(os.name != "posix", reason="modes are POSIX's")
def test_a_client_installed_twice(patient: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = [patient.folder / name for name in ("a", "b")]
    for folder in folders:
        folder.mkdir()
        (folder / "codex").write_text("")
        (folder / "codex").chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join(map(str, folders)))
    assert any("installed 2 times" in row["message"] for row in problems(patient)["clients"])


# -- the troubleshooting tables of the guides ---------------------------------------------

HI: Json = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}
ECHO = {"model": "echo", **HI}
# fmt: off
BY_A_CHECK = [  # what the guides list, the check that names its cause
    ("connection refused",                          "server"),
    ("bind: address already in use",                "server"),
    ("bind: 0.0.0.0 is refused",                    "exposure"),
    ("the model is not in the selector",            "clients"),
    ("invalid provider",                            "clients"),
    ("wrong port or host in a client",              "clients"),
    ("the client takes no notice of its settings",  "clients"),
    ("the client asks the vendor",                  "shell"),
    ("429",                                         "accounts"),
    ("401 of the provider",                         "accounts"),
    ("certificate verify failed",                   "network"),
    ("invalid_grant: the clock",                    "network"),
    ("the settings do nothing",                     "config"),
    ("works by hand, not as a service",             "env-keys"),
    ("gone after a restart",                        "service"),
    ("an upgrade changed nothing",                  "version"),
    ("too many open files",                         "limits"),
    ("508, endless requests",                       "loop"),
]
BY_THE_SERVER = [  # what the guides list: path, body, headers; status, and what the answer holds
    pytest.param("/responses",           {"model": "echo", "input": "hi"}, {},  200, b"hi",          id="404 /responses"),
    pytest.param("/v1/v1/messages",      ECHO,  {},                             200, b"hi",          id="404 /v1/v1/messages"),
    pytest.param("/v1/messages",         ECHO,  {"x-api-key": "wrong"},         401, b"key",         id="401: a wrong client key"),
    pytest.param("/v1/messages",         ECHO,  {"origin": "https://evil.example"}, 403, b"allow-origins", id="403, CORS: a web page"),
    pytest.param("/v1/messages",         ECHO,  {"host": "evil.example"},       403, b"evil.example", id="403: a foreign host name"),
    pytest.param("/v1/messages",         {**HI, "model": "up-clade"}, {},       404, b"up-claude",   id="wrong model name"),
    pytest.param("/v1/messages",         b"\x1f\x8bxx", {"content-encoding": "gzip"}, 400, b"the packed body is damaged", id="gzip"),
    pytest.param("/v1/nothing",          {},    {},                             404, b"/v1/nothing", id="404: a path that is none"),
    pytest.param("/v1/chat/completions", {**ECHO, "stream": True}, {},          200, b"data: [DONE]", id="SSE stuck"),
]
# fmt: on


@pytest.mark.parametrize(
    "check", [check for _, check in BY_A_CHECK], ids=[symptom for symptom, _ in BY_A_CHECK]
)
def test_what_guides_list_has_a_check(check: str) -> None:
    assert check in {row.id for row in cp.CHECKS}


@pytest.mark.parametrize(("path", "body", "headers", "status", "says"), BY_THE_SERVER)
def test_what_guides_list_the_server_says(
    make_proxy: ProxyMaker, path: str, body: Any, headers: dict[str, str], status: int, says: bytes
) -> None:
    proxy = make_proxy(api_keys=["client-key-0123456789"])
    key = {} if "x-api-key" in headers else {"authorization": "Bearer client-key-0123456789"}
    got = proxy.ask(path, body, {"content-type": "application/json", **key, **headers})
    assert (got.status, says in got.body) == (status, True), got
    streams = got.headers["content-type"].startswith("text/event-stream")
    assert got.headers.get("x-accel-buffering") == ("no" if streams else None)  # nginx holds streams back
