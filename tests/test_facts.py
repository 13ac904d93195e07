from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import cliproxy as cp

# --- tables ---------------------------------------------------------------------------------

DIALECTS = ("claude", "chat", "responses", "gemini")


@pytest.mark.parametrize("table", [cp.PARAMS, cp.FINISH_REASONS], ids=["params", "finish reasons"])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_words(table: tuple[cp.Words, ...], dialect: str) -> None:
    read, write = cp.words_read(table, dialect), cp.words_write(table, dialect)
    for row in table:
        for word in getattr(row, dialect).split():
            assert read[word] in {other.canonical for other in table}
        if write.get(row.canonical):
            assert read[write[row.canonical]] in write


def test_finish_reasons_are_canonical_in_chat() -> None:
    assert cp.words_read(cp.FINISH_REASONS, "chat")["function_call"] == "tool_calls"
    assert cp.words_read(cp.FINISH_REASONS, "gemini")["STOP"] == "stop"
    assert cp.words_write(cp.PARAMS, "chat")["max_tokens"] == "max_completion_tokens"
    assert "stop" not in cp.words_write(cp.PARAMS, "responses")


@pytest.mark.parametrize("model", [*cp.MODEL_ROWS, *cp.FAMILIES], ids=lambda m: f"{m.id} {m.providers[0]}")
def test_row(model: cp.Model) -> None:
    assert set(model.levels) <= set(cp.EFFORTS)
    assert list(model.levels) == sorted(model.levels, key=lambda level: list(cp.EFFORTS).index(level))
    assert set(model.providers) <= set(cp.OWNERS)
    assert set(model.plans) <= {"free", "team", "plus", "pro"}
    assert 0 <= model.budget[0] <= model.budget[1]
    assert model.output <= (model.context or model.output)
    assert model.name == model.name.strip() != ""
    thinks = bool(model.levels or model.budget[1])
    assert model.thinking is (thinks or None if model.thinking is None else thinks)
    assert model.can_stop or model.thinking


def test_no_row_is_hidden() -> None:
    keys = [
        (who, row.id, plan) for row in cp.MODEL_ROWS for who in row.providers for plan in row.plans or ("",)
    ]
    assert sorted(set(keys)) == sorted(keys)


@pytest.mark.parametrize("at", range(len(cp.FAMILIES)), ids=lambda at: cp.FAMILIES[at].id)
def test_each_family_can_be_reached(at: int) -> None:
    example = cp.FAMILIES[at].id.replace("*", "0")
    assert next(model for model in cp.FAMILIES if cp.wildcard(model.id, example)) is cp.FAMILIES[at]


FACTS = [
    #                              context    output   budget            levels                               stop   auto   thinks
    ("claude-opus-4-8",            1_000_000, 128_000, (1_024, 128_000), "low medium high xhigh max",         True,  False, True),
    ("claude-sonnet-5",            1_000_000, 128_000, (0, 0),           "low medium high xhigh max",         True,  True,  True),
    ("claude-sonnet-4-5",          200_000,   64_000,  (1_024, 128_000), "",                                  True,  False, True),
    ("claude-sonnet-4-5-20250929", 200_000,   64_000,  (1_024, 128_000), "",                                  True,  False, True),
    ("claude-haiku-4-5@20251001",  200_000,   64_000,  (1_024, 128_000), "",                                  True,  False, True),
    ("claude-opus-4-6-20260205",   1_000_000, 128_000, (1_024, 128_000), "low medium high max",               True,  False, True),
    ("claude-3-5-haiku-latest",    128_000,   8_192,   (0, 0),           "",                                  True,  False, False),
    ("claude-3-opus-20240229",     0,         0,       (0, 0),           "",                                  True,  False, False),
    ("claude-opus-9",              0,         0,       (0, 0),           "low medium high xhigh max",         True,  True,  True),
    ("gpt-5.5",                    272_000,   128_000, (0, 0),           "low medium high xhigh",             False, False, True),
    ("gpt-5.6-sol",                272_000,   128_000, (0, 0),           "low medium high xhigh max",         False, False, True),
    ("gpt-5.2",                    272_000,   128_000, (0, 0),           "none low medium high xhigh",        True,  False, True),
    ("gpt-5-2025-08-07",           272_000,   128_000, (0, 0),           "minimal low medium high",           False, False, True),
    ("gpt-5-nano",                 0,         0,       (0, 0),           "minimal low medium high",           False, False, True),
    ("gpt-9",                      0,         0,       (0, 0),           "low medium high xhigh",             False, False, True),
    ("gpt-5-chat-latest",          0,         0,       (0, 0),           "",                                  True,  False, False),
    ("gpt-4o",                     0,         0,       (0, 0),           "",                                  True,  False, False),
    ("o3-mini",                    0,         0,       (0, 0),           "low medium high",                   False, False, True),
    ("gemini-3.1-pro-preview",     1_048_576, 65_536,  (128, 32_768),    "low medium high",                   False, True,  True),
    ("gemini-2.5-flash",           1_048_576, 65_536,  (0, 24_576),      "",                                  True,  True,  True),
    ("gemini-9-flash",             0,         0,       (128, 32_768),    "minimal low medium high",           False, True,  True),
    ("grok-4.3",                   1_000_000, 65_536,  (0, 0),           "none low medium high",              True,  False, True),
    ("grok-9",                     0,         0,       (0, 0),           "",                                  True,  False, None),
    ("kimi-k3",                    1_048_576, 65_536,  (0, 0),           "low high max",                      False, False, True),
    ("glm-4.6",                    0,         0,       (0, 0),           "none auto minimal low medium high xhigh", True, True, True),
    ("llama3:8b",                  0,         0,       (0, 0),           "",                                  True,  False, None),
]  # fmt: skip


