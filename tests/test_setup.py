"""The settings of clients: what is written there, what is kept, and how it is taken back.

The rooms TOML, EDITS and CLIENTS; files are edited in a home of the test's own.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import socket
import stat
import sys
from pathlib import Path
from typing import Any, Callable, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cliproxy as cp
from support.proxy import ProxyMaker

Json = cp.Json
KEY = "sk-a-key-of-the-proxy"
ROOT = "http://127.0.0.1:8317"
MODELS = (
    cp.Model("gpt-5.5", context=400_000, output=128_000, created=9),
    cp.Model("claude-sonnet-5", context=200_000, output=64_000, created=8),
    cp.Model("kimi-k3"),
)


class House:
    """A home with a folder of credentials, and what `setup` says there."""

    def __init__(self, home: Path, environ: dict[str, str]) -> None:
        self.home, self.environ = home, environ
        self.said: list[str] = []
        self.machine = cp.Machine(home, environ, "linux", home / "work")
        self.gateway = cp.Gateway(ROOT, KEY, "gpt-5.5", MODELS, self.machine, guarded=True)

    def run(self, **options: Any) -> cp.SetupRun:
        self.said.clear()
        terminal = cp.Terminal(self.said.append)
        return cp.SetupRun(
            cp.SetupOptions(**{"yes": True, **options}), cp.Setups(self.home / "auth"), terminal, self.machine
        )

    def set_up(self, client: str, run: dict[str, Any] | None = None, **changes: Any) -> cp.SetupRun:
        setup = self.run(**run or {})
        setup.set_up(cp.CLIENTS[client], self.gateway._replace(**changes))
        return setup

    def undo(self, client: str) -> cp.SetupRun:
        setup = self.run()
        setup.undo(client)
        return setup

    def write(self, name: str, text: str | bytes) -> Path:
        file = self.home / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())
        return file

    def files(self) -> dict[str, bytes]:
        """What there is beside the folder of credentials; folders end in a slash."""
        found = [file for file in self.home.rglob("*") if file.relative_to(self.home).parts[0] != "auth"]
        return {
            f"{file.relative_to(self.home)}{'/' if file.is_dir() else ''}": b""
            if file.is_dir()
            else file.read_bytes()
            for file in found
        }

    @property
    def text(self) -> str:
        return "\n".join(self.said)


@pytest.fixture
def make_house(tmp_path: Path) -> Callable[..., House]:
    return lambda **environ: House(tmp_path, environ)


@pytest.fixture
def house(tmp_path: Path) -> House:
    return House(tmp_path, {})


class Sample(NamedTuple):
    """A client's file as it may be already, and what must stand there in the end."""

    client: str
    file: str
    text: str
    kept: str  # a piece of it that stays as it is


