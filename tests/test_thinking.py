"""How much a model is asked to think, and what that leaves for its answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

import cliproxy as cp
from cliproxy import Message, MessageStart, Model, Target, Thinking, Tool, ToolChoice
from support.fitting import (
    CLAUDE,
    CODEX,
    GEMINI_3,
    SONNET_45,
    ask,
    assistant,
    back,
    call,
    claude_stream,
    down,
    fit,
    results,
    thinking,
    up,
    user,
)

OPUS_46 = Model(
    "claude-opus-4-6", output=128_000, budget=(1024, 128_000), levels=("low", "medium", "high", "max")
)
OPUS_47 = OPUS_46._replace(id="claude-opus-4-7", levels=("low", "medium", "high", "xhigh", "max"))
SONNET_5 = Model("claude-sonnet-5", output=128_000, levels=OPUS_47.levels)
HAIKU_35 = Model("claude-3-5-haiku", output=8192, thinking=False)
GPT_51 = Model("gpt-5.1", output=128_000, levels=("none", "low", "medium", "high"))
GEMINI_25 = Model("gemini-2.5-flash", output=65_536, budget=(0, 24_576))
GEMINI_25_PRO = Model("gemini-2.5-pro", output=65_536, budget=(128, 32_768), can_stop=False)
OPENAI = Target("openai", GPT_51)


# --- thinking, limits

HIGH = Thinking("high")
THINKING = [  # asked, model, dialect, max_tokens, written
    pytest.param(HIGH, SONNET_45, "claude", 2000, Thinking(budget=1600), id="case 6"),
    pytest.param(HIGH, SONNET_45, "claude", 1000, Thinking("none"), id="no room"),
    pytest.param(HIGH, OPUS_47, "claude", 2000, Thinking("high", adaptive=True), id="adaptive"),
    pytest.param(Thinking("minimal"), OPUS_47, "claude", 0, Thinking("low", adaptive=True), id="minimal to low"),
    pytest.param(Thinking("minimal"), SONNET_45, "claude", 0, Thinking(budget=1024), id="floor"),
    pytest.param(Thinking("xhigh"), OPUS_46, "claude", 0, Thinking("high", adaptive=True), id="nearest, the lower"),
    pytest.param(Thinking("xhigh"), GPT_51, "responses", 0, Thinking("high"), id="xhigh to older"),
    pytest.param(Thinking("max"), CODEX, "responses", 0, Thinking("xhigh"), id="max to older"),
    pytest.param(Thinking("none"), GPT_51, "chat", 0, Thinking("none"), id="none"),
    pytest.param(Thinking("none"), CODEX, "responses", 0, Thinking("low", summary="omitted"), id="cannot stop: unseen"),
    pytest.param(Thinking("none"), SONNET_5, "claude", 0, Thinking("none"), id="claude always can"),
    pytest.param(Thinking("none"), GEMINI_25, "gemini", 0, Thinking("none"), id="flash off"),
    pytest.param(Thinking("none"), GEMINI_25_PRO, "gemini", 0, Thinking(budget=128, summary="omitted"), id="pro cannot"),
    pytest.param(Thinking("none"), GEMINI_3, "gemini", 0, Thinking("low", summary="omitted"), id="gemini 3 cannot"),
    pytest.param(Thinking("medium"), GEMINI_25, "gemini", 0, Thinking(budget=8192), id="gemini budget"),
    pytest.param(Thinking("max"), GEMINI_25, "gemini", 0, Thinking(budget=24_576), id="gemini's most"),
    pytest.param(Thinking("auto"), GEMINI_25, "gemini", 0, Thinking(budget=-1), id="gemini decides"),
    pytest.param(Thinking(budget=-1), GEMINI_25, "gemini", 0, Thinking(budget=-1), id="dynamic"),
    pytest.param(Thinking(budget=31_999), GEMINI_3, "gemini", 0, Thinking("high"), id="levels for gemini 3"),
    pytest.param(Thinking("auto"), CODEX, "responses", 0, Thinking(), id="auto is left out"),
    pytest.param(Thinking(budget=-1), OPUS_47, "claude", 0, Thinking(adaptive=True), id="dynamic is adaptive"),
    pytest.param(Thinking("auto"), OPUS_47, "claude", 0, Thinking(adaptive=True), id="auto adaptive"),
    pytest.param(Thinking(adaptive=True), OPUS_47, "claude", 0, Thinking(adaptive=True), id="adaptive as it is"),
    pytest.param(Thinking(adaptive=True), SONNET_45, "claude", 0, Thinking(budget=8192), id="adaptive to budget"),
    pytest.param(Thinking("high", adaptive=True), SONNET_45, "claude", 0, Thinking(budget=24_576), id="effort to budget"),
    pytest.param(Thinking("high", adaptive=True), CODEX, "responses", 0, HIGH, id="effort to codex"),
    pytest.param(Thinking(budget=0), SONNET_45, "claude", 0, Thinking("none"), id="zero"),
    pytest.param(Thinking(budget=10_000), CODEX, "responses", 0, HIGH, id="budget to level"),
    pytest.param(Thinking(budget=10_000), SONNET_5, "claude", 0, Thinking("high", adaptive=True), id="no budgets"),
    pytest.param(Thinking(budget=10_000), OPUS_46, "claude", 0, Thinking(budget=10_000), id="both: as it came"),
    pytest.param(Thinking(budget=31_999), SONNET_45, "claude", 32_000, Thinking(budget=31_999), id="Claude Code's own"),
    pytest.param(Thinking(budget=31_999), SONNET_45, "claude", 10_000, Thinking(budget=8000), id="makes room"),
    pytest.param(Thinking(budget=200_000), SONNET_45, "claude", 0, Thinking(budget=128_000), id="clamped"),
    pytest.param(HIGH, HAIKU_35, "claude", 0, Thinking(), id="cannot think"),
    pytest.param(HIGH, Model("x"), "chat", 0, HIGH, id="unknown passes"),
    pytest.param(Thinking(budget=5), Model("x"), "gemini", 0, Thinking(budget=5), id="unknown budget passes"),
    pytest.param(HIGH, Model("glm"), "claude", 0, Thinking(budget=24_576), id="unknown claude host"),
    pytest.param(HIGH, Model("claude-9"), "claude", 0, Thinking("high", adaptive=True), id="new claude"),
    pytest.param(Thinking("max"), Model("gemini-9"), "gemini", 0, HIGH, id="gemini's own words"),
    pytest.param(Thinking(summary="auto"), CODEX, "responses", 0, Thinking(summary="auto"), id="only shown"),
    pytest.param(Thinking("low", summary="auto"), CODEX, "responses", 0, Thinking("low", summary="auto"), id="shown"),
]  # fmt: skip
SUFFIX = [  # dialect, a body's effort that is none we know, model, what is written for (high)
    ("chat", {"reasoning_effort": None}, "x", {"reasoning_effort": "high"}),
    ("chat", {"reasoning_effort": "mega"}, "x", {"reasoning_effort": "high"}),
    ("responses", {"reasoning": {"effort": None, "summary": "auto"}}, "gpt-5.5", {"reasoning": {"effort": "high", "summary": "auto"}}),
    ("responses", {"reasoning": {"effort": "mega"}}, "gpt-5.5", {"reasoning": {"effort": "high"}}),
    ("gemini", {"generationConfig": {"thinkingConfig": {"thinkingLevel": "MEGA"}}}, "gemini-2.5-pro",
     {"generationConfig": {"thinkingConfig": {"thinkingBudget": 24_576}}}),
]  # fmt: skip


@pytest.mark.parametrize(("dialect", "said", "model", "written"), SUFFIX)
def test_the_name_outranks_an_effort_that_nobody_knows(
    dialect: str, said: cp.Json, model: str, written: cp.Json
) -> None:
    """Between equals a body keeps what is not modelled, but not against what the name says."""
    content = {"gemini": "contents", "responses": "input"}.get(dialect, "messages")
    parts = {"parts": [{"text": "q"}]} if dialect == "gemini" else {"content": "q"}
    body = {"model": f"{model}(high)", content: [{"role": "user", **parts}], **said}
    row, target = cp.DIALECTS[dialect], cp.Target("x", cp.model_row(model))
    fitted = cp.fit_request(row.read_request(body), target, dialect)
    got = row.write_request(fitted.request, target)
    assert {key: got[key] for key in written} == written
    plain = cp.fit_request(row.read_request({**body, "model": model}), target, dialect)
    got = row.write_request(plain.request, target)
    assert {key: got[key] for key in said} == said, "as it came, where the name says nothing"


@pytest.mark.parametrize(("asked", "model", "dialect", "max_tokens", "written"), THINKING)
def test_thinking(asked: Thinking, model: Model, dialect: str, max_tokens: int, written: Thinking) -> None:
    assert cp.resolve_thinking(asked, model, dialect, max_tokens) == written


def test_suffix_wins() -> None:
    request = ask(model="m(high)", thinking=Thinking("low", summary="auto"))
    fitted = fit(request, "responses")
    assert (fitted.model, fitted.thinking) == ("gpt-5.4", Thinking("high", summary="auto"))
    assert fit(request, "chat", Target("x", Model(""))).model == "m"
    (start,) = back([MessageStart("i", "gpt-5.4")], request, "responses")
    assert isinstance(start, MessageStart)
    assert (start.id, start.model) == ("chatcmpl-i", "m(high)")


FORCED = ToolChoice("required")
LIMITS = [  # request fields, target, max_tokens, thinking
    pytest.param({}, CLAUDE, 64_000, Thinking(), id="ceiling"),
    pytest.param({}, Target("claude", Model("x")), 32_000, Thinking(), id="unknown"),
    pytest.param({"params": {"max_tokens": 99_999}}, CLAUDE, 64_000, Thinking(), id="capped"),
    pytest.param({"params": {"max_tokens": 10}}, CLAUDE, 10, Thinking(), id="the client's"),
    pytest.param({"thinking": HIGH}, CLAUDE, 64_000, Thinking(budget=24_576), id="room"),
    pytest.param(
        {"thinking": Thinking("max")}, CLAUDE, 64_000, Thinking(budget=51_200), id="lowered at the ceiling"
    ),
    pytest.param(
        {"thinking": Thinking("max")}, Target("z", Model("x")), 160_000, Thinking(budget=128_000), id="raised"
    ),
    pytest.param(
        {"params": {"max_tokens": 2000}, "thinking": HIGH}, CLAUDE, 2000, Thinking(budget=1600), id="lowered"
    ),
    pytest.param(
        {"thinking": HIGH, "choice": FORCED, "tools": (Tool("f"),)},
        CLAUDE,
        64_000,
        Thinking("none"),
        id="forced",
    ),
    pytest.param(
        {"choice": FORCED, "tools": (Tool("f"),)},
        Target("claude", SONNET_5),
        128_000,
        Thinking("none"),
        id="unasked",
    ),
    pytest.param(
        {"choice": FORCED, "tools": (Tool("f"),)}, CLAUDE, 64_000, Thinking(), id="forced, not thinking"
    ),
]


@pytest.mark.parametrize(("fields", "target", "max_tokens", "thinking_"), LIMITS)
def test_limits(fields: dict[str, Any], target: Target, max_tokens: int, thinking_: Thinking) -> None:
    fitted = fit(ask(**fields), "claude", target)
    assert (fitted.params["max_tokens"], fitted.thinking) == (max_tokens, thinking_)


def test_limits_elsewhere() -> None:
    assert fit(ask(params={"max_tokens": 3}), "responses").params["max_tokens"] == 16
    assert fit(ask(params={"max_tokens": 200_000}), "chat", OPENAI).params["max_tokens"] == 128_000
    assert "max_tokens" not in fit(ask(), "gemini").params


LOOPS = [
    pytest.param([assistant(call("f")), results(("c1", "r"))], False, id="lost"),
    pytest.param(
        [assistant(thinking(cp.seal("S", "claude")), call("f")), results(("c1", "r"))], True, id="kept"
    ),
    pytest.param([assistant(call("f")), results(("c1", "r")), user("next")], True, id="a new turn"),
    pytest.param([assistant("hi"), user("next")], True, id="no call"),
]


@pytest.mark.parametrize(("history", "thinks"), LOOPS)
def test_lost_thinking(history: list[Message], thinks: bool) -> None:
    request = ask(user("q"), *history, dialect="responses", thinking=HIGH)
    assert (fit(request, "claude").thinking == Thinking(budget=24_576)) is thinks
    assert fit(request, "claude", Target("claude", OPUS_47)).thinking == Thinking("high", adaptive=True)


def test_codex_takes_no_minimal() -> None:
    target = Target("codex", Model("gpt-9"), frozenset({"minimal-to-low"}))
    assert fit(ask(thinking=Thinking("minimal")), "responses", target).thinking == Thinking("low")


ASK: dict[str, dict[str, Any]] = {
    "claude": {"max_tokens": 9, "messages": [{"role": "user", "content": "q"}]},
    "chat": {"messages": [{"role": "user", "content": "q"}]},
    "responses": {"input": [{"role": "user", "content": "q"}]},
    "gemini": {"contents": [{"role": "user", "parts": [{"text": "q"}]}]},
}
FUNCTION = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": {}}}},
}


@pytest.mark.parametrize(
    ("more", "model", "written"),
    [
        (
            {},
            SONNET_45,
            {"thinking": {"type": "enabled", "budget_tokens": 1600}, "tool_choice": {"type": "auto"}},
        ),
        (
            {"tool_choice": "required"},
            SONNET_45,
            {"thinking": {"type": "disabled"}, "tool_choice": {"type": "any"}},
        ),
        ({"max_completion_tokens": 1000}, SONNET_45, {"thinking": {"type": "disabled"}}),
        ({}, OPUS_47, {"thinking": {"type": "adaptive"}, "output_config": {"effort": "high"}}),
    ],
)
def test_case_6_effort(more: dict[str, Any], model: Model, written: dict[str, Any]) -> None:
    asked = {
        "reasoning_effort": "high",
        "max_completion_tokens": 2000,
        "temperature": 0.2,
        "tool_choice": "auto",
    }
    body = up(
        "chat", {**ASK["chat"], **asked, "tools": [FUNCTION], **more}, "claude", Target("claude", model)
    )
    assert written.items() <= body.items()
    assert ("temperature" in body) is (body["thinking"]["type"] == "disabled")


def test_case_7_thinking_through_responses() -> None:
    thought = (
        {"type": "thinking", "thinking": "", "signature": ""},
        {"type": "thinking_delta", "thinking": "abc"},
        {"type": "signature_delta", "signature": "SIG"},
    )
    text = ({"type": "text", "text": ""}, {"type": "text_delta", "text": "hi"})
    frames = down("responses", ASK["responses"], "claude", claude_stream(thought, text))
    items = frames[-1]["response"]["output"]
    assert [item["type"] for item in items] == ["reasoning", "message"]
    body = {"input": [*ASK["responses"]["input"], *items, {"role": "user", "content": "more"}]}
    assert up("responses", body, "claude")["messages"][1]["content"][0] == {
        "type": "thinking", "thinking": "abc", "signature": "SIG",
    }  # fmt: skip
    for dialect in ("chat", "gemini", "responses"):
        assert items[0]["encrypted_content"] not in json.dumps(up("responses", body, dialect))
