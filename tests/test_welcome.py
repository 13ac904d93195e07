"""The first start at a terminal, and keys that are pasted."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

import cliproxy as cp
from support.home import Home
from support.paths import ROOT
from support.upstream import DEADLINE, Upstream, make_reply

pytestmark = pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
KEY = "sk-ant-api03-0123456789abcdef"


def test_a_key_is_pasted_unseen_and_kept_beside_the_logins(home: Home) -> None:
    session = home.start("key", "add-account", "anthropic")
    session.read_to("press Enter:")
    session.type(KEY + "\r")
    assert session.end() == 0, session.text
    (name,) = home.files()
    assert re.fullmatch(r"key-claude-[0-9a-f]{6}\.json", name)
    path = home.auth / name
    assert json.loads(path.read_text()) == {"type": "api-key", "provider": "claude", "api_key": KEY}
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert KEY not in session.text
    status, text = home.run("accounts", "--json")
    (row,) = json.loads(text)
    assert (status, row["provider"], row["name"], row["state"]) == (0, "claude", name, "ready")
    assert KEY not in text
    assert home.run("logout", name)[0] == 0
    assert home.files() == []


# fmt: off
KEYS = [  # provider, what is on stdin; status, what is said
    pytest.param("gemini",     f"{KEY}\n", 0, "key-gemini-",                id="through a pipe"),
    pytest.param("openrouter", f"{KEY}\n", 0, "key-openrouter-",            id="of a service"),
    pytest.param("antropic",   f"{KEY}\n", 1, "did you mean anthropic?",    id="a slip"),
    pytest.param("nobody-xyz", f"{KEY}\n", 1, "there are: ",                id="nobody's"),
    pytest.param("openai",     "\n",       1, "that is no key",             id="nothing"),
    pytest.param("openai",     "",         1, "that is no key",             id="an end"),
    pytest.param("openai",     "k\u00e9y\n", 1, "that is no key",           id="no ASCII"),
]
# fmt: on


@pytest.mark.parametrize(("provider", "typed", "status", "says"), KEYS)
def test_keys_from_scripts(home: Home, provider: str, typed: str, status: int, says: str) -> None:
    command = [sys.executable, str(ROOT / "cliproxy.py"), "key", "add-account", provider]
    plain = {name: value for name, value in os.environ.items() if not name.endswith("_API_KEY")}
    ended = subprocess.run(
        command, input=typed, capture_output=True, text=True, check=False, cwd=home.folder, encoding="utf-8",
        env={**plain, "HOME": str(home.folder)}, timeout=DEADLINE,
    )  # fmt: skip
    assert (ended.returncode, says in ended.stdout + ended.stderr) == (status, True), ended
    assert KEY not in ended.stdout + ended.stderr
    assert (home.files() != []) is (status == 0)


def test_a_key_of_a_file_is_sent_as_a_key(home: Home, upstream: Upstream) -> None:
    file = {"type": "api-key", "provider": "claude", "api_key": KEY, "base_url": upstream.url}
    (home.auth / "key-claude-1.json").write_text(json.dumps(file))
    upstream.routes["/v1/messages"] = make_reply({"error": {"message": "no"}}, 400)
    home.run("try", "claude-sonnet-4-6", "hello")
    assert (
        upstream.seen[0].headers["authorization"] == f"Bearer {KEY}"
    )  # as for any host but the provider's own


def test_a_client_key_is_made(home: Home) -> None:
    home.write({"api-keys": ["old-key-0123456789"]})
    status, text = home.run("key", "new")
    kept = json.loads((home.auth / "config.json").read_text())["api-keys"]
    assert (status, kept[0], len(kept)) == (0, "old-key-0123456789", 2)
    assert kept[1] in text
    assert len(kept[1]) > 30


def test_the_first_start_leads_to_an_account_and_a_key(home: Home, tmp_path: Path) -> None:
    empty = tmp_path / "bin"
    empty.mkdir()
    (home.auth / "config.json").unlink()
    session = home.start("serve", "--port", "0", PATH=str(empty))
    session.read_to(r"which\? \(Enter: go on\)")
    session.type("9\r")
    session.read_to("a number from 1 to")
    session.type("3\r")
    session.read_to(r"hello\n(.*\n)*.*tokens in")
    session.type("2\r")
    session.read_to("whose?")
    session.type("anthropic\r")
    session.read_to("press Enter:")
    session.type(KEY + "\r")
    session.read_to("saved ")
    session.type("\r")
    session.read_to("that clients must show")
    session.type("y\r")
    session.read_to("listens on")
    session.read_to("the model 'echo'")
    session.process.send_signal(signal.SIGTERM)
    assert session.end() == 0, session.text
    assert KEY not in session.text
    assert home.files()[0].startswith("key-claude-")
    assert cp.yaml_read((home.auth / "config.yaml").read_text())["api-keys"][0] in session.text
    assert "claude, sk-a...cdef" in session.text  # picked up


def test_what_a_vendor_s_program_holds_is_offered(home: Home, tmp_path: Path) -> None:
    folder = home.folder / ".codex"
    folder.mkdir()
    (folder / "auth.json").write_text(json.dumps({"tokens": {"access_token": "a", "refresh_token": "r"}}))
    session = home.start("--port", "0", CODEX_HOME=str(folder))
    session.read_to(rf"3  take over the login of the Codex CLI in {folder}/auth.json")
    session.type("\x03")
    assert session.end() == 130
    assert "stopped" in session.text


@pytest.mark.parametrize("words", [["--yes"], ["serve", "--yes"]])
def test_nothing_is_asked_with_yes(home: Home, words: list[str]) -> None:
    session = home.start(*words)
    session.read_to("the model 'echo'")
    session.process.send_signal(signal.SIGTERM)
    assert session.end() == 0
    assert "which?" not in session.text


def test_nothing_is_asked_on_a_pipe(home: Home) -> None:
    command = [sys.executable, str(ROOT / "cliproxy.py")]
    process = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        cwd=home.folder, env={**os.environ, "HOME": str(home.folder)},
    )  # fmt: skip
    assert process.stdin
    assert process.stdout
    assert "listens on" in process.stdout.readline()
    process.terminate()
    process.communicate(timeout=DEADLINE)