CLAUDE = (
    '{\n  "model": "opus",\n  "env": {"FOO": "1", "ANTHROPIC_BASE_URL": "https://else"},\n  "hooks": {}\n}\n'
)
CODEX = (
    '# mine\nmodel = "gpt-5"  # the old one\n\n[features]\nweb = true\n\n[mcp_servers.foo]\ncommand = "x"\n'
)
SAMPLES = (
    Sample("claude-code", ".claude/settings.json", CLAUDE, '"FOO": "1"'),
    Sample("codex", ".codex/config.toml", CODEX, "[mcp_servers.foo]\ncommand"),
    Sample("gemini-cli", ".gemini/settings.json", '{\n  // mine\n  "ui": {"theme": "x"}\n}\n', '// mine\n  "ui": {"theme": "x"}'),
    Sample("gemini-cli", ".gemini/.env", "A=1 # one\nexport GEMINI_API_KEY='old'\n", "A=1 # one\nexport GEMINI_API_KEY="),
    Sample("qwen-code", ".qwen/settings.json", '{"modelProviders": {"openai": [{"id": "x"}]}}', '{"id": "x"}'),
    Sample("opencode", ".config/opencode/opencode.jsonc", '{\n  /* c */ "theme": "y",\n}\n', '/* c */ "theme": "y"'),
    Sample("kilo", ".config/kilo/kilo.jsonc", '{\n  "theme": "y", // c\n}\n', '"theme": "y", // c'),
    Sample("pi", ".pi/agent/models.json", '{"providers": {"mine": {"baseUrl": "u"}}}\n', '"mine": {"baseUrl": "u"}'),
    Sample("droid", ".factory/settings.json", '{\n  "customModels": [\n    {"model": "m", "apiKey": "k"}\n  ] // end\n}\n',
           '{"model": "m", "apiKey": "k"}'),
    Sample("amp", ".config/amp/settings.json", '{\n  "amp.theme": "z"\n}\n', '"amp.theme": "z"'),
    Sample("cline", ".cline/data/settings/providers.json", '{"version":1,"providers":{"anthropic":{}}}', '"anthropic":{}'),
    Sample("continue", ".continue/config.yaml", "name: mine\nversion: 0.0.1\nschema: v1\nmodels:\n  - name: a # c\n    provider: x\n",
           "name: mine\nversion: 0.0.1\nschema: v1\nmodels:\n  - name: a # c\n    provider: x"),
    Sample("llm", ".config/io.datasette.llm/extra-openai-models.yaml", "- model_id: a\n  model_name: b\n", "- model_id: a\n  model_name: b"),
    Sample("aider", ".aider.conf.yml", "# c\ndark-mode: true\nmodel: sonnet\n", "# c\ndark-mode: true\n"),
    Sample("crush", ".config/crush/crushrc", "option debug true", "option debug true"),
    Sample("goose", ".config/goose/config.yaml", "extensions:\n  a:\n    enabled: true\n", "extensions:\n  a:\n    enabled: true"),
    Sample("vibe", ".vibe/config.toml", '[[providers]]\nname = "mistral"\n\n[[models]]\nname = "m"\nprovider = "mistral"\nalias = "m"\n',
           '[[providers]]\nname = "mistral"\n'),
    Sample("aichat", ".config/aichat/config.yaml", "model: openai:x\nclients:\n- type: openai\n  api_key: k\n", "- type: openai\n  api_key: k\n"),
    Sample("zed", ".config/zed/settings.json", '// c\n{\n  "theme": "x",\n}\n', '// c\n{\n  "theme": "x"'),
)  # fmt: skip
ids = [f"{sample.client}-{Path(sample.file).name}" for sample in SAMPLES]


@pytest.mark.parametrize("sample", SAMPLES, ids=ids)
def test_keeps_the_rest_and_is_undone_byte_for_byte(house: House, sample: Sample) -> None:
    house.write(sample.file, sample.text)
    before = house.files()
    assert not house.set_up(sample.client).failed, house.text
    text = (house.home / sample.file).read_text(encoding="utf-8")
    assert sample.kept in text
    assert "8317" in text or sample.file.endswith(("gemini/settings.json", "goose/config.yaml"))
    house.undo(sample.client)
    assert house.files() == before


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("sample", SAMPLES, ids=ids)
def test_takes_back_entry_by_entry_what_the_client_has_written_since(
    house: House, sample: Sample, line_end: str
) -> None:
    file = house.write(sample.file, sample.text.replace("\n", line_end))
    house.set_up(sample.client)
    with file.open("ab") as end:
        end.write(line_end.encode())
    house.undo(sample.client)
    kind = kind_of(sample)
    assert kind.read(file.read_bytes().decode()) == kind.read(sample.text.replace("\n", line_end))
    assert KEY not in file.read_text(encoding="utf-8")


def kind_of(sample: Sample) -> cp.FileKind:
    endings = {
        ".json": "jsonc",
        ".jsonc": "jsonc",
        ".toml": "toml",
        ".yaml": "yaml",
        ".yml": "yaml",
        "": "shell",
    }
    name = Path(sample.file).name
    return cp.FILE_KINDS["dotenv" if name == ".env" else endings[Path(name).suffix]]


@pytest.mark.parametrize("client", cp.CLIENTS)
def test_in_an_empty_home_all_is_ours_and_goes_again(house: House, client: str) -> None:
    assert not house.set_up(client, {"shell": True}).failed, house.text
    made = {name: data for name, data in house.files().items() if not name.endswith("/")}
    assert made
    for name in made:
        assert stat.S_IMODE((house.home / name).stat().st_mode) == 0o600
    assert KEY not in house.text
    house.undo(client)
    assert house.files() == {}
    house.undo(client)
    assert "nothing to undo" in house.text


@pytest.mark.parametrize("client", cp.CLIENTS)
def test_a_second_time_changes_nothing(house: House, client: str) -> None:
    house.set_up(client, {"shell": True})
    notes = house.home / "auth" / ".cliproxy" / "setup.json"
    stamps = {file: file.stat().st_mtime_ns for file in house.home.rglob("*") if file.is_file()}
    house.set_up(client, {"shell": True})
    assert stamps == {file: file.stat().st_mtime_ns for file in house.home.rglob("*") if file.is_file()}
    assert stat.S_IMODE(notes.stat().st_mode) == 0o600
    assert house.text.count("nothing to change") == len(stamps) - 1


