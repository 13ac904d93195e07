"""The command line as a user has it: a real process in a pseudo-terminal, against the world of providers."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable
from urllib.parse import parse_qsl, urlsplit

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

import cliproxy as cp
from support.home import Home, Session
from support.keys import pem_of
from support.logins import consent, visit
from support.paths import ROOT
from support.upstream import DEADLINE, Seen, Upstream, make_reply
from support.world import World

Json = cp.Json
pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
URL = re.compile(r"^http\S+$", re.MULTILINE)


def page_code(to: str) -> str:
    query = dict(parse_qsl(urlsplit(to).query))
    return f"{query['code']}#{query['state']}"


def log_in(home: Home, *words: str, answer: Callable[[str], str] = str, at: int = 0) -> Session:
    """Log in by pasting; the words are those of the command line."""
    session = home.start(*words)
    session.read_to(r"ssh -N -L \d+:127.0.0.1:\d+ ann@10.0.0.2")
    session.type(answer(consent(URL.findall(session.text)[at])) + "\r")
    assert session.end() == 0, session.text
    return session


# fmt: off
SPELLINGS = [
    pytest.param(["login", "codex", "--no-browser"],       str,       "codex-ann@example.com-plus.json", id="login codex"),
    pytest.param(["login", "codex"],                       str,       "codex-ann@example.com-plus.json", id="over SSH no browser opens"),
    pytest.param(["login", "claude", "--no-browser"],      page_code, "claude-ann@example.com.json",     id="login claude"),
    pytest.param(["--claude-login", "--no-browser"],       page_code, "claude-ann@example.com.json",     id="--claude-login"),
    pytest.param(["-claude-login", "-no-browser"],         page_code, "claude-ann@example.com.json",     id="-claude-login"),
    pytest.param(["--codex-login", "--no-browser"],        str,       "codex-ann@example.com-plus.json", id="--codex-login"),
    pytest.param(["-login", "-project_id", "proj-1"],      str,       "gemini-ann@example.com-proj-1.json", id="-login"),
    pytest.param(["-login", "-project_id=proj-1"],         str,       "gemini-ann@example.com-proj-1.json", id="-project_id="),
    pytest.param(["--antigravity-login"],                  str,       "antigravity-ann@example.com.json", id="--antigravity-login"),
    pytest.param(["--codex-login", "--config", "{config}"], str,      "codex-ann@example.com-plus.json", id="--config"),
    pytest.param(["-config={config}", "-codex-login"],     str,       "codex-ann@example.com-plus.json", id="-config="),
]
# fmt: on


@pytest.mark.slow
@pytest.mark.parametrize(("words", "answer", "file"), SPELLINGS)
def test_logins_by_pasting(home: Home, words: list[str], answer: Callable[[str], str], file: str) -> None:
    if "{config}" in "".join(words):
        (home.auth / "config.json").rename(home.folder / "other.json")
    words = [word.format(config=home.folder / "other.json") for word in words]
    session = log_in(home, *words, answer=answer)
    assert f"saved {home.auth / file}" in session.text
    assert home.files() == [file]
    on_a_phone = file.startswith(("claude-", "gemini-"))  # whose page shows the code, wherever it is open
    assert ("\u2580" in session.text) is on_a_phone  # a QR code


DEVICES = [
    pytest.param(["--codex-device-login"], "codex-ann@example.com-plus.json", id="--codex-device-login"),
    pytest.param(["login", "kimi"], "kimi-", id="kimi"),
    pytest.param(["--qwen-login"], "qwen-ann@example.com.json", id="--qwen-login"),
]


@pytest.mark.slow
@pytest.mark.parametrize(("words", "file"), DEVICES)
def test_logins_by_device(home: Home, world: World, words: list[str], file: str) -> None:
    session = home.start(*words)
    session.read_to("Waiting")
    for device in world.devices.values():
        device["state"] = "granted"
    if "qwen" in words[0]:
        session.read_to("A name for this account")
        session.type("ann@example.com\r")
    assert session.end() == 0, session.text
    (saved,) = home.files()
    assert saved.startswith(file)


def test_the_browser_comes_back_to_a_port_of_the_user_s_choice(home: Home) -> None:
    session = home.start("login", "claude", "--oauth-callback-port", "0", "--no-browser")
    session.read_to("ssh -N -L")
    session.read_to(r"address where it ends\):\n\n\S+\n")
    to = consent(URL.findall(session.text)[1])
    assert "You can close this window" in visit(to)[2]
    assert session.end() == 0, session.text
    assert home.files() == ["claude-ann@example.com.json"]


@pytest.mark.parametrize("last", ["", "\x04"], ids=["while it waits", "after the end of input"])
def test_the_last_page_is_fetched_from_another_shell(home: Home, last: str) -> None:
    session = home.start("login", "codex")
    session.read_to("--device for a short code")
    session.type(last)
    page = visit(consent(URL.findall(session.text)[0]))
    assert page[2].strip() == "Codex: logged in. You can close this window."
    assert session.end() == 0, session.text
    assert home.files() == ["codex-ann@example.com-plus.json"]


def wrong(session: Session, line: str, says: str) -> None:
    """Paste something of no use; the login goes on, until it is stopped."""
    session.type(line + "\r")
    session.read_to(says)
    session.type("\x03")


def deny(session: Session, world: World) -> None:
    world.denied = "access_denied"
    session.type(consent(URL.findall(session.text)[0]) + "\r")


def expire(session: Session, world: World) -> None:
    to = consent(URL.findall(session.text)[0])
    world.clock.advance(3600)
    session.type(to + "\r")


# fmt: off
FAILURES = [  # what the user does -> exit status, what is said
    pytest.param(lambda s, _: s.type("\x03"),                       1, "stopped; nothing was saved", id="Ctrl-C"),
    pytest.param(lambda s, _: wrong(s, "?code=aaaaaaaaaaaaaaaaaaaaaaaa&state=wrong", "no answer to this login"), 1, "stopped", id="wrong state"),
    pytest.param(lambda s, _: wrong(s, "what now?", "paste the address where it ends"), 1, "stopped", id="other words"),
    pytest.param(deny,                           1, "access_denied; nothing was saved", id="denied"),
    pytest.param(expire,                         1, "codes are short-lived", id="expired code"),
]
# fmt: on


@pytest.mark.slow
@pytest.mark.parametrize(("act", "status", "says"), FAILURES)
def test_failed_logins(home: Home, world: World, act: Callable[..., None], status: int, says: str) -> None:
    session = home.start("login", "codex")
    session.read_to("ssh -N -L")
    session.read_to("--device for a short code")
    act(session, world)
    assert session.end() == status
    assert says in session.text
    assert "Traceback" not in session.text
    assert home.files() == []


def test_imports(home: Home, world: World) -> None:
    tokens = world.tokens("codex")
    auth = {"tokens": {**tokens, "id_token": world.id_token()}}
    (home.folder / "auth.json").write_text(json.dumps(auth))
    status, text = home.run("login", "codex", "--import", "auth.json")
    assert (status, home.files()) == (0, ["codex-ann@example.com-plus.json"]), text
    assert "share one refresh token" in text
    status, text = home.run("login", "claude", "--import")
    assert status == 1
    assert "log in instead" in text


VERTEX = [
    pytest.param(["login", "vertex", "--import", "key.json"], None, id="login vertex"),
    pytest.param(["-vertex-import", "key.json"], None, id="-vertex-import"),
    pytest.param(["--vertex-import=key.json", "-vertex-import-prefix", "team", "-login"], "team", id="with a prefix, before -login"),
]  # fmt: skip


@pytest.mark.parametrize(("words", "prefix"), VERTEX)
def test_imports_of_service_accounts(home: Home, words: list[str], prefix: str | None) -> None:
    pem = pem_of(rsa.generate_private_key(65537, 2048))
    key = {"type": "service_account", "project_id": "proj-1", "client_email": "r@x", "private_key": pem}
    (home.folder / "key.json").write_text(json.dumps(key))
    status, text = home.run(*words)
    assert (status, home.files()) == (0, ["vertex-proj-1.json"]), text
    data = json.loads((home.auth / "vertex-proj-1.json").read_text())
    assert (data["type"], data["service_account"], data.get("prefix")) == ("vertex", key, prefix)
    assert re.search(
        r"^vertex +vertex-proj-1.json +- +expired, renewed on use ", home.run("accounts")[1], re.MULTILINE
    )
    (home.folder / "key.json").write_text(json.dumps({**key, "private_key": pem[:99]}))
    status, text = home.run(*words)
    assert status == 1
    says = "cliproxy: the private key is no PEM: download a new JSON key of the service account"
    assert text.split("\n") == ["Vertex", "", says, ""]


@pytest.mark.slow
def test_accounts(home: Home, world: World, tmp_path: Path) -> None:
    home.write({**home.settings, "claude-api-key": [{"api-key": "sk-ant-0123456789"}]})
    log_in(home, "login", "codex")
    log_in(home, "login", "claude", answer=page_code)
    (home.auth / "kimi-off.json").write_text(
        json.dumps({"type": "kimi", "disabled": True, "access_token": "kimi-secret"})
    )
    (home.auth / "odd-one.json").write_text("{")
    os.utime(home.auth / "odd-one.json", (1.0, 1.0))  # a younger one may be in the making
    state = {
        "cooldowns": [{"account": "claude-ann@example.com.json", "model": "", "end": time.time() + 600, "level": 1, "soft": False,
                       "mark": "", "status": 429, "why": "slow down"}],
        "limits": {"codex-ann@example.com-plus.json": {"at": 1.0, "windows": [["5h", 42.0, time.time() + 60]]}},
        "answers": {"codex-ann@example.com-plus.json": 17},
    }  # fmt: skip
    (home.auth / ".cliproxy").mkdir()
    (home.auth / ".cliproxy" / "state").write_text(json.dumps(state))
    status, text = home.shell("accounts")
    assert status == 0
    text = re.sub(r"\x1b\[\d*m", "", text)  # it is a terminal, and states have colours there
    for line in (
        r"^claude +claude-ann@example.com.json +max +cooling until [\w :]+\d\d:\d\d ",
        r"^    \* rests until .*: 429: slow down$",
        r"^codex +codex-ann@example.com-plus.json +plus +ready .* 17$",
        r"^    5h +████░░░░░░  42 %  resets ",
        r"^claude +claude-api-key\[0\] +- +ready +- +- +0$",
        r"^kimi +kimi-off.json +- +disabled ",
        r"odd-one.json is damaged",
    ):
        assert re.search(line, text, re.MULTILINE), (line, text)
    status, text = home.shell("accounts", "--json")
    rows = json.loads(text[text.index("[\n") :])
    assert [row["state"] for row in rows] == ["cooling", "ready", "ready", "disabled"]
    assert not re.search(r"access-\d|refresh-\d|sk-ant|kimi-secret", text)
    status, text = home.shell("accounts", "--limits")
    assert re.search(r"^    7d +████████░░  80 %  resets -$", text, re.MULTILINE)


def test_refresh_and_logout(home: Home, world: World) -> None:
    log_in(home, "login", "claude", answer=page_code)
    before = json.loads((home.auth / home.files()[0]).read_text())
    status, text = home.run("accounts", "refresh", "ann@")
    after = json.loads((home.auth / home.files()[0]).read_text())
    assert (status, after["access_token"] != before["access_token"]) == (0, True), text
    for words in (["accounts", "refresh", "bob"], ["accounts", "refresh"], ["logout", "bob"]):
        status, text = home.run(*words)
        assert status == 1
        assert text.startswith("cliproxy: ")
    world.live.clear()
    status, text = home.run("accounts", "refresh", "claude-ann@example.com")
    assert status == 1
    assert "run `cliproxy login claude`" in text
    assert "needs login" in home.run("accounts")[1]
    status, text = home.run("logout", "claude")
    assert (status, home.files()) == (0, [])
    assert "its tokens are revoked" in text


USAGE = [
    pytest.param(["--frob"], 2, "unrecognized arguments: --frob", id="unknown flag"),
    pytest.param(["--codex-logi"], 2, "unrecognized arguments", id="a part of a flag"),
    pytest.param(["frob"], 2, "invalid choice: 'frob'", id="unknown command"),
    pytest.param(["logout"], 2, "required: name", id="no name"),
    pytest.param(["login"], 2, "which provider?", id="no provider"),
    pytest.param(["login", "vertex"], 1, "login vertex --import FILE", id="no page to log in"),
    pytest.param(["-vertex-import"], 2, "expected one argument", id="no file"),
    pytest.param(["login", "codecs"], 1, "no login for 'codecs'", id="unknown provider"),
    pytest.param(["accounts"], 0, "no account yet", id="no accounts"),
    pytest.param(["--version"], 0, f"cliproxy {cp.__version__}", id="version"),
    pytest.param(["--help"], 0, "logout", id="help"),
]


@pytest.mark.parametrize(("words", "status", "says"), USAGE)
def test_usage(home: Home, words: list[str], status: int, says: str) -> None:
    found, text = home.run(*words)
    assert found == status
    assert says in text


class Serving:
    """`cliproxy serve` in a process of its own."""

    def __init__(self, home: Home) -> None:
        self.session = home.start("serve", "--yes")
        self.url = self.session.read_to(r"http://127.0.0.1:\d+")
        self.session.read_to("the model 'echo'")

    def ask(self) -> int:
        import http.client  # noqa: PLC0415

        client = http.client.HTTPConnection(self.url[7:], timeout=DEADLINE)
        body = {
            "model": "claude-sonnet-4-6",
            "max_tokens": 9,
            "messages": [{"role": "user", "content": "hi"}],
        }
        with contextlib.closing(client):
            client.request("POST", "/v1/messages", json.dumps(body))
            return client.getresponse().status

    def stop(self) -> str:
        self.session.process.send_signal(signal.SIGTERM)
        assert self.session.end() == 0, self.session.text
        return self.session.text


@pytest.mark.slow
def test_two_servers_on_one_folder(home: Home, world: World, upstream: Upstream) -> None:
    """An expired token, two processes, twenty requests at once: one refresh. Then a login while they run."""

    def serve(seen: Seen) -> Any:
        known = seen.headers["authorization"].partition("Bearer ")[2] in world.access
        return make_reply({"type": "message"}, 200 if known else 401)

    upstream.routes["/v1/messages"] = serve
    home.settings["providers"]["claude"]["base-url"] = upstream.url
    home.write(home.settings)
    log_in(home, "login", "claude", answer=page_code)
    path = home.auth / home.files()[0]
    world.access.clear()
    servers = [Serving(home), Serving(home)]
    data = json.loads(path.read_text())
    path.write_text(json.dumps({**data, "expired": cp.write_time(time.time() - 60)}))
    with ThreadPoolExecutor(20) as pool:
        asks = [pool.submit(server.ask) for server in servers * 10]
        assert {ask.result() for ask in asks} == {200}
    grants = [ask.body["grant_type"] for ask in world.asks if ask.path == "/claude/token"]
    assert grants == ["authorization_code", "refresh_token"]
    texts = [server.stop() for server in servers]
    assert "claude-access" not in "".join(texts)
    state = json.loads((home.auth / ".cliproxy" / "state").read_text())
    assert state["answers"][path.name] >= 10


@pytest.mark.slow
def test_a_login_while_the_server_runs(home: Home, world: World, upstream: Upstream) -> None:
    upstream.routes["/v1/messages"] = make_reply({"type": "message"})
    home.settings["providers"]["claude"]["base-url"] = upstream.url
    home.write(home.settings)
    server = Serving(home)
    assert server.ask() == 404
    log_in(home, "login", "claude", answer=page_code)
    deadline = time.monotonic() + DEADLINE
    while (status := server.ask()) != 200 and time.monotonic() < deadline:
        threading.Event().wait(0.1)
    assert status == 200
    server.stop()


def command(folder: Path, *words: str, **more: Any) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, outside of any terminal."""
    plain = {k: v for k, v in os.environ.items() if not k.endswith("_API_KEY")}
    environ = {**plain, "HOME": str(folder), "PYTHONIOENCODING": "ascii"}
    program = [sys.executable, str(ROOT / "cliproxy.py"), *words]
    return subprocess.run(
        program, cwd=folder, env=environ, text=True, stderr=subprocess.PIPE, check=False, **more
    )


