"""What is lost between dialects is told: in a header of the answer, and in a table of README.md."""

from __future__ import annotations

from typing import Any

import pytest

import cliproxy as cp
from support.dialogue import NAMES, Said, claude_answer, responses_answer
from support.paths import ROOT
from support.proxy import Proxy, ProxyMaker

CHAT = {"messages": [{"role": "user", "content": "q"}], "max_tokens": 99}
LOST = [  # model, what a client of Chat asks for, what is not said
    pytest.param("up-claude", {"seed": 1, "logprobs": True}, {"seed", "logprobs"}, id="to Claude"),
    pytest.param("up-responses", {"stop": ["x"], "seed": 1}, {"stop", "seed"}, id="to Responses"),
    pytest.param("up-claude", {"stop": ["x"], "temperature": 0.5}, set(), id="nothing"),
]


@pytest.mark.parametrize(("model", "asked", "lost"), LOST)
def test_the_answer_says_what_was_left_out(
    model: str, asked: dict[str, Any], lost: set[str], proxy: Proxy
) -> None:
    answer = claude_answer if model == "up-claude" else responses_answer
    proxy.upstream.reply(answer(Said(text="hi")))
    got = proxy.ask("/v1/chat/completions", {**CHAT, "model": model, **asked})
    told = got.headers.get("x-cliproxy-dropped", "")
    assert (got.status, set(filter(None, told.split(", ")))) == (200, lost)


def test_what_passes_loses_nothing(make_proxy: ProxyMaker) -> None:
    proxy = make_proxy()
    proxy.upstream.reply(claude_answer(Said(text="hi")))
    got = proxy.ask("/v1/messages", {**CHAT, "model": "up-claude", "top_k": 3})
    assert "x-cliproxy-dropped" not in got.headers


def table() -> str:
    """Return the table of README.md: which parameters each dialect has a word for."""
    lines = ["| parameter | " + " | ".join(NAMES) + " |", "|---" * (len(NAMES) + 1) + "|"]
    for row in cp.PARAMS:
        cells = (getattr(row, dialect).partition(" ")[0] for dialect in NAMES)
        lines.append(f"| {row.canonical} | " + " | ".join(f"`{c}`" if c else "lost" for c in cells) + " |")
    for row in cp.ABILITIES:
        if row.canonical in {"media", "hosted"}:
            cells = (getattr(row, dialect) or "none" for dialect in NAMES)
            lines.append(f"| {row.canonical} taken | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def test_the_table_of_the_readme_is_that_of_the_code() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert table() in readme, f"put this under `What is lost between dialects`:\n{table()}"