@pytest.mark.parametrize("client", cp.CLIENTS)
def test_another_address_and_fewer_models_take_the_place_of_the_old_ones(house: House, client: str) -> None:
    house.set_up(client, {"shell": True})
    house.set_up(client, {"shell": True}, root="http://127.0.0.1:9000", models=MODELS[:2])
    written = b"\n".join(house.files().values())
    assert b"8317" not in written
    assert b"kimi" not in written
    house.undo(client)
    assert house.files() == {}


# --- bad input --------------------------------------------------------------------------
BROKEN = (
    pytest.param("claude-code", ".claude/settings.json", '{\n  // mine\n  "env": {}\n}', "line 2 column 3", id="a comment in strict JSON"),
    pytest.param("claude-code", ".claude/settings.json", '{"env": {"A": "1",}}', "line 1", id="a comma too many in strict JSON"),
    pytest.param("claude-code", ".claude/settings.json", "null", "no mapping", id="null"),
    pytest.param("claude-code", ".claude/settings.json", "[]", "no mapping", id="a list"),
    pytest.param("claude-code", ".claude/settings.json", '{"env": 7}', "ANTHROPIC_BASE_URL", id="a number in the way"),
    pytest.param("claude-code", ".claude/settings.json", '{"a": 1, "a": 2}', "twice", id="a key twice"),
    pytest.param("claude-code", ".claude/settings.json", b"\xff\xfe{}", "utf-8", id="no UTF-8"),
    pytest.param("codex", ".codex/config.toml", "model = \n", "", id="a value missing in TOML"),
    pytest.param("codex", ".codex/config.toml", "[a]\nx = 1\n[a]\ny = 2\n", "", id="a table twice"),
    pytest.param("codex", ".codex/config.toml", 'model_providers = {x = {name = "y"}}\n', "no mapping", id="an inline table"),
    pytest.param("codex", ".codex/config.toml", '[model_providers]\ncliproxy = {name = "y"}\n', "no mapping", id="ours inline"),
    pytest.param("continue", ".continue/config.yaml", "models: &a\n  - x\n", "line 1", id="an anchor"),
    pytest.param("continue", ".continue/config.yaml", "a: 1\n---\nb: 2\n", "line 2", id="two documents"),
    pytest.param("continue", ".continue/config.yaml", "models: none\n", "no list", id="a text in the way"),
    pytest.param("llm", ".config/io.datasette.llm/keys.json", "{", "line 1", id="JSON cut off"),
)  # fmt: skip


@pytest.mark.parametrize(("client", "file", "text", "why"), BROKEN)
def test_what_cannot_be_edited_safely_is_printed_with_the_reason(
    house: House, client: str, file: str, text: str | bytes, why: str
) -> None:
    path = house.write(file, text)
    before = path.read_bytes()
    run = house.set_up(client)
    assert run.failed
    assert path.read_bytes() == before
    assert f"{path} (not changed: " in house.text
    assert why in house.text
    assert "put this there by hand" in house.text
    assert "8317" in house.text or client == "llm"
    assert KEY not in house.text


SPELLINGS = (
    pytest.param('[model_providers.cliproxy]\nname = "mine"\nbase_url = "http://old/v1"\nextra = 1\n', id="a table"),
    pytest.param('[model_providers."cliproxy"]\nbase_url = "http://old/v1"  # c\nextra = 1\n', id="quoted"),
    pytest.param("[model_providers.'cliproxy']\nbase_url = '''\nhttp://old/v1'''\nextra = 1\n", id="a text of two lines"),
    pytest.param('model_providers.cliproxy.base_url = "http://old/v1"\nmodel_providers.cliproxy.extra = 1\n', id="dots"),
    pytest.param('[model_providers]\ncliproxy.base_url = "http://old/v1"\ncliproxy . extra = 1\n', id="dots in a table"),
    pytest.param('[ model_providers . cliproxy ] # c\n  base_url = "http://old/v1"\n  extra = 1\n\n[x]\n', id="indented"),
)  # fmt: skip


