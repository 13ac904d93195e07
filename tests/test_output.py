"""What people see of the commands: lines, tables, colours, and the name they know the program by."""

from __future__ import annotations

import json
import os
import shlex
import sys

import pytest

import cliproxy as cp
from support.home import Home
from support.proxy import Proxy

# fmt: off
STARTED = [  # sys.argv[0], what to type
    ("cliproxy.py",                                  "python cliproxy.py"),
    ("tools/cliproxy.py",                            "python tools/cliproxy.py"),
    ("my tools/cliproxy.py",                         'python "my tools/cliproxy.py"'),
    ("/home/ann/.local/bin/cliproxy",                "cliproxy"),
    ("/home/ann/.cache/uv/archive-v0/x/bin/cliproxy", "uvx cliproxy"),
    ("-c",                                           "cliproxy"),
    ("",                                             "cliproxy"),
]
# fmt: on


@pytest.mark.parametrize(("script", "words"), STARTED)
def test_hints_name_the_program_as_it_was_started(
    script: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [script])
    monkeypatch.setattr(sys, "executable", "/usr/bin/python")
    assert (
        cp.in_their_words("run `cliproxy login codex`, of cliproxy")
        == f"run `{words} login codex`, of cliproxy"
    )


# fmt: off
COLOURED = [
    ({},                                       False),
    ({"FORCE_COLOR": "1"},                     True),
    ({"FORCE_COLOR": "0"},                     False),
    ({"FORCE_COLOR": "1", "NO_COLOR": "1"},    False),
]
# fmt: on


@pytest.mark.parametrize(("environ", "coloured"), COLOURED)
def test_colours_are_for_terminals(
    environ: dict[str, str], coloured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    assert cp.paint("ready", "good") == ("\x1b[32mready\x1b[0m" if coloured else "ready")
    assert cp.paint("ready", "") == "ready"


def test_the_widest_columns_are_made_narrower() -> None:
    assert cp.narrowed([10, 40, 12], 0) == [10, 40, 12]
    assert cp.narrowed([10, 40, 12], 50) == [10, 24, 12]
    assert sum(cp.narrowed([30, 30, 30], 60)) == 56
    assert cp.narrowed([5, 40], 3) == [5, cp.NARROWEST]


def test_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.delenv("NO_COLOR", raising=False)
    columns = (cp.Column("NAME", str), cp.Column("STATE", lambda row: "bad\x1b" * row, lambda row: "bad"))
    monkeypatch.setattr(cp, "screen_width", lambda: 14)
    title, line = cp.table_lines(columns, [2])
    assert title == "\x1b[2mNAME\x1b[0m  \x1b[2mSTATE\x1b[0m"
    assert line.startswith("2     \x1b[31mbad\\u00")  # shortened, and no control character of a name
    assert line.endswith("\x1b[0m")


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_states_are_coloured_and_tables_fit_on_a_terminal(home: Home) -> None:
    entry = {"api-key": "sk-ant-0123456789", "models": [{"name": "m" * 200}]}
    home.write({**home.settings, "claude-api-key": [entry]})
    session = home.start("accounts", TERM="xterm")
    assert session.end() == 0
    assert "\x1b[32mready\x1b[0m" in session.text
    session = home.start("models", TERM="xterm", NO_COLOR="1")
    assert session.end() == 0
    assert "\x1b" not in session.text
    assert all(len(line) <= 100 for line in session.text.splitlines())
    assert "mmm…" in session.text
    session = home.start("accounts", "nothing")
    assert session.end() == 2
    assert "cliproxy.py accounts [-h]" in session.text  # the usage, as it was started


def test_models_for_programs(home: Home) -> None:
    home.write(
        {**home.settings, "claude-api-key": [{"api-key": "sk-ant-0123456789", "models": [{"name": "m"}]}]}
    )
    status, text = home.run("models", "--json")
    assert status == 0
    rows = {row["id"]: row for row in json.loads(text)}
    assert (rows["m"]["accounts"], rows["echo"]["accounts"]) == (["claude-api-key[0]"], ["built in"])


MEANT = [
    (["logout", "kmi-off"], 1, "did you mean kimi-off?"),
    (["accounts", "wake", "claude-api-kye[0]"], 1, "did you mean claude-api-key[0]?"),
    (["help", "accounts"], 0, "--limits"),
    (["--config=none.json", "accounts"], 1, "none.json: cannot be read"),
    (["--debug", "--config", "none.json", "config", "check"], 1, "none.json: cannot be read"),
    (["accounts", "--config", "none.json"], 1, "none.json: cannot be read"),
]


@pytest.mark.parametrize(("words", "status", "says"), MEANT)
def test_what_was_meant(home: Home, words: list[str], status: int, says: str) -> None:
    home.write({**home.settings, "claude-api-key": [{"api-key": "sk-ant-0123456789"}]})
    (home.auth / "kimi-off.json").write_text('{"type": "kimi", "access_token": "t"}')
    got, text = home.run(*words)
    assert (got, says in text) == (status, True), text


def test_the_line_that_tries_the_echo_does(proxy: Proxy) -> None:
    line = cp.curl_line(proxy.url, proxy.app.config)
    words = shlex.split(line)
    assert words[:2] == ["curl", f"{proxy.url}/v1/chat/completions"]
    body = json.loads(words[-1])
    answer = proxy.ask("/v1/chat/completions", body)
    assert answer.json()["choices"][0]["message"]["content"] == "hello"