def test_letters_that_a_terminal_lacks(tmp_path: Path) -> None:
    folder = tmp_path / ".cli-proxy-api"
    folder.mkdir(mode=0o700)
    (folder / "claude-é.json").write_text('{"type": "claude", "access_token": "t", "email": "é"}')
    ended = command(tmp_path, "accounts", stdout=subprocess.PIPE)
    assert (ended.returncode, "claude-\\xe9.json" in ended.stdout) == (0, True)


def test_a_reader_that_has_read_enough(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    ended = command(tmp_path, "models", stdout=writing)
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, "")


def test_no_word_is_no_command(tmp_path: Path) -> None:
    ended = command(tmp_path, "", stdout=subprocess.PIPE)
    assert (ended.returncode, "Traceback" in ended.stderr) == (2, False)


CHECKS = [
    pytest.param({}, [], 0, "config.json: good", id="good"),
    pytest.param({}, ["--strict"], 0, "config.json: good", id="good, strictly"),
    pytest.param({"prot": 1}, [], 0, "config.json: 1 warning", id="an unknown key"),
    pytest.param({"prot": 1}, ["--strict"], 1, "did you mean port", id="an unknown key, strictly"),
    pytest.param({"openai-compatibility": [{"name": "x"}]}, [], 1, "is ignored", id="something thrown away"),
    pytest.param(
        {"payload": {"override-raw": [{"params": {"a.b": "{bad", "c": "1"}}]}},
        [],
        1,
        "params.a.b is ignored",
        id="bad JSON",
    ),
    pytest.param(
        {"remote-management": {"disable-control-panel": True}, "ws-auth": True},
        [],
        0,
        "config.json: 1 warning",
        id="what does nothing",
    ),
]