@pytest.mark.parametrize("text", SPELLINGS)
def test_a_provider_of_our_name_is_adopted_however_it_is_spelled(house: House, text: str) -> None:
    file = house.write(".codex/config.toml", text)
    assert not house.set_up("codex").failed, house.text
    written = cp.read_toml(file.read_text(encoding="utf-8"))
    ours = written["model_providers"]["cliproxy"]
    assert ours["base_url"] == f'"{ROOT}/v1"'
    assert ours["extra"] == "1"
    assert written["model"] == '"gpt-5.5"'
    file.write_bytes(file.read_bytes() + b"# by the client\n")
    house.undo("codex")
    assert file.read_text(encoding="utf-8").endswith("# by the client\n")
    assert cp.read_toml(file.read_text(encoding="utf-8")) == cp.read_toml(text)


def test_a_table_that_the_client_adds_behind_ours_stays(house: House) -> None:
    file = house.write(".codex/config.toml", CODEX)
    house.set_up("codex")
    grown = file.read_bytes() + b'\n[mcp_servers.bar]\ncommand = "y"\n'
    file.write_bytes(grown.replace(b'model = "gpt-5.5"', b'model = "mine"'))
    house.undo("codex")
    assert "model stays: it was changed since" in house.text
    expected = CODEX.replace('"gpt-5"', '"mine"') + '\n[mcp_servers.bar]\ncommand = "y"\n'
    assert file.read_text(encoding="utf-8") == expected


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize(("client", "file", "text", "mark"), [
    pytest.param("claude-code", ".claude/settings.json", CLAUDE, True, id="Claude Code"),
    pytest.param("codex", ".codex/config.toml", CODEX, True, id="Codex"),
    pytest.param("opencode", ".config/opencode/opencode.json", '{\n  "theme": "x",\n}\n', True, id="opencode"),
    pytest.param("droid", ".factory/settings.json", '{\n  "model": "x", // c\n  "customModels": [],\n}\n', False, id="Droid takes none"),
])  # fmt: skip
def test_byte_order_mark_and_line_ends(
    house: House, client: str, file: str, text: str, mark: bool, line_end: str
) -> None:
    text = "\ufeff" + text.replace("\n", line_end)
    path = house.write(file, text)
    assert not house.set_up(client).failed, house.text
    written = path.read_bytes().decode()
    assert written.startswith("\ufeff") == mark
    assert written.count("\n") == written.count(line_end)
    if not mark:
        assert json.loads(cp.without_litter(written, "comment"))["model"] == "custom:gpt-5.5"
    house.undo(client)
    assert path.read_bytes().decode() == text


def test_writes_through_links_and_keeps_modes(house: House) -> None:
    real = house.write("dotfiles/claude.json", CLAUDE)
    real.chmod(0o644)
    link = house.home / ".claude" / "settings.json"
    link.parent.mkdir()
    link.symlink_to(real)
    house.set_up("claude-code")
    assert link.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o644
    assert f"chmod 600 {link}" in house.text
    assert "8317" in real.read_text(encoding="utf-8")
    house.undo("claude-code")
    assert (link.is_symlink(), real.read_text(encoding="utf-8")) == (True, CLAUDE)


def test_a_read_only_file_stays(house: House) -> None:
    file = house.write(".claude/settings.json", CLAUDE)
    file.chmod(0o444)
    assert house.set_up("claude-code").failed
    assert "it is read-only" in house.text
    assert file.read_text(encoding="utf-8") == CLAUDE


def test_a_file_that_changes_meanwhile_is_not_overwritten(house: House) -> None:
    file = house.write(".claude/settings.json", CLAUDE)
    edit = next(cp.claude_code_files(house.gateway))
    plan = cp.revise(edit, file, {}, KEY)
    file.write_text("{}", encoding="utf-8")
    with pytest.raises(cp.ProxyError, match="changed meanwhile"):
        cp.carry_out(plan)
    assert file.read_text(encoding="utf-8") == "{}"


VARIABLES = (
    ("claude-code", "CLAUDE_CONFIG_DIR", "settings.json"),
    ("codex", "CODEX_HOME", "config.toml"),
    ("gemini-cli", "GEMINI_CLI_HOME", ".gemini/.env"),
    ("qwen-code", "QWEN_HOME", "settings.json"),
    ("opencode", "XDG_CONFIG_HOME", "opencode/opencode.json"),
    ("pi", "PI_CODING_AGENT_DIR", "models.json"),
    ("amp", "XDG_CONFIG_HOME", "amp/settings.json"),
    ("cline", "CLINE_DATA_DIR", "settings/providers.json"),
    ("llm", "LLM_USER_PATH", "keys.json"),
    ("vibe", "VIBE_HOME", "config.toml"),
    ("aichat", "AICHAT_CONFIG_DIR", "config.yaml"),
)