@pytest.mark.parametrize("facts", FACTS, ids=[facts[0] for facts in FACTS])
def test_model_row(facts: tuple[Any, ...]) -> None:
    name, context, output, budget, levels, can_stop, dynamic, thinking = facts
    model = cp.model_row(name)
    assert model.id == name
    assert (model.context, model.output, model.budget) == (context, output, budget)
    assert model.levels == tuple(levels.split())
    assert (model.can_stop, model.dynamic, model.thinking) == (can_stop, dynamic, thinking)


def test_the_provider_decides_between_rows_of_one_id() -> None:
    assert cp.model_row("claude-sonnet-4-6").levels == ("low", "medium", "high", "max")
    assert cp.model_row("claude-sonnet-4-6", "antigravity").budget == (1_024, 64_000)
    assert cp.model_row("claude-sonnet-4-5", "antigravity").thinking is False
    assert cp.model_row("claude-sonnet-4-5", "claude").thinking is True
    assert cp.model_row("kimi-k2.5").levels == ("low", "high")
    assert "auto" in cp.model_row("kimi-k2.5", "iflow").levels
    assert cp.model_row("gpt-5.5", "openrouter") == cp.model_row("gpt-5.5")


def test_models() -> None:
    for name, model in cp.MODELS.items():
        assert model == cp.model_row(name)
    assert cp.model_row("nobody") == cp.Model("nobody")


NAMES = [
    ("claude-opus-4-8", "Claude Opus 4.8"),
    ("claude-opus-5", "Claude Opus 5"),
    ("claude-sonnet-4-5-20250929", "Claude Sonnet 4.5"),
    ("claude-3-7-sonnet-20250219", "Claude 3.7 Sonnet"),
    ("gpt-5.4-mini", "GPT 5.4 Mini"),
    ("gemini-3.1-flash-lite-preview", "Gemini 3.1 Flash Lite Preview"),
    ("gemini-pro-agent", "Gemini 3.1 Pro (High)"),
    ("coder-model", "Qwen 3.6 Plus"),
    ("glm-4.7", "GLM 4.7"),
]


@pytest.mark.parametrize(("id", "name"), NAMES)
def test_names_people_use(id: str, name: str) -> None:
    assert cp.model_row(id).name == name


def test_models_of() -> None:
    free, pro = cp.models_of("codex", "free"), cp.models_of("codex", "pro")
    assert "gpt-5.4" not in free
    assert free["gpt-5.6-terra"].context == pro["gpt-5.6-terra"].context == 272_000
    assert cp.models_of("openai")["gpt-5.6-terra"].context == 921_000
    assert cp.models_of("codex", "enterprise") == cp.models_of("codex") == pro
    assert "gpt-5" not in pro
    assert "gpt-5.3-codex-spark" not in cp.models_of("codex", "team")
    assert cp.models_of("gemini-cli")["gemini-3.1-flash-lite-preview"].levels[1:2] == ("low",)
    assert cp.models_of("nobody") == {}


NEWEST = [
    ("claude", "claude-opus-5-5"), ("claude", "claude-haiku-5-5"), ("codex", "gpt-6.1-sol"), ("codex", "gpt-6-luna"),
    ("openai", "gpt-6.1-terra"), ("openai", "gpt-5"), ("gemini", "gemini-4-argon"), ("gemini", "gemini-3.8-flash"),
    ("xai", "grok-4.7"), ("kimi", "kimi-k3.1-pro"),
]  # fmt: skip


