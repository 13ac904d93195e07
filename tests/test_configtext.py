"""The settings file as its owner shows and edits it: `cliproxy config`."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from pathlib import Path

import pytest

import cliproxy as cp
from support.home import Home

Json = cp.Json
SECRETS = {
    "api-keys": ["client-secret-0123456789"],
    "claude-api-key": [
        {"api-key": "sk-ant-0123456789abcdef", "headers": {"X-Team": "team-secret-0123456789"},
         "proxy-url": "http://ann:proxy-password@10.0.0.1:3128"},
    ],
    "openai-compatibility": [
        {"name": "own", "base-url": "https://x.example/v1", "api-key-entries": [{"api-key": "entry-secret-0123456789"}]},
    ],
    "providers": {"gemini": {"client-secret": "oauth-secret-0123456789"}},
    "tls": {"key": "/etc/ssl/mine.pem"},
}  # fmt: skip
HIDDEN = re.compile("-secret-0123456789|sk-ant-0123456789abcdef|proxy-password|env-0123456789abcdef")


def test_settings_are_shown_with_where_they_come_from_and_without_secrets(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENROUTER_API_KEY", "sk-env-0123456789abcdef")
    home.write({**SECRETS, "debug": False, "amp-upstream-url": "https://amp.example"})
    status, text = home.run("config", "show", "--json")
    assert status == 0
    rows = {row["key"]: row for row in json.loads(text)}
    file = str(home.auth / "config.json")
    assert rows["debug"] == {"key": "debug", "value": False, "from": file}
    assert rows["port"] == {"key": "port", "value": 8317, "from": "default"}
    assert rows["ampcode.upstream-url"]["from"] == file  # by its old spelling
    assert rows["tls.key"]["value"] == "/etc/ssl/mine.pem"
    assert rows["OPENROUTER_API_KEY"] == {
        "key": "OPENROUTER_API_KEY",
        "value": "sk-e...cdef",
        "from": "environment",
    }
    (entry,) = rows["claude-api-key"]["value"]
    assert (entry["api-key"], entry["proxy-url"]) == ("sk-a...cdef", "http://...@10.0.0.1:3128")
    assert not HIDDEN.search(text)
    status, text = home.run("config", "show")
    assert not HIDDEN.search(text)
    assert text.index("\napi-keys ") < text.index("\nport ")  # what the owner said comes first


def test_the_path(home: Home) -> None:
    assert home.run("config", "path") == (0, f"{home.auth / 'config.json'}\n")
    (home.auth / "config.json").unlink()
    status, text = home.run("config", "path")
    assert status == 1
    assert str(home.auth) in text


YAML = """# mine
port: 8318   # the other one is taken
routing:
  # one after the other
  strategy: round-robin
claude-api-key:
  - api-key: sk-ant-0123456789   # Ann's
    prefix: a