@pytest.mark.parametrize(("client", "variable", "file"), VARIABLES)
def test_the_clients_own_variables_count(
    make_house: Callable[..., House], tmp_path: Path, client: str, variable: str, file: str
) -> None:
    house = make_house(**{variable: str(tmp_path / "elsewhere")})
    house.set_up(client)
    assert (tmp_path / "elsewhere" / file).is_file()


def test_nothing_is_written_unasked(house: House) -> None:
    run = house.set_up("codex", {"yes": False, "asks": False})
    assert run.failed
    assert house.files() == {}
    assert "--yes does it unasked" in house.text
    assert not house.set_up("codex", {"dry": True}).failed
    assert house.files() == {}


@pytest.mark.parametrize(("answer", "written"), [("y", True), ("", False), ("no", False)])
def test_asks_before_it_writes(house: House, answer: str, written: bool) -> None:
    run = house.run(yes=False)
    run.terminal.inbox.put(cp.Arrival(answer))
    run.set_up(cp.CLIENTS["codex"], house.gateway)
    assert (house.home / ".codex").exists() == written


def test_prints_what_to_put_where(house: House) -> None:
    house.set_up("codex", {"printed": True})
    assert 'experimental_bearer_token = "KEY"' in house.text
    assert house.files() == {}
    house.set_up("copilot")
    assert "export COPILOT_PROVIDER_API_KEY=KEY" in house.text
    assert house.files() == {}


def test_a_project_has_settings_of_its_own(house: House) -> None:
    house.set_up("claude-code", {"project": True})
    assert (house.home / "work" / ".claude" / "settings.local.json").is_file()
    with pytest.raises(cp.ProxyError, match=r"reads models\.json from no project"):
        house.set_up("pi", {"project": True})


# --- what the clients need --------------------------------------------------------------
def test_claude_code_is_led_here_whatever_its_shell_says(make_house: Callable[..., House]) -> None:
    house = make_house(CLAUDE_CODE_USE_BEDROCK="1", HTTPS_PROXY="http://p", NO_PROXY="a.b")
    env = cp.claude_code_env(house.gateway)
    assert env["CLAUDE_CODE_USE_BEDROCK"] == "0"
    assert env["NO_PROXY"] == "a.b,127.0.0.1,localhost"
    assert env["CLAUDE_CODE_MAX_CONTEXT_TOKENS"] == env["CLAUDE_CODE_AUTO_COMPACT_WINDOW"] == "400000"
    native = cp.claude_code_env(house.gateway._replace(model="claude-sonnet-5"))
    assert "CLAUDE_CODE_MAX_CONTEXT_TOKENS" not in native  # it knows its own


def test_an_own_login_gets_the_address_alone(house: House) -> None:
    env = cp.claude_code_env(house.gateway._replace(own_login=True))
    assert env == {
        "ANTHROPIC_BASE_URL": ROOT,
        "ENABLE_TOOL_SEARCH": "true",
        "ANTHROPIC_CUSTOM_HEADERS": f"x-cliproxy-key: {KEY}",
    }
    house.set_up("codex", own_login=True)
    written = cp.read_toml((house.home / ".codex" / "config.toml").read_text(encoding="utf-8"))
    assert written["model_providers"]["cliproxy"]["requires_openai_auth"] == "true"
    assert written["model_providers"]["cliproxy"]["http_headers"] == {"x-cliproxy-key": f'"{KEY}"'}
    assert "model" not in written
    house.set_up("codex")  # and back to a key of ours
    written = cp.read_toml((house.home / ".codex" / "config.toml").read_text(encoding="utf-8"))
    assert "requires_openai_auth" not in written["model_providers"]["cliproxy"]


def test_an_own_login_is_for_those_whose_tokens_can_pass(
    house: House, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(house.home))
    config = house.write(
        "auth/c.json", json.dumps({"auth-dir": str(house.home / "auth"), "port": free_port()})
    )
    for words in (["setup", "pi", "--yes"], ["run", "pi", "--dry-run"]):
        assert cp.main([*words, "--own-login", "--config", str(config)]) == 1
        assert "--own-login is for claude-code and codex only" in capsys.readouterr().err
    assert house.files() == {}


def test_what_its_owner_took_out_stays_out_of_the_way(house: House) -> None:
    house.set_up("droid")
    file = house.home / ".factory" / "settings.json"
    file.write_text('{"customModels": []}', encoding="utf-8")
    assert not house.set_up("droid", models=MODELS[:1]).failed
    assert "kimi" not in file.read_text(encoding="utf-8")
    house.undo("droid")
    assert json.loads(file.read_text(encoding="utf-8")) == {"customModels": []}


