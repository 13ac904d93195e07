"""Codex as at home: its catalogue, its paths, and what it takes."""

from __future__ import annotations

from typing import Any

import pytest

from support.codex import STREAM, sse
from support.proxy import Proxy, ProxyMaker
from support.upstream import CLOSE, Upstream, make_reply
from support.world import jwt

# what Codex 0.171 refuses a record without
NEEDED = {
    "slug", "display_name", "supported_reasoning_levels", "shell_type", "visibility", "supported_in_api", "priority",
    "base_instructions", "supports_reasoning_summaries", "support_verbosity", "truncation_policy",
    "supports_parallel_tool_calls", "experimental_supported_tools",
}  # fmt: skip
MODELS = [
    {"id": "up-chat", "context": 123_000, "levels": ["none", "low", "medium", "max"], "name": "Up"},
    {"id": "up-gemini", "min-budget": 0, "max-budget": 9_000},
]


@pytest.mark.parametrize("path", ["/v1/models", "/models", "/backend-api/codex/models"])
def test_its_catalogue_tells_the_limits(make_proxy: ProxyMaker, path: str) -> None:
    proxy = make_proxy(models=MODELS)
    rows = {row["slug"]: row for row in proxy.ask(f"{path}?client_version=0.171.0").json()["models"]}
    assert all(row.keys() >= NEEDED for row in rows.values())
    assert rows.keys() == {"up-claude", "up-chat", "up-gemini", "up-responses"}
    assert (rows["up-chat"]["context_window"], rows["up-chat"]["display_name"]) == (123_000, "Up")
    levels = {
        slug: [level["effort"] for level in row["supported_reasoning_levels"]] for slug, row in rows.items()
    }
    assert (levels["up-chat"], levels["up-claude"]) == (["low", "medium"], [])
    assert levels["up-gemini"] == ["low", "medium", "high"]
    assert rows["up-chat"]["default_reasoning_level"] == "medium"
    assert "context_window" not in rows["up-claude"], "unknown stays unknown"


GENUINE = {"slug": "gpt-5.5", "base_instructions": "as OpenAI has it", "future": 1}


@pytest.mark.parametrize("own", [True, False])
def test_openais_own_records_come_first(codex: Proxy, upstream: Upstream, own: bool) -> None:
    """Of the login that Codex brings, or else of one of ours."""
    upstream.reply({"models": [GENUINE, "odd"]})
    headers = {"authorization": f"Bearer {jwt({})}", "chatgpt-account-id": "acct-own"} if own else {}
    first, *others = codex.ask("/v1/models?client_version=0.171.0", None, headers).json()["models"]
    assert first == GENUINE
    assert "gpt-5.5" not in [row["slug"] for row in others]
    assert {row["base_instructions"] for row in others} == {"as OpenAI has it"}
    (seen,) = upstream.seen
    assert seen.path == "/models?client_version=0.171.0"
    assert seen.headers["chatgpt-account-id"] == ("acct-own" if own else "acct-a")
    assert seen.headers["authorization"] == (headers["authorization"] if own else "Bearer token-a")


ODD = [
    make_reply(b"", 500),
    make_reply(b"", 302, {"location": "/x"}),
    make_reply(b"nothing"),
    make_reply({"models": 7}),
    make_reply([b"{", CLOSE]),
]


@pytest.mark.parametrize("reply", ODD)
def test_without_them_there_are_ours(codex: Proxy, upstream: Upstream, reply: Any) -> None:
    upstream.replies.append(reply)
    rows = codex.ask("/v1/models?client_version=0.171.0").json()["models"]
    assert rows
    assert all(row.keys() >= NEEDED for row in rows)
    assert len(upstream.seen) == 1, "and no redirect is followed"


def test_an_odd_version_is_not_passed_on(codex: Proxy, upstream: Upstream) -> None:
    assert codex.ask("/v1/models?client_version=1%26x=../..").status == 200
    assert not upstream.seen


def test_others_get_their_own_list(make_proxy: ProxyMaker) -> None:
    proxy = make_proxy()
    assert "data" in proxy.ask("/v1/models").json()
    assert "name" in proxy.ask("/v1beta/models?client_version=1").json()["models"][0]


def test_its_paths_are_served(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    upstream.reply(STREAM, headers={"content-type": "text/event-stream"})
    body = {"model": "up-responses", "input": "hi", "stream": True}
    assert make_proxy().ask("/backend-api/codex/responses", body).body == b"".join(STREAM)


DREW = {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": "cGljdHVyZQ=="}


def test_a_plan_makes_pictures(codex: Proxy, upstream: Upstream) -> None:
    done = {"type": "response.output_item.done", "output_index": 0, "item": DREW}
    upstream.reply([*STREAM[:1], *sse(done), *STREAM[-1:]], headers={"content-type": "text/event-stream"})
    wish = {"model": "gpt-image-1", "prompt": "a house", "size": "1024x1024", "n": 1}
    got = codex.ask("/v1/images/generations", wish)
    assert got.status == 200, got.body
    assert got.json()["data"] == [{"b64_json": "cGljdHVyZQ=="}]
    assert got.json()["usage"]["input_tokens"] == 7
    (seen,) = upstream.seen
    sent = seen.json()
    assert seen.path == "/responses"
    assert sent["tools"] == [{"type": "image_generation", "model": "gpt-image-1", "size": "1024x1024"}]
    assert (sent["stream"], sent["store"], sent["model"][:4]) == (True, False, "gpt-")
    assert sent["input"] == [{"role": "user", "content": "a house"}]


@pytest.mark.parametrize("wish", [{"prompt": "x", "n": 2}, {"prompt": 7}, {"prompt": None}, {}])
def test_what_no_plan_can_draw(codex: Proxy, upstream: Upstream, wish: dict[str, Any]) -> None:
    assert codex.ask("/v1/images/generations", {"model": "gpt-image-1", **wish}).status == 400
    assert not upstream.seen


def test_an_answer_without_a_picture_is_a_failure(codex: Proxy, upstream: Upstream) -> None:
    upstream.reply(STREAM, headers={"content-type": "text/event-stream"})
    upstream.reply(STREAM, headers={"content-type": "text/event-stream"})
    assert codex.ask("/v1/images/generations", {"model": "gpt-image-1", "prompt": "x"}).status == 502