@pytest.mark.parametrize(("settings", "words", "status", "says"), CHECKS)
def test_checking_the_settings(home: Home, settings: Json, words: list[str], status: int, says: str) -> None:
    home.write({"auth-dir": str(home.auth), **settings})
    got, text = home.run("config", "check", *words)
    assert (got, says in text) == (status, True), text


def test_a_folder_that_may_not_be_looked_into(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that was made under sudo once. Root may look into any, but not into one with such a name."""
    monkeypatch.setattr(cp, "AUTH_DIR", str(home.folder / ("x" * 300)))
    for words in (["accounts"], ["config", "check"], ["serve"], ["models"], ["login", "codex"]):
        status, text = home.run(*words)
        assert status == (cp.CONFIG_EXIT if words == ["serve"] else 1)
        assert text.startswith("cliproxy: cannot look into ")
        assert text.count("\n") == 1


@pytest.mark.parametrize("held", [True, False], ids=["by cliproxy", "by another program"])
def test_who_has_the_port_is_told(home: Home, held: bool) -> None:
    with contextlib.ExitStack() as stack:
        if held:
            session = home.start("serve", "--yes", "--port", "0")
            stack.callback(session.end)
            stack.callback(session.process.terminate)
            session.read_to(r"listens on http://127\.0\.0\.1:\d+\n")
            port = int(re.findall(r"listens on http://127\.0\.0\.1:(\d+)", session.text)[0])
        else:
            listener = stack.enter_context(contextlib.closing(socket.create_server(("127.0.0.1", 0))))
            port = listener.getsockname()[1]
        status, text = home.run("serve", "--port", str(port))
    assert status == 1
    assert f"cannot listen on 127.0.0.1:{port}: " in text
    assert (f"cliproxy {cp.__version__} is already running there" in text) is held
    if sys.platform == "linux":
        assert re.search(r"\(.*, process \d+\)", text)


MEANT = [
    (["serv"], 2, "did you mean serve?"),
    (["accounts", "refesh"], 2, "did you mean refresh?"),
    (["--claude-logn"], 2, "did you mean --claude-login?"),
    (["login", "cladue"], 1, "did you mean claude?"),
    (["login", "claude", "--device"], 1, "no login by a short code"),
    (["help"], 0, "COMMAND"),
    (["version"], 0, f"cliproxy {cp.__version__} ("),
    (["--debug", "config", "example"], 0, '"host": "127.0.0.1"'),
    (["--config", "none.json", "config", "check"], 1, "none.json: cannot be read"),
    (["-config", "none.json", "accounts"], 1, "none.json: cannot be read"),
]


@pytest.mark.parametrize(("words", "status", "says"), MEANT)
def test_what_was_meant(home: Home, words: list[str], status: int, says: str) -> None:
    got, text = home.run(*words)
    assert (got, says in text) == (status, True), text


def test_a_certificate_that_is_not_there_is_named(home: Home) -> None:
    home.write({"tls": {"enable": True, "cert": "no/such.pem", "key": "no/such.key"}, "port": 0})
    status, text = home.run("serve")
    assert (status, "tls.cert: there is no file 'no/such.pem'" in text) == (1, True), text


@pytest.mark.parametrize("port", ["99999", "-1", "http"])
@pytest.mark.parametrize(
    "words", [["serve", "--port"], ["--port"], ["login", "codex", "--oauth-callback-port"]]
)
def test_a_port_that_is_none(home: Home, words: list[str], port: str) -> None:
    status, text = home.run(*words, port)
    assert status == 2
    assert "a port is a number from 0 to 65535" in text


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="elsewhere a script goes on as it is")
@pytest.mark.parametrize("writes", ["", "1"], ids=["bytecode may be kept", "no bytecode"])
def test_a_script_that_serves_leaves_nothing_beside_it(home: Home, tmp_path: Path, writes: str) -> None:
    script = tmp_path / "copied" / "cliproxy.py"
    script.parent.mkdir()
    script.write_bytes(Path(cp.__file__).read_bytes())
    environ = {**os.environ, "HOME": str(home.folder), "PYTHONDONTWRITEBYTECODE": writes}
    command = [sys.executable, str(script), "serve", "--port", "0"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environ, cwd=home.folder
    ) as process:
        assert process.stdout is not None
        assert "listens on http://127.0.0.1:" in process.stdout.readline()
        process.terminate()
    assert list(script.parent.iterdir()) == [script]