def test_what_a_client_has_written_into_our_file_outlives_a_second_setup_and_the_undo(house: House) -> None:
    house.set_up("claude-code")
    file = house.home / ".claude" / "settings.json"
    settings = json.loads(file.read_text(encoding="utf-8"))
    file.write_text(json.dumps({**settings, "theme": "dark"}), encoding="utf-8")
    house.set_up("claude-code", root="http://127.0.0.1:9000")
    house.undo("claude-code")
    assert json.loads(file.read_text(encoding="utf-8")) == {"theme": "dark"}


def test_droid_asks_each_model_by_its_own_api(house: House) -> None:
    house.set_up("droid")
    settings = json.loads((house.home / ".factory" / "settings.json").read_text(encoding="utf-8"))
    found = {row["model"]: (row["provider"], row["baseUrl"]) for row in settings["customModels"]}
    assert found == {
        "gpt-5.5": ("openai", f"{ROOT}/v1"),
        "claude-sonnet-5": ("anthropic", ROOT),
        "kimi-k3": ("generic-chat-completion-api", f"{ROOT}/v1"),
    }


def test_a_model_that_speaks_the_clients_dialect_is_chosen() -> None:
    newer = (*MODELS, cp.Model("gpt-5.5-mini", created=99), cp.Model("echo"))
    assert cp.choose_model("claude", newer) == "claude-sonnet-5"
    assert cp.choose_model("responses", newer) == "gpt-5.5"
    assert cp.choose_model("gemini", newer) == "gpt-5.5"
    assert cp.choose_model("chat", [cp.Model("echo")]) == "echo"


# --- run --------------------------------------------------------------------------------
PROBE = """#!/bin/sh
env > "$HOME/environ"; printf '%s\\n' "$@" > "$HOME/words"; exit 7
"""