@pytest.mark.parametrize(("provider", "model"), NEWEST)
def test_the_newest_are_listed(provider: str, model: str) -> None:
    assert model in cp.models_of(provider)


@pytest.mark.parametrize(("who", "id", "day", "successor"), cp.RETIREMENT_ROWS)
def test_retirement_rows(who: str, id: str, day: str, successor: str) -> None:
    assert re.fullmatch(r"20[0-9]{2}-[01][0-9]-[0-3][0-9]", day)
    assert (who, id) in cp.MODEL_INDEX
    assert not successor or successor in cp.models_of(who)
    assert cp.retirement(id, who, day) == cp.Retirement(day, successor)
    assert cp.retirement(id, who, "2026-01-01") is None
    assert cp.retirement(id, "nobody", day) is None


SPEC = Path(__file__).parents[2] / "shared/spec/providers.md"


@pytest.mark.shared
@pytest.mark.skipif(not SPEC.exists(), reason="the shared pages are not here")
def test_every_model_of_the_pages_has_a_row() -> None:
    page = SPEC.read_text(encoding="utf-8").partition("## 14. Models advertised")[2]
    cells = [
        line.split("|")[1] for line in page.partition("### iFlow")[0].splitlines() if line.startswith("| ")
    ]
    ids = {word.strip() for cell in cells for word in re.split("[,;]", re.sub(r"\(.*?\)", "", cell))}
    ids = {word for word in ids if re.fullmatch("[a-z][a-z0-9._-]+", word)} - {"id"}
    assert len(ids) > 80
    assert ids <= set(cp.MODELS)


# --- efforts in names -----------------------------------------------------------------------

SUFFIXES = [
    ("gpt-5.5(high)", "gpt-5.5", cp.Effort("high")),
    ("gpt-5.5(HIGH)", "gpt-5.5", cp.Effort("high")),
    ("gpt-5.5(max)", "gpt-5.5", cp.Effort("max")),
    ("m(8192)", "m", cp.Effort(budget=8_192)),
    ("m(none)", "m", cp.Effort("none")),
    ("m(0)", "m", cp.Effort("none")),
    ("m(auto)", "m", cp.Effort("auto")),
    ("m(-1)", "m", cp.Effort("auto")),
    ("p/m(low)", "p/m", cp.Effort("low")),
    ("m(x)(high)", "m(x)", cp.Effort("high")),
    ("m(x(high))", "m(x(high))", None),
    ("m((high))", "m((high))", None),
    ("m(high)x", "m(high)x", None),
    ("m(high", "m(high", None),
    ("m(turbo)", "m(turbo)", None),
    ("m(-2)", "m(-2)", None),
    ("m(+8)", "m(+8)", None),
    ("m(8_0)", "m(8_0)", None),
    ("m(٣)", "m(٣)", None),
    ("m(1234567890)", "m(1234567890)", None),
    ("m()", "m()", None),
    ("(high)", "(high)", None),
    ("m", "m", None),
    ("", "", None),
]


@pytest.mark.parametrize(("name", "base", "effort"), SUFFIXES)
def test_split_suffix(name: str, base: str, effort: cp.Effort | None) -> None:
    assert cp.split_suffix(name) == (base, effort)


def test_an_effort_begins_a_thinking() -> None:
    assert cp.Thinking(*cp.Effort("high")) == cp.Thinking(effort="high")
    assert cp.Thinking(*cp.Effort(budget=5)) == cp.Thinking(budget=5)


KNOWN = ["gpt-5", "gpt-5.1-codex-mini", "gpt-5.1-codex", "claude-sonnet-4-5-20250929", "odd-high", "odd"]
EFFORT_NAMES = [
    ("gpt-5-high", "gpt-5", "high"),
    ("gpt-5-minimal", "gpt-5", "minimal"),
    ("gpt-5-xhigh", "gpt-5", "xhigh"),
    ("gpt-5.1-codex-mini-medium", "gpt-5.1-codex-mini", "medium"),
    ("claude-sonnet-4-5-low", "claude-sonnet-4-5", "low"),
    ("claude-sonnet-4-5-20250929-thinking", "claude-sonnet-4-5-20250929", "high"),
    ("odd-high", "odd-high", ""),  # exact ids
    ("gpt-oss-120b-medium", "gpt-oss-120b-medium", ""),
    ("gpt-5.1-codex-max", "gpt-5.1-codex-max", ""),
    ("claude-sonnet-4-5-thinking", "claude-sonnet-4-5", "high"),  # of others than Antigravity
    ("gpt-5.5-high", "gpt-5.5", "high"),  # in the table
    ("team/gpt-5.5-high", "team/gpt-5.5", "high"),
    ("gpt-9-high", "gpt-9-high", ""),  # no such base
    ("gpt-5-turbo", "gpt-5-turbo", ""),
    ("-high", "-high", ""),
]


