"""Conversations that are compacted: by a summary of the same model where its service has no form of that."""

from __future__ import annotations

from typing import Any

import pytest

from support.dialogue import ANSWERS, STREAMS, Said
from support.proxy import Proxy
from support.upstream import Upstream

SSE = {"content-type": "text/event-stream"}
FOREIGN = ["claude", "chat", "gemini"]
TOOL = {"type": "function", "name": "look", "parameters": {"type": "object", "properties": {}}}
SAID = [
    {"role": "user", "content": "look around"},
    {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"city":"Rome"}'},
    {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
]
HI = {"role": "user", "content": "and now?"}


def goes_on(proxy: Proxy, upstream: Upstream, items: list[Any]) -> None:
    """What was compacted is read by every model, also with its own dialect."""
    for dialect in (*FOREIGN, "responses"):
        upstream.reply(ANSWERS[dialect](Said(text="ok")))
        got = proxy.ask("/v1/responses", {"model": f"up-{dialect}", "input": [*items, HI]})
        assert got.status == 200, got.body
        sent = upstream.seen[-1].body.decode()
        assert sent.index("They looked at Rome.") < sent.index("and now?")
        assert "encrypted_content" not in sent


@pytest.mark.parametrize("tools", [[], [TOOL]])
@pytest.mark.parametrize("dialect", FOREIGN)
def test_the_same_model_sums_it_up(proxy: Proxy, upstream: Upstream, dialect: str, tools: list[Any]) -> None:
    upstream.reply(ANSWERS[dialect](Said(text="They looked at Rome.")))
    body = {"model": f"up-{dialect}", "input": SAID, "instructions": "be kind", "tools": tools}
    got = proxy.ask("/v1/responses/compact", body)
    assert got.status == 200, got.body
    whole = got.json()
    (item,) = whole["output"]
    assert (whole["object"], item["type"]) == ("response.compaction", "compaction")
    assert whole["usage"]["input_tokens"] == 9
    sent = upstream.seen[0].body.decode()
    assert sent.index("sunny") < sent.index("Your context is full")
    goes_on(proxy, upstream, whole["output"])


@pytest.mark.parametrize("dialect", FOREIGN)
def test_codex_asks_for_it_by_an_item(proxy: Proxy, upstream: Upstream, dialect: str) -> None:
    upstream.reply(ANSWERS[dialect](Said(text="They looked at Rome.")))
    body = {
        "model": f"up-{dialect}",
        "input": [*SAID, {"type": "compaction_trigger"}],
        "stream": True,
        "store": False,
        "tools": [TOOL],
    }
    got = proxy.ask("/v1/responses", body)
    done = [event["item"] for event in got.payloads() if event["type"] == "response.output_item.done"]
    assert [item["type"] for item in done] == ["compaction"]
    assert got.payloads()[-1]["type"] == "response.completed"
    goes_on(proxy, upstream, done)


@pytest.mark.parametrize("said", [Said(text=" "), Said(call="c1", input="Rome")])
@pytest.mark.parametrize("dialect", FOREIGN)
def test_without_a_summary_nothing_is_compacted(
    proxy: Proxy, upstream: Upstream, dialect: str, said: Said
) -> None:
    for path, more in (("/v1/responses/compact", []), ("/v1/responses", [{"type": "compaction_trigger"}])):
        upstream.reply(ANSWERS[dialect](said))
        upstream.reply(ANSWERS[dialect](said))
        got = proxy.ask(path, {"model": f"up-{dialect}", "input": [*SAID, *more]})
        assert got.status == 502
        upstream.replies.clear()


def test_a_summary_is_summed_up_with_what_followed(proxy: Proxy, upstream: Upstream) -> None:
    """No service but ours could read it, so nobody is asked to compact it in its own way."""
    upstream.reply(ANSWERS["claude"](Said(text="They looked at Rome.")))
    first = proxy.ask("/v1/responses/compact", {"model": "up-claude", "input": SAID}).json()["output"]
    upstream.reply(ANSWERS["responses"](Said(text="All of it.")))
    got = proxy.ask("/v1/responses/compact", {"model": "up-responses", "input": [*first, HI]})
    assert got.json()["object"] == "response.compaction"
    assert upstream.seen[-1].path == "/v1/responses"
    assert b"They looked at Rome." in upstream.seen[-1].body


def test_what_another_service_compacted_is_told_as_that(proxy: Proxy, upstream: Upstream) -> None:
    upstream.reply(STREAMS["claude"](Said(text="ok")), headers=SSE)
    items = [{"type": "compaction", "encrypted_content": "gAAAA"}, HI]
    assert proxy.ask("/v1/responses", {"model": "up-claude", "input": items, "stream": True}).status == 200
    assert "only its former provider can read" in upstream.seen[0].body.decode()