@pytest.mark.skipif(os.name != "posix", reason="the client is a shell script")
@pytest.mark.parametrize("client", [row.name for row in cp.CLIENTS.values() if row.launch])
def test_run_starts_a_client_and_leaves_nothing_behind(
    house: House, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TMPDIR", str(house.home / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    (house.home / "tmp").mkdir()
    row = cp.CLIENTS[client]
    program = house.write(f"bin/{row.program}", PROBE)
    program.chmod(0o700)
    environ = {
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "HOME": str(house.home),
        "ANTHROPIC_API_KEY": "k",
    }
    machine = house.machine._replace(environ=environ)
    folder = cp.folder_for_once()
    start = cp.make_start(row, house.gateway._replace(machine=machine), ["hello"], folder)
    cp.show_start(start, KEY, house.said.append)
    assert KEY not in house.text
    assert cp.start_client(row, start, folder, machine) == 7
    assert not list((house.home / "tmp").iterdir())
    words = (house.home / "words").read_text(encoding="utf-8").splitlines()
    assert words[-1] == "hello"
    assert KEY not in " ".join(words)
    shown = (
        (house.home / "environ").read_text(encoding="utf-8") + "".join(start.files.values()) + " ".join(words)
    )
    assert "8317" in shown
    assert KEY in shown


@pytest.mark.skipif(os.name != "posix", reason="the client is a shell script")
def test_run_serves_by_itself_if_nobody_does(
    house: House, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    program = house.write("bin/claude", '#!/bin/sh\necho "$ANTHROPIC_BASE_URL"\nexec "$PYTHON" -c "$CODE"\n')
    program.chmod(0o700)
    code = "import os, urllib.request as u; print(u.urlopen(os.environ['ANTHROPIC_BASE_URL'] + '/healthz').status)"
    config = house.write(
        "config.json", json.dumps({"auth-dir": str(house.home / "auth"), "port": free_port()})
    )
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("HOME", str(house.home))
    monkeypatch.setenv("CODE", code)
    monkeypatch.setenv("PYTHON", sys.executable)
    assert cp.main(["run", "claude-code", "--config", str(config), "--model", "echo", "--", "-p", "x"]) == 0
    address, status = capfd.readouterr().out.splitlines()[-2:]
    assert address.startswith("http://127.0.0.1:")
    assert status == "200"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def test_setup_takes_the_models_of_the_running_server(
    house: House, make_proxy: ProxyMaker, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = make_proxy(api_keys=[KEY])
    proxy.write({**proxy.settings, "port": proxy.port, "api-keys": [KEY]})
    monkeypatch.setenv("HOME", str(house.home))
    assert cp.main(["setup", "opencode", "--yes", "--config", str(proxy.path)]) == 0
    settings = json.loads((house.home / ".config" / "opencode" / "opencode.json").read_text(encoding="utf-8"))
    assert {"up-claude", "up-chat", "up-responses", "up-gemini"} <= settings["provider"]["cliproxy"][
        "models"
    ].keys()
    assert settings["provider"]["cliproxy"]["options"]["apiKey"] == KEY
    assert KEY not in capsys.readouterr().out
    assert cp.main(["setup", "--undo", "--yes", "--config", str(proxy.path)]) == 0
    assert not (house.home / ".config").exists()


def test_a_home_that_is_not_there_and_a_client_that_nobody_knows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "none"))
    config = tmp_path / "c.json"
    config.write_text(json.dumps({"auth-dir": str(tmp_path / "auth")}), encoding="utf-8")
    assert cp.main(["setup", "codex", "--yes", "--config", str(config)]) == 1
    assert "does not exist" in capsys.readouterr().err
    assert cp.main(["setup", "claude-cod", "--config", str(config)]) == 1
    assert "did you mean claude-code?" in capsys.readouterr().err
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cp.main(["setup", "cursor", "--config", str(config)]) == 0
    assert "Cursor's own servers" in capsys.readouterr().out


# --- whatever stands there already ------------------------------------------------------
NAMES = st.sampled_from(
    ["a", "env", "model", "provider", "cliproxy", "b c", "é", "customModels", "ANTHROPIC_MODEL"]
)
LEAVES: st.SearchStrategy[Any] = st.sampled_from(
    [1, -2.5, True, None, "", "x, }", "// no", 'q"\\', "é\u2028", [], {}, [1, "a,]"]]
)
DOCUMENTS = st.dictionaries(
    NAMES,
    LEAVES | st.dictionaries(NAMES, LEAVES | st.dictionaries(NAMES, LEAVES, max_size=2), max_size=3),
    max_size=4,
)
NOTES = st.sampled_from(["", "", "", " ", "\n", " // one, {\n", "/* two\n} */"])


@st.composite
def littered(draw: st.DrawFn, value: Any, *, litter: bool) -> str:
    """Spell a value as JSON with comments, blanks and commas too many."""

    def gap() -> str:
        return draw(NOTES) if litter else draw(st.sampled_from(["", " ", "\n  "]))

    if not isinstance(value, (dict, list)):
        return json.dumps(value, ensure_ascii=draw(st.booleans()))
    named = isinstance(value, dict)
    pieces = [f"{json.dumps(key, ensure_ascii=False)}{gap()}:{gap()}" if named else "" for key in value]
    items = value.values() if isinstance(value, dict) else value
    spelled = [
        gap() + piece + draw(littered(item, litter=litter)) + gap() for piece, item in zip(pieces, items)
    ]
    comma = "," if litter and spelled and draw(st.booleans()) else ""
    inside = ",".join(spelled) + comma + gap()
    return f"{{{inside}}}" if named else f"[{inside}]"


WAYS: tuple[dict[cp.Steps, Any], ...] = (
    {("env",): {"ANTHROPIC_BASE_URL": ROOT, "ANTHROPIC_MODEL": "m"}},
    {(): {"provider": {"cliproxy": {"options": {"apiKey": KEY}, "models": {"b c": {"name": "m"}}}}, "model": "cliproxy/m"}},
    {("model",): "custom:m", ("customModels", (("model", "m"),)): {"apiKey": KEY, "maxOutputTokens": 7}},
)  # fmt: skip


@pytest.mark.parametrize("kind", ["json", "tidy", "jsonc"])
@given(st.data())
def test_any_json_is_edited_and_taken_back(kind: str, data: st.DataObject) -> None:
    document = data.draw(DOCUMENTS)
    text = data.draw(littered(document, litter=kind != "json"))
    files, edit = cp.FILE_KINDS[kind], cp.Edit("x", kind, data.draw(st.sampled_from(WAYS)))
    assert files.read(text) == document
    try:
        wanted, entries, _ = cp.merge_entries(document, edit.entries(document), (), KEY)
    except ValueError as exc:
        assert "cannot be put into" in str(exc)  # noqa: PT017 -- a text stands where a mapping should
        return
    edited = files.write(text, wanted)
    assert files.read(edited) == wanted
    for steps, value in edit.entries(document).items():
        assert cp.entry_at(wanted, steps)[0] == value
    if kind == "tidy":
        assert cp.without_litter(edited, "comma") == edited
    for entry in reversed(json.loads(json.dumps(entries))):
        wanted = cp.taken_back(wanted, entry)
    assert files.read(files.write(edited, wanted)) == document


TABLES = (
    '[features]\nweb = true  # c\n', '[mcp_servers.foo]\ncommand = "x"\nargs = [\n  "a", # ]\n  "[b]",\n]\n', '[[list]]\nname = "one"\n',
    '[[list]]\nname = \'two\'\n[list.sub]\nx = 1\n', '["quoted.name"]\n"k" = """\n[no table]\n"""\n', "[a]\nb.c = 1\n'd' = 1979-05-27T07:32:00Z\n",
    "[model_providers.other]\nname = 'o'\n", '# a comment\n\n[empty]\n', "[t]\nx = {y = 1, z = [2, 3]}\n\n\n", "[u]\ns = '''a\n# b'''",
    '[model_providers.cliproxy]\nbase_url = "old" # mine\nextra = 7\n',
)  # fmt: skip
TOPS = (
    "",
    'model = "old"  # c\n',
    "# first\napproval = 'never'\n\n",
    'a_b = """\nx = 1\n"""\n',
    'model_provider = "x"\nmodel="y"\n',
)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="tomllib is the oracle")
@given(
    st.sampled_from(TOPS),
    st.lists(st.sampled_from(TABLES), unique=True, max_size=5),
    st.sampled_from(["\n", "\r\n"]),
)
def test_any_toml_is_edited_and_taken_back(top: str, tables: list[str], line_end: str) -> None:
    toml = importlib.import_module("tomllib")
    tables.sort(key=lambda table: "list.sub" in table)  # its items must follow one another
    text = (top + "\n".join(table if table.endswith("\n") else table + "\n" for table in tables)).replace(
        "\n", line_end
    )
    try:
        before = toml.loads(text)
    except toml.TOMLDecodeError:
        return
    ours = {"base_url": f"{ROOT}/v1", "experimental_bearer_token": KEY}
    edit = cp.Edit(
        "x", "toml", {(): {"model": "m", "model_provider": "cliproxy", "model_providers": {"cliproxy": ours}}}
    )
    document = cp.read_toml(text)
    wanted, entries, _ = cp.merge_entries(document, edit.entries(document), (), KEY)
    edited = cp.write_toml(text, wanted)
    expected = {**before, "model": "m", "model_provider": "cliproxy"}
    providers = before.get("model_providers", {})
    expected["model_providers"] = {**providers, "cliproxy": {**providers.get("cliproxy", {}), **ours}}
    assert toml.loads(edited) == expected
    kept = [line for line in text.splitlines() if not line.startswith(("model", "base_url"))]
    assert [line for line in edited.splitlines() if line in kept and line] == [line for line in kept if line]
    for entry in reversed(json.loads(json.dumps(entries))):
        wanted = cp.taken_back(wanted, entry)
    assert toml.loads(cp.write_toml(edited, wanted)) == before