"""
# fmt: off
SETS = [  # key, value, what the file holds then
    pytest.param("port", "8319",                        YAML.replace("8318", "8319"), id="a number"),
    pytest.param("routing.strategy", "fill-first",      YAML.replace("round-robin", "fill-first"), id="in a section"),
    pytest.param("claude-api-key[0].prefix", "b",       YAML.replace("prefix: a", "prefix: b"), id="in a record"),
    pytest.param("claude-api-key[0].prefix", "null",    YAML.replace("    prefix: a\n", ""), id="taken out"),
    pytest.param("port", "8318",                        YAML, id="the same"),
    pytest.param("auth-dir", "123",                     YAML + "auth-dir: '123'\n", id="a text of digits"),
    pytest.param("api-keys", "k-0123456789",            YAML + "api-keys:\n  - k-0123456789\n", id="one of a list"),
    pytest.param('model-fallbacks."gpt-5.5"', '["m"]',  YAML + "model-fallbacks:\n  gpt-5.5:\n    - m\n", id="a name with a dot"),
]
# fmt: on


@pytest.mark.parametrize(("key", "value", "wanted"), SETS)
def test_a_setting_is_changed_and_the_rest_stays(home: Home, key: str, value: str, wanted: str) -> None:
    (home.auth / "config.json").unlink()
    path = home.auth / "config.yaml"
    path.write_text(YAML)
    path.chmod(0o640)
    status, text = home.run("config", "set", key, value)
    assert (status, cp.yaml_read(path.read_text())) == (0, cp.yaml_read(wanted)), text
    kept = [line for line in wanted.splitlines() if "#" in line]
    assert [line for line in path.read_text().splitlines() if "#" in line] == kept
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    backup = home.auth / "config.yaml.bak"
    assert backup.exists() is (wanted != YAML)
    if wanted != YAML:
        assert backup.read_text() == YAML
        assert stat.S_IMODE(backup.stat().st_mode) == 0o600
    assert [file.name for file in home.auth.iterdir() if file.name.endswith(".new")] == []


def test_marks_and_line_ends_stay(home: Home) -> None:
    (home.auth / "config.json").unlink()
    path = home.auth / "config.yaml"
    path.write_bytes(b"\xef\xbb\xbf# mine\r\nport: 8318\r\n")
    assert home.run("config", "set", "port", "8319")[0] == 0
    assert path.read_bytes() == b"\xef\xbb\xbf# mine\r\nport: 8319\r\n"


# fmt: off
REFUSED = [
    pytest.param(["prot", "8319"],               "did you mean port?", id="an unknown key"),
    pytest.param(["port", "http"],               "allowed: a whole number", id="no number"),
    pytest.param(["host", "0.0.0.0"],            "add a key", id="open to all"),
    pytest.param(["routing.strategy", "random"], "fill-first", id="no such word"),
    pytest.param(["claude-api-key[7].prefix", "b"], "beyond the end", id="no such record"),
    pytest.param(["openai-compatibility", '[{"name": "x"}]'], "is ignored", id="of no use"),
    pytest.param(["port"],                       "KEY VALUE", id="no value"),
]
# fmt: on


@pytest.mark.parametrize(("words", "says"), REFUSED)
def test_what_is_no_setting_is_not_written(home: Home, words: list[str], says: str) -> None:
    (home.auth / "config.json").unlink()
    path = home.auth / "config.yaml"
    path.write_text(YAML)
    status, text = home.run("config", "set", *words)
    assert (status, says in text) == (1, True), text
    assert path.read_text() == YAML
    assert not (home.auth / "config.yaml.bak").exists()


def test_a_foreign_file_is_not_edited(home: Home) -> None:
    path = home.auth / "config.json"
    before = json.dumps(
        {"model_list": [{"model_name": "m", "litellm_params": {"model": "openai/m", "api_key": "k"}}]}
    )
    path.write_text(before)
    status, text = home.run("config", "set", "port", "8319")
    assert (status, "`cliproxy import litellm" in text, path.read_text()) == (1, True, before), text


def test_what_begins_as_comments_holds_every_default(home: Home) -> None:
    (home.auth / "config.json").unlink()
    status, text = home.run("config", "init")
    path = home.auth / "config.yaml"
    assert (status, str(path) in text) == (0, True), text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    begun = path.read_text()
    assert home.run("config", "check") == (0, f"{path}: good\n")
    plain = re.sub("^#", "", begun, flags=re.MULTILINE)
    assert cp.parse_config(None, plain).data == cp.parse_config(None, cp.example_config()).data
    status, text = home.run("config", "set", "port", "8319")
    assert (status, path.read_text()) == (0, f"{begun}port: 8319\n"), text
    status, text = home.run("config", "init")
    assert (status, "is there already" in text) == (1, True)


def test_the_first_setting_begins_a_file(home: Home) -> None:
    (home.auth / "config.json").unlink()
    status, text = home.run("config", "set", "port", "8319")
    assert (status, (home.auth / "config.yaml").read_text()) == (0, "port: 8319\n"), text
    assert "takes effect at the next start" in text


def editor(folder: Path, *texts: str) -> str:
    """Return a command that writes these texts, one each time that it is called."""
    script = folder / "editor.py"
    for number, text in enumerate(texts):
        (folder / f"text{number}").write_text(text)
    script.write_text(
        "import sys, pathlib\n"
        "texts = sorted(pathlib.Path(__file__).parent.glob('text*'))\n"
        "pathlib.Path(sys.argv[1]).write_text(texts[0].read_text())\n"
        "texts[0].unlink()\n"
    )
    return f"{sys.executable} {script}"


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
def test_only_what_is_in_order_takes_the_place_of_the_file(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cp, "make_terminal", lambda: cp.Terminal(cp.say))
    answers = iter(["", "n"])

    def ask(self: cp.Terminal, question: str) -> str:
        self.say(question)
        return next(answers)

    monkeypatch.setattr(cp.Terminal, "ask", ask)
    path = home.auth / "config.json"
    before = path.read_text()
    monkeypatch.setenv("EDITOR", editor(home.folder, '{"port": "x"}', '{"port": 1'))
    status, text = home.run("config", "edit")
    assert status == 1, text
    assert text.count("Edit it again?") == 2
    assert path.read_text() == before
    assert (home.auth / ".config.draft.json").read_text() == '{"port": 1'
    assert home.run("accounts")[0] == 0  # it is no credential
    monkeypatch.setenv("EDITOR", editor(home.folder, '{"port": 8319}'))
    assert home.run("config", "edit") == (0, f"{path}: good\n")
    assert path.read_text() == '{"port": 8319}'
    assert path.with_name("config.json.bak").read_text() == before
    monkeypatch.setenv("EDITOR", "/no/such/editor")
    status, text = home.run("config", "edit")
    assert (status, "nothing was changed" in text, path.read_text()) == (1, True, '{"port": 8319}')