@pytest.mark.parametrize(("name", "base", "effort"), EFFORT_NAMES)
def test_effort_variant(name: str, base: str, effort: str) -> None:
    assert cp.effort_variant(name, KNOWN) == (base, cp.Effort(effort) if effort else None)


@pytest.mark.parametrize("ending", cp.VARIANTS)
def test_endings(ending: str) -> None:
    assert cp.VARIANTS[ending] in cp.EFFORTS
    assert cp.effort_variant(f"m{ending}", ["m"]) == ("m", cp.Effort(cp.VARIANTS[ending]))


def test_nearest_names() -> None:
    assert cp.nearest_names("gpt-55", cp.MODELS)[0] == "gpt-5.5"
    assert cp.nearest_names("CLAUDE-opus-4.8", cp.MODELS)[0] == "claude-opus-4-8"
    assert len(cp.nearest_names("claude", cp.MODELS)) <= 3
    assert cp.nearest_names("gpt-5", ["Gpt-5"]) == ["Gpt-5"]
    assert cp.nearest_names("zzz", cp.MODELS) == cp.nearest_names("a", []) == []


# --- presets, fallbacks ---------------------------------------------------------------------


@pytest.mark.parametrize("name", cp.PRESETS)
def test_preset(name: str) -> None:
    preset = cp.PRESETS[name]
    assert re.fullmatch("[a-z0-9.-]+", name)
    assert re.fullmatch(r"https://[a-z0-9.-]+(/[a-z0-9/-]+)?|http://127\.0\.0\.1:\d+/v1", preset.base)
    assert all(re.fullmatch("[A-Z][A-Z0-9_]+", variable) for variable in preset.keys)
    assert preset.keys or preset.base.startswith("http://127.")


def test_every_quirk_is_tested_for_somewhere() -> None:
    source = Path(cp.__file__).read_text(encoding="utf-8")
    words = set(re.findall(r'"([a-z-]+)" (?:not )?in (?:\w+\.)*quirks', source))
    assert words <= set(cp.QUIRKS)


CC, GC = (
    "claude-cli/2.1.197 (external, cli)",
    "geminicli-tui/0.61.0/gemini-3-pro-preview (linux; x64; terminal)",
)
STANDINS = [
    # who asks, for what,                whose models, what takes its place
    (CC,    "claude-opus-4-8",           "codex",       "gpt-6.1-sol"),
    (CC,    "claude-sonnet-5",           "codex",       "gpt-6.1-terra"),
    (CC,    "claude-haiku-4-5-20251001", "codex",       "gpt-6-luna"),
    (CC,    "claude-3-5-haiku-20241022", "codex",       "gpt-6-luna"),
    (CC,    "claude-opus-4-8",           "gemini",      "gemini-4-argon"),
    (CC,    "claude-sonnet-5",           "gemini",      "gemini-3.8-flash"),
    (CC,    "claude-haiku-4-5-20251001", "gemini",      "gemini-3.5-flash-lite"),
    (CC,    "claude-haiku-4-5-20251001", "gemini-cli",  "gemini-3.1-flash-lite-preview"),
    ("",    "claude-opus-4-8",           "antigravity", "claude-opus-4-6-thinking"),
    ("",    "claude-opus-9",             "claude",      "claude-opus-5-5"),
    ("",    "claude-haiku-9",            "claude",      "claude-haiku-5-5"),
    (CC,    "claude-opus-4-8",           "kimi",        "kimi-k3"),
    (CC,    "claude-sonnet-5",           "xai",         "grok-4.5"),
    (CC,    "claude-sonnet-5",           "qwen",        "coder-model"),
    ("amp", "gpt-5.4-nano",              "claude",      "claude-haiku-5-5"),
    ("amp", "claude-haiku-4-5-20251001", "codex",       "gpt-6-luna"),
    (GC,    "gemini-3.8-flash",          "codex",       "gpt-6-luna"),
    ("",    "gemini-3-pro-preview",      "vertex",      "gemini-3-pro"),
    (GC,    "gemini-3.1-pro-preview",    "codex",       "gpt-6.1-sol"),
    (GC,    "gemini-2.5-pro",            "claude",      "claude-opus-5-5"),
    ("",    "gemini-2.5-pro",            "claude",      None),
    (CC,    "gemini-2.5-pro",            "claude",      None),
    (GC,    "claude-opus-4-8",           "gemini",      None),
    ("",    "claude-opus-4-8",           "codex",       None),
    ("",    "gpt-5.4-nano",              "claude",      None),
    (CC,    "claude-fable-9",            "codex",       None),
    (CC,    "gpt-5.9",                   "claude",      None),
    (CC,    "llama3",                    "claude",      None),
    ("",    "claude-opus-4-1",           "claude",      "claude-opus-5-5"),
    ("",    "gemini-3-pro-preview",      "gemini-cli",  "gemini-3.1-pro-preview"),
]  # fmt: skip