@given(st.text(st.sampled_from("ab[]{}=\"'#.,\n\r \\1\ufeff"), max_size=24))
def test_toml_that_is_read_can_be_written(text: str) -> None:
    """Never another error than ValueError, and never another meaning."""
    try:
        document = cp.read_toml(text)
        edited = cp.write_toml(text, {**document, "zz": '"v"'})
    except ValueError:
        return
    assert cp.read_toml(edited) == {**document, "zz": '"v"'}
    assert cp.read_toml(cp.write_toml(edited, document)) == document


@given(
    st.lists(
        st.sampled_from(["A=1", "export B = 'x y'", "# c", "", "C=", "GEMINI_API_KEY=old # c", "no pair"]),
        max_size=6,
    )
)
def test_any_dotenv_is_edited_and_taken_back(lines: list[str]) -> None:
    text = "".join(f"{line}\n" for line in lines)
    document = cp.read_dotenv(text)
    wanted = {**document, "GEMINI_API_KEY": "k", "Z": "'x y'"}
    edited = cp.write_dotenv(text, wanted)
    assert cp.read_dotenv(edited) == wanted
    assert [line for line in lines if "KEY" not in line] == [
        line for line in edited.splitlines() if not re.match("GEM|Z", line)
    ]
    assert cp.read_dotenv(cp.write_dotenv(edited, document)) == document
