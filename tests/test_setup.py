"""The settings of clients: what is written there, what is kept, and how it is taken back.

The rooms TOML, EDITS and CLIENTS; files are edited in a home of the test's own.
"""

from __future__ import annotations

import stat
from pathlib import Path
from typing import Any, Callable, NamedTuple

import pytest

import cliproxy as cp

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