@pytest.mark.parametrize(("client", "name", "provider", "found"), STANDINS)
def test_who_takes_the_place(client: str, name: str, provider: str, found: str | None) -> None:
    assert cp.stand_in_for(name, cp.models_of(provider), client, {}) == found


@pytest.mark.parametrize(("pattern", "choices"), cp.KIN, ids=[row[0] for row in cp.KIN])
def test_kin_are_of_one_vendor(pattern: str, choices: tuple[str, ...]) -> None:
    assert any(cp.wildcard(choice, model) for model in cp.MODELS for choice in choices)
    for choice in choices:
        assert choice.partition("-")[0] == pattern.partition("-")[0]
        assert cp.stand_in_for(pattern.replace("*", "x"), [choice.replace("*", "y")], "", {})


@pytest.mark.parametrize(
    ("client", "pattern", "choices"), cp.UNASKED, ids=[f"{row[0]} {row[1]}" for row in cp.UNASKED]
)
def test_unasked_rows(client: str, pattern: str, choices: tuple[str, ...]) -> None:
    known = [*cp.MODELS, "glm-5", "deepseek-v4", "qwen3-x", "minimax-m3"]
    assert len(set(choices)) >= len(choices) - 6  # MEDIUM and LARGE share some
    asked = pattern.replace("*", "x")
    for choice in choices:
        model = choice.replace("*", "y")
        assert any(cp.wildcard(choice, known_one) for known_one in known), choice
        assert cp.stand_in_for(asked, [model], client.replace("*", "1"), {}) == model


def test_same_vendor_before_any_other() -> None:
    for model in ("claude-sonnet-5", "claude-haiku-4-5", "claude-fable-5"):
        assert cp.stand_in_for("claude-opus-5", ["gpt-5.5", model], CC, {}) == model


def test_what_the_owner_wants_comes_first() -> None:
    wanted = {"a*": ["x", "y-*"], "ab": ["z"], "claude-*": ["gpt-5.5"], "claude-haiku-*": []}
    assert cp.stand_in_for("ab", ["z", "y-1"], "", wanted) == "z", "the closest pattern"
    assert cp.stand_in_for("ab", ["y-9", "y-10", "y-9.5"], "", wanted) == "y-10"
    assert cp.stand_in_for("ab", [], "", wanted) is None
    assert cp.stand_in_for("b", ["x"], "", wanted) is None
    assert cp.stand_in_for("claude-opus-5", ["claude-opus-4-8", "gpt-5.5"], "", wanted) == "gpt-5.5"
    assert cp.stand_in_for("claude-opus-5", ["claude-opus-4-8"], "", wanted) == "claude-opus-4-8"


@pytest.mark.parametrize("off", ["claude-haiku-5", "claude-haiku-*", "claude-*", "*"])
def test_an_empty_list_switches_all_off(off: str) -> None:
    there = ["claude-haiku-4-5", "gpt-5.6-luna"]
    assert cp.stand_in_for("claude-haiku-5", there, CC, {off: []}) is None
    assert cp.stand_in_for("claude-haiku-5", there, CC, {off: [], "claude-haiku-5*": ["gpt-5*"]}) == (
        None if off == "claude-haiku-5" else "gpt-5.6-luna"
    )


def test_versions_are_numbers_and_dates_are_not() -> None:
    ids = ["claude-opus-4-20250514", "claude-opus-4-8", "claude-opus-4-10", "claude-opus-4-5-20251101"]
    assert sorted(ids, key=cp.by_version) == [ids[0], ids[3], ids[1], ids[2]]
