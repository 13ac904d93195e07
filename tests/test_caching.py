"""What is kept of a prompt for the next request of a conversation, told to each service in its way."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pytest

import cliproxy as cp
from cliproxy import Message, Part, Request, Tool
from support.dialogue import SCHEMA, Said, chat_answer, claude_answer
from support.fitting import ask, assistant, call, fit, results, user
from support.proxy import Proxy, ProxyMaker
from support.upstream import Reply, Seen, Upstream, make_reply

Json = dict[str, Any]
TURNS = 20
LOOK_BACK = 20  # blocks before a mark in which Anthropic looks for what it has kept
LEAST = 1_024  # tokens
PATHS = {
    "claude": "/v1/messages",
    "chat": "/v1/chat/completions",
    "responses": "/v1/responses",
    "gemini": "/v1beta/models/up-claude:generateContent",
}


def without_marks(thing: Any) -> Any:
    if isinstance(thing, dict):
        return {key: without_marks(value) for key, value in thing.items() if key != "cache_control"}
    return [without_marks(item) for item in thing] if isinstance(thing, list) else thing


def count_marks(thing: Any) -> int:
    return json.dumps(thing).count('"cache_control"')


class Kept:
    """Counts cached prefixes as Anthropic does: tools, then system, then messages; whole blocks up to a mark."""

    def __init__(self) -> None:
        self.known: set[str] = set()
        self.usages: list[Json] = []
        self.bodies: list[Json] = []

    def blocks(self, body: Json) -> Iterator[Json]:
        yield from body.get("tools") or ()
        system = body.get("system") or []
        yield from [{"type": "text", "text": system}] if isinstance(system, str) else system
        for message in body["messages"]:
            content = message["content"]
            content = [{"type": "text", "text": content}] if isinstance(content, str) else content
            yield from ({"role": message["role"], **block} for block in content)

    def __call__(self, seen: Seen) -> Reply:
        body = seen.json()
        assert count_marks(body) <= 4
        state, total = hashlib.sha256(), 0
        ends: list[tuple[str, int]] = []
        marks = []
        for at, block in enumerate(self.blocks(body)):
            text = json.dumps(without_marks(block), sort_keys=True)
            state.update(text.encode())
            total += len(text) // 4
            ends.append((state.hexdigest(), total))
            if block.get("cache_control"):
                marks.append(at)
        read = 0
        for mark in marks:
            back = ends[max(0, mark - LOOK_BACK + 1) : mark + 1]
            read = max([read, *(size for prefix, size in back if prefix in self.known)])
        kept = [ends[mark] for mark in marks if ends[mark][1] >= LEAST]
        self.known.update(prefix for prefix, _ in kept)
        written = max([size for _, size in kept], default=read) - read
        usage = {"input_tokens": total - read - written, "cache_read_input_tokens": read,
                 "cache_creation_input_tokens": written, "output_tokens": 9}  # fmt: skip
        self.usages.append(usage)
        self.bodies.append(body)
        said = Said(text="I look.", call=f"toolu_{len(self.usages)}", input="Rome")
        return make_reply({**claude_answer(said), "usage": usage})

    def share(self, first: int) -> float:
        """Return which part of all input was read from what was kept, from a turn on."""
        counted = self.usages[first:]
        read: int = sum(usage["cache_read_input_tokens"] for usage in counted)
        return read / sum(read_and_new(usage) for usage in counted)


def read_and_new(usage: Json) -> int:
    return int(sum(count for name, count in usage.items() if name != "output_tokens"))


WORDS = "The harbour of the city lies south of the old walls. "
AGENT = Request(
    "chat",
    "up-claude",
    (),
    system=(Part("text", "You are an agent that reads files. " + WORDS * 60),),
    tools=tuple(Tool(name, f"{name}: {WORDS * 20}", SCHEMA) for name in ("look", "read", "write")),
    params={"max_tokens": 500},
)


def agent_turns() -> Iterator[tuple[Message, ...]]:
    """Yield what an agent says in each turn: its task, then what its tools gave; now and then the user again."""
    said: list[Message] = [user("Find the harbour. " + WORDS * 3)]
    for turn in range(1, TURNS + 1):
        yield tuple(said)
        said.append(assistant(f"Step {turn}.", call("look", f"toolu_{turn}", '{"city": "Rome"}')))
        said.append(results((f"toolu_{turn}", f"{turn}: " + WORDS * 8)))
        if turn % 6 == 0:
            said += [assistant("Done so far."), user(f"Go on with part {turn}. {WORDS}")]


def marked_as_claude_code_does(body: Json) -> Json:
    """Mark the system text, and the last block of the last message."""
    mark = {"cache_control": {"type": "ephemeral"}}
    *before, last = body["messages"]
    content = last["content"]
    content = [{"type": "text", "text": content}] if isinstance(content, str) else content
    system = body["system"]
    system = [{"type": "text", "text": system}] if isinstance(system, str) else system
    last = {**last, "content": [*content[:-1], {**content[-1], **mark}]}
    return {**body, "system": [{**system[-1], **mark}], "messages": [*before, last]}


def bodies_of(client: str) -> Iterator[Json]:
    target = cp.Target("own", cp.Model("up-claude"))
    for said in agent_turns():
        request = fit(AGENT._replace(dialect=client, messages=said), client, target)
        body = cp.DIALECTS[client].write_request(request, target)
        yield marked_as_claude_code_does(body) if client == "claude" else body


USAGE_READ: dict[str, Callable[[Json], tuple[int, int]]] = {  # what was read, and the whole input, as each client is told
    "claude": lambda told: (told["usage"]["cache_read_input_tokens"], read_and_new(told["usage"])),
    "chat": lambda told: (
        told["usage"]["prompt_tokens_details"]["cached_tokens"], told["usage"]["prompt_tokens"]),
    "responses": lambda told: (
        told["usage"]["input_tokens_details"]["cached_tokens"], told["usage"]["input_tokens"]),
    "gemini": lambda told: (
        told["usageMetadata"].get("cachedContentTokenCount", 0), told["usageMetadata"]["promptTokenCount"]),
}  # fmt: skip


@pytest.mark.parametrize("client", PATHS)
def test_an_agent_reads_nine_tenths_of_its_input_from_the_cache(
    client: str, make_proxy: ProxyMaker, upstream: Upstream
) -> None:
    kept = Kept()
    upstream.routes["/v1/messages"] = kept
    proxy = make_proxy()
    told = [proxy.ask(PATHS[client], body).json() for body in bodies_of(client)]
    assert len(kept.usages) == TURNS
    assert kept.share(2) >= 0.9
    for answer, usage in zip(told, kept.usages):
        expected = (usage["cache_read_input_tokens"], read_and_new(usage))
        assert USAGE_READ[client](answer) == expected


def long_chat(**fields: Any) -> Json:
    messages = [{"role": "system", "content": WORDS * 100}, {"role": "user", "content": "q"}]
    return {"model": "up-claude", "messages": messages, **fields}


def sent(proxy: Proxy, body: Json, path: str = "chat") -> Json:
    proxy.upstream.reply(claude_answer(Said(text="hi")))
    assert proxy.ask(PATHS[path], body).status == 200
    seen: Json = proxy.upstream.seen[-1].json()
    return seen


OVERRIDE = {"system.#.cache_control": None, "messages.#.content.#.cache_control": None}
MARKS: list[Any] = [
    pytest.param({}, long_chat(), 2, id="long"),
    pytest.param({}, long_chat(messages=[{"role": "user", "content": "q"}]), 0, id="short"),
    pytest.param({"prompt_caching": False}, long_chat(), 0, id="switched off"),
]


@pytest.mark.parametrize(("settings", "body", "marks"), MARKS)
def test_marks(settings: Json, body: Json, marks: int, make_proxy: ProxyMaker) -> None:
    assert count_marks(sent(make_proxy(**settings), body)) == marks


def test_a_payload_rule_takes_them_off(make_proxy: ProxyMaker) -> None:
    rule = {"models": [{"name": "up-claude"}], "params": OVERRIDE}
    body = sent(make_proxy(payload={"override": [rule]}), long_chat())
    assert not [block for block in Kept().blocks(body) if block.get("cache_control")]


def test_what_the_client_marks_stays() -> None:
    said = user(Part("text", WORDS * 100, cache="5m"), "q")
    (message,) = fit(ask(said, user("go"), system=(Part("text", "s"),)), "claude").messages[:1]
    assert [part.cache for part in message.parts] == ["5m", ""]


@pytest.mark.parametrize(("said", "lasting"), [({}, "5m"), ({"prompt_cache_retention": "24h"}, "1h")])
def test_how_long_it_is_kept(said: Json, lasting: str, proxy: Proxy) -> None:
    body = sent(proxy, long_chat(**said))
    assert "prompt_cache_retention" not in body
    assert {block["cache_control"].get("ttl", "5m") for block in Kept().blocks(body)} == {lasting}


@pytest.mark.parametrize("target", ["responses", "chat", "codex"])
def test_retention_goes_where_it_is_known(target: str) -> None:
    dialect = "chat" if target == "chat" else "responses"
    request = ask(params={"cache_retention": "24h"}, dialect="responses" if dialect == "chat" else "chat")
    vendors = {"responses": "openai", "chat": "deepseek", "codex": "codex"}
    fitted = fit(request, dialect, cp.Target(vendors[target], cp.Model("m")))
    assert ("cache_retention" in fitted.params) == (target != "chat")


def test_marks_stand_at_the_last_two_turns_of_the_user() -> None:
    said = [
        user("a"),
        assistant("b", call("f")),
        results(("c1", WORDS)),
        user("and"),
        assistant("c"),
        user("d"),
    ]
    request = fit(ask(user(WORDS * 100), assistant("x"), *said, tools=(Tool("f"), Tool("g"))), "claude")
    assert [tool.cache for tool in request.tools] == ["", "5m"]
    assert [[part.cache for part in m.parts] for m in request.messages if m.role != "assistant"] == [
        [""], [""], [""], ["5m"], ["5m"],
    ]  # fmt: skip


def keyed(proxy: Proxy, headers: Mapping[str, str]) -> str:
    """Ask a key of OpenAI's as Claude Code would; return the name by which it caches the conversation."""
    proxy.upstream.reply(chat_answer(Said(text="hi")))
    body = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "q"}]}
    proxy.ask("/v1/messages", body, headers)
    return str(proxy.upstream.seen[-1].json().get("prompt_cache_key"))


def test_a_conversation_has_a_name_at_openai(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    key = {"api-key": "sk-of-openai", "base-url": f"{upstream.url}/v1", "models": [{"name": "m"}]}
    proxy = make_proxy(codex_api_key=[key])
    first, again, other = (keyed(proxy, {"x-claude-code-session-id": name}) for name in ("a", "a", "b"))
    assert first == again != other
