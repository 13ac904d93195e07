"""The README's table of providers, read word by word, against the tables of cliproxy."""

from __future__ import annotations

import re

import pytest

import cliproxy as cp
from support.paths import ROOT
from test_provider_rows import CASES

README = (ROOT / "README.md").read_text(encoding="utf-8")
SECTION = README.partition("\n## Providers\n")[2].partition("\n## ")[0]
TABLE = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in SECTION.splitlines()
    if line.startswith("|")
][2:]
WORDS = [word for _, gets_in, _, notes in TABLE for word in re.findall(r"`([^`]+)`", gets_in + notes)]
NAMES = {  # row of PROVIDERS -> what the first column calls it
    "claude": "Claude", "codex": "ChatGPT plan", "openai": "OpenAI", "openai-chat": "OpenAI", "gemini": "Gemini",
    "vertex": "Vertex", "gemini-cli": "Gemini CLI", "antigravity": "Antigravity", "openai-compatibility": "OpenRouter",
    "kimi": "Kimi", "kimi-claude": "Kimi", "qwen": "Qwen", "iflow": "iFlow", "xai": "xAI",
}  # fmt: skip
DIALECTS = {  # what the third column says -> dialect
    "Messages": "claude", "Chat": "chat", "Responses": "responses", "Gemini": "gemini", "Code Assist": "gemini",
}  # fmt: skip
BY_OTHER_NAMES = {"lm studio": "lmstudio", "llama.cpp": "llamacpp"}


def row_of(provider: str) -> list[str]:
    (row,) = [row for row in TABLE if NAMES[provider] in row[0].split(", ")]
    return row


@pytest.mark.parametrize("provider", cp.PROVIDERS)
def test_each_provider_is_named_with_its_dialect(provider: str) -> None:
    dialects = {DIALECTS[word] for word in re.findall("|".join(DIALECTS), row_of(provider)[2])}
    assert cp.PROVIDERS[provider].dialect in dialects
    if cp.PROVIDERS[provider].only_streams:
        assert "streams only" in row_of(provider)[2]


def test_each_way_in_is_named_in_the_row_of_its_provider() -> None:
    for name, case in CASES.items():
        way = f"login {case.login}" if case.login else name
        for provider in case.rows.values():
            assert f"`{way}" in "".join(row_of(provider)), (way, provider)


KEYS = {row.key for row in cp.SETTINGS} | {row.source for row in cp.KEY_LISTS}
VARIABLES = {row.source for row in cp.KEY_VARIABLES} | {v for p in cp.PRESETS.values() for v in p.keys}


@pytest.mark.parametrize("word", WORDS)
def test_what_it_names_there_is(word: str) -> None:
    """Settings, environment variables, logins, and examples of settings."""
    key, _, rest = word.partition(": ")
    if word.startswith("login "):
        assert word.split()[1] in cp.LOGINS
    elif key.isupper():
        assert key in VARIABLES
    elif key.startswith("providers."):
        _, provider, field = key.split(".")
        assert provider in cp.LOGINS
        assert field in PROVIDER_FIELDS
    else:
        assert key in KEYS
    for name in re.findall(r'"name": "([^"]+)"', rest):
        assert name in cp.PRESETS


PROVIDER_FIELDS = {field.key for field in cp.PROVIDER}


def test_each_service_that_it_names_needs_no_address() -> None:
    names = [name.lower() for name in row_of("openai-compatibility")[0].split(", ") if name != "..."]
    assert {BY_OTHER_NAMES.get(name, name) for name in names} <= set(cp.PRESETS)
    assert len(names) > 9


def test_all_logins_and_lists_of_keys_are_named() -> None:
    logins = {word.split()[1] for word in WORDS if word.startswith("login ")}
    assert logins == set(cp.LOGINS)
    assert {row.source for row in (*cp.KEY_LISTS, *cp.KEY_VARIABLES)} <= set(WORDS)


WORKING = README.partition("\n## Working on it\n")[2]
ADDED = re.findall(r"^\| .* \| `(\w+)` \| `(.*),` \|$", WORKING, re.MULTILINE)


def kind_of(table: str) -> type:
    rows = getattr(cp, table)
    return type(next(iter(rows.values() if isinstance(rows, dict) else rows)))


@pytest.mark.parametrize(("table", "row"), ADDED)
def test_the_rows_that_it_shows_are_rows(table: str, row: str) -> None:
    if table == "PRESET_ROWS":
        ((name, cells),) = eval(f"{{{row}}}").items()
        assert cells[2].split() == [quirk for quirk in cells[2].split() if quirk in cp.QUIRKS]
        assert (type(name), len(cells)) == (str, 3)
    else:
        assert type(eval(row, vars(cp).copy())) is kind_of(table)


def test_it_shows_how_to_add_everything() -> None:
    assert [table for table, _ in ADDED] == [
        "PRESET_ROWS", "PROVIDERS", "MODEL_ROWS", "SETTINGS", "ROUTE_ROWS", "COMMANDS",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "name", sorted(set(re.findall(r"`([A-Z_]{4,}|tests/\w+|Visit)`", WORKING)) - {"CLIPROXY_SHARED"})
)
def test_what_it_names_for_those_who_work_on_it_is(name: str) -> None:
    assert hasattr(cp, name) or (ROOT / name).exists()
