"""Asking providers: the ChatGPT backend, failing over, keep-alives, counts, old completions."""

from __future__ import annotations

import json
import logging
import threading
import time
from contextlib import closing
from typing import Any

import pytest

import cliproxy as cp
from support.codex import ASKS, HELLO, ITEM, PAYLOADS, RESPONSE, STREAM, USAGE, add_codex, ask, sse
from support.dialogue import ANSWERS, NAMES, STREAMS, Said, frame
from support.proxy import Got, Proxy, ProxyMaker
from support.upstream import CLOSE, DEADLINE, RESET, Upstream, make_reply

SSE = {"content-type": "text/event-stream"}


# --- the ChatGPT backend -----------------------------------------------------------------------

FITTING = {  # nothing in it must change
    "model": "gpt-test", "instructions": "", "input": [HELLO], "stream": True, "store": False,
    "include": ["reasoning.encrypted_content"],
}  # fmt: skip
FORCED = {
    "instructions": "",
    "input": [HELLO],
    "stream": True,
    "store": False,
    "include": ["reasoning.encrypted_content"],
}
THOUGHT = {"type": "reasoning", "summary": [], "encrypted_content": "gAAAAA"}
TEXT = {"type": "input_text", "text": "hi"}
BODIES = [
    pytest.param({"input": [HELLO]}, FORCED, id="forced"),
    pytest.param({"input": "hello"}, FORCED, id="a text is an item"),
    pytest.param({"input": [HELLO], "store": True, "stream": False}, FORCED, id="overridden"),
    pytest.param({"input": [HELLO], "instructions": None}, FORCED, id="null instructions"),
    pytest.param({"input": [HELLO], "instructions": "be kind"}, {**FORCED, "instructions": "be kind"}, id="instructions kept"),
    pytest.param({"input": [HELLO], "include": ["x"]}, {**FORCED, "include": ["x", "reasoning.encrypted_content"]}, id="include added to"),
    pytest.param(
        {"input": [HELLO], **dict.fromkeys(cp.CODEX_REMOVED, 1), "model": "gpt-test"}, FORCED, id="all that it refuses",
    ),
    pytest.param({"input": [HELLO], "future": {"a": 1.50}}, {**FORCED, "future": {"a": 1.5}}, id="unknown fields stay"),
    pytest.param(
        {"input": [{"role": "system", "content": "x"}, HELLO]}, {**FORCED, "input": [{"role": "developer", "content": "x"}, HELLO]},
        id="system is developer",
    ),
    pytest.param({"input": [HELLO], "parallel_tool_calls": True, "tools": []}, {**FORCED, "tools": []}, id="parallel calls of nothing"),
    pytest.param(
        {"input": [HELLO], "parallel_tool_calls": True, "tools": [{"type": "web_search"}]},
        {**FORCED, "parallel_tool_calls": True, "tools": [{"type": "web_search"}]}, id="parallel calls",
    ),
    pytest.param({"input": [HELLO], "service_tier": "auto"}, FORCED, id="unknown tier"),
    pytest.param({"input": [HELLO], "service_tier": "fast"}, {**FORCED, "service_tier": "priority"}, id="fast tier"),
    pytest.param(
        {"input": [HELLO], "reasoning": {"effort": "minimal", "summary": "auto"}},
        {**FORCED, "reasoning": {"effort": "low", "summary": "auto"}}, id="effort",
    ),
    pytest.param({"input": [HELLO], "reasoning": {"effort": "high"}}, {**FORCED, "reasoning": {"effort": "high"}}, id="effort kept"),
    pytest.param({"input": [{**HELLO, "id": "msg_1", "status": "x"}]}, {**FORCED, "input": [{**HELLO, "status": "x"}]}, id="ids of what is not stored"),
    pytest.param({"input": [{"type": "item_reference", "id": "rs_1"}, HELLO]}, FORCED, id="reasoning that nobody knows"),
    pytest.param({"input": [{**THOUGHT, "id": "rs_1"}, {**THOUGHT, "encrypted_content": ""}, HELLO]}, {**FORCED, "input": [THOUGHT, HELLO]},
                 id="reasoning without its proof"),
    pytest.param({"input": [{"role": "user", "content": [{**TEXT, "prompt_cache_breakpoint": {"mode": "explicit"}}]}]},
                 {**FORCED, "input": [{"role": "user", "content": [TEXT]}]}, id="cache breakpoints"),
    pytest.param({"input": [HELLO], "tools": [{"type": "web_search_preview_2025_03_11", "x": 1}, {"type": "function", "name": "f"}]},
                 {**FORCED, "tools": [{"type": "web_search", "x": 1}, {"type": "function", "name": "f"}]}, id="an old name of a tool"),
]  # fmt: skip


@pytest.mark.parametrize(("body", "arrives"), BODIES)
def test_what_the_chatgpt_backend_is_sent(
    codex: Proxy, upstream: Upstream, body: dict[str, Any], arrives: dict[str, Any]
) -> None:
    upstream.reply(STREAM, headers=SSE)
    assert codex.ask("/v1/responses", {"model": "gpt-test", **body}).status == 200
    assert upstream.seen[0].path == "/responses"
    assert upstream.seen[0].json() == {"model": "gpt-test", **arrives}


def test_bytes_that_fit_are_not_touched(codex: Proxy, upstream: Upstream) -> None:
    upstream.reply(STREAM, headers=SSE)
    sent = json.dumps(FITTING, indent=3).encode() + b"\n"
    got = codex.ask("/v1/responses", sent)
    assert upstream.seen[0].body == sent
    assert got.body == b"".join(STREAM)


@pytest.mark.parametrize("piece", [1, 7, 65_536])
@pytest.mark.parametrize("originator", ["codex_cli_rs", ""])
def test_what_only_codex_knows(codex: Proxy, upstream: Upstream, originator: str, piece: int) -> None:
    """OpenAI's SDK raises an error if anything comes before response.created."""
    limits = sse({"type": "codex.rate_limits", "rate_limits": {"primary": {"used_percent": 9}}})
    upstream.piece = piece
    upstream.reply([*limits, *STREAM], headers=SSE)
    got = codex.ask("/v1/responses", FITTING, {"originator": originator} if originator else {})
    assert got.body == b"".join([*(limits if originator else ()), *STREAM])


def test_only_the_model_changes_behind_a_prefix(codex: Proxy, upstream: Upstream) -> None:
    add_codex(codex, "b", prefix="team")
    upstream.reply(STREAM, headers=SSE)
    sent = json.dumps(FITTING, indent=3).encode()
    codex.ask("/v1/responses", sent.replace(b"gpt-test", b"team/gpt-test"))
    assert upstream.seen[0].body == sent
    assert upstream.seen[0].headers["authorization"] == "Bearer token-b"


def test_what_names_the_account_and_the_conversation(codex: Proxy, upstream: Upstream) -> None:
    upstream.reply(STREAM, headers=SSE)
    codex.ask(
        "/v1/responses",
        {**FITTING, "prompt_cache_key": "thread-1"},
        {"x-forwarded-for": "1.2.3.4", "cf-ray": "x"},
    )
    headers = upstream.seen[0].headers
    assert (headers["authorization"], headers["chatgpt-account-id"], headers["session_id"]) == (
        "Bearer token-a",
        "acct-a",
        "thread-1",
    )
    assert (headers["originator"], headers["accept"]) == ("cliproxy", "text/event-stream")
    assert not {"x-forwarded-for", "cf-ray", "x-api-key", "cookie"} & headers.keys()


def test_a_conversation_of_a_client_without_cache_keys_has_one(codex: Proxy, upstream: Upstream) -> None:
    for session, more in (("one", []), ("one", [HELLO]), ("two", [])):
        upstream.reply(STREAM, headers=SSE)
        body = {"model": "gpt-test", "max_tokens": 9, "messages": [HELLO, *more]}
        codex.ask("/v1/messages", body, {"x-claude-code-session-id": session})
    keys = [seen.json()["prompt_cache_key"] for seen in upstream.seen]
    assert keys == [seen.headers["session_id"] for seen in upstream.seen]
    assert keys[0] == keys[1] != keys[2]
    assert "one" not in keys[0]


@pytest.mark.parametrize("field", ["previous_response_id", "conversation"])
def test_history_that_is_not_kept_there_is_not_lost_in_silence(
    codex: Proxy, upstream: Upstream, field: str
) -> None:
    got = codex.ask("/v1/responses", {**FITTING, field: "resp_1"})
    assert (got.status, got.json()["error"]["param"]) == (400, field)
    assert "whole conversation" in got.json()["error"]["message"]
    assert not upstream.seen


def test_half_a_character_names_no_conversation(codex: Proxy, upstream: Upstream) -> None:
    upstream.reply(STREAM, headers=SSE)
    body = {**CLAUDE, "model": "gpt-test", "metadata": {"user_id": "\ud800"}}
    assert codex.ask("/v1/messages", body).status == 200


def test_a_real_client_speaks_for_itself(codex: Proxy, upstream: Upstream) -> None:
    upstream.reply(STREAM, headers=SSE)
    own = {
        "originator": "codex_cli_rs",
        "session_id": "mine",
        "user-agent": "codex_cli_rs/1.0",
        "chatgpt-account-id": "dummy",
    }
    codex.ask("/v1/responses", {**FITTING, "prompt_cache_key": "thread-1"}, own)
    headers = upstream.seen[0].headers
    assert (headers["originator"], headers["session_id"], headers["user-agent"]) == (
        "codex_cli_rs",
        "mine",
        "codex_cli_rs/1.0",
    )
    assert headers["chatgpt-account-id"] == "acct-a", "the account is the proxy's"


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/chat/completions"])
def test_a_translated_client_is_us(codex: Proxy, upstream: Upstream, path: str) -> None:
    upstream.reply(STREAM, headers=SSE)
    codex.ask(
        path,
        {"model": "gpt-test", "max_tokens": 9, "messages": [HELLO]},
        {"user-agent": "someone/1", "originator": "someone"},
    )
    headers = upstream.seen[0].headers
    assert (headers["originator"], headers["user-agent"]) == ("cliproxy", cp.USER_AGENT)


TEXTS = {  # where the text of a whole answer stands
    "responses": lambda d: d["output"][0]["content"][0]["text"],
    "chat": lambda d: d["choices"][0]["message"]["content"],
    "claude": lambda d: d["content"][0]["text"],
    "gemini": lambda d: d["candidates"][0]["content"]["parts"][0]["text"],
}


@pytest.mark.parametrize("piece", [1, 7, 65_536])
@pytest.mark.parametrize("dialect", list(ASKS))
def test_a_whole_answer_from_an_upstream_that_only_streams(
    codex: Proxy, upstream: Upstream, dialect: str, piece: int
) -> None:
    upstream.piece = piece
    upstream.reply(STREAM, headers=SSE)
    upstream.reply(STREAM, headers=SSE)
    got = ask(codex, dialect)
    assert (got.status, got.headers["content-type"]) == (200, "application/json")
    assert TEXTS[dialect](got.json()) == "hi there"
    assert upstream.seen[0].json()["stream"] is True
    if dialect == "responses":
        assert got.json() == {**RESPONSE, "status": "completed", "usage": USAGE, "output": [ITEM]}


@pytest.mark.parametrize("dialect", list(ASKS))
def test_streams_from_it(codex: Proxy, upstream: Upstream, dialect: str) -> None:
    upstream.reply(STREAM, headers=SSE)
    got = ask(codex, dialect, stream=True)
    assert (got.status, got.headers["content-type"]) == (200, "text/event-stream")
    assert b"hi " in got.body
    assert b"there" in got.body
    assert got.body == b"".join(STREAM) or dialect != "responses"


@pytest.mark.parametrize("dialect", list(ASKS))
def test_its_connection_is_used_again(codex: Proxy, upstream: Upstream, dialect: str) -> None:
    body = b"".join(STREAM)  # in one piece with its end
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    for _ in range(2):
        upstream.reply([b"%b%x\r\n%b\r\n0\r\n\r\n" % (head, len(body), body)], framing="raw")
        assert ask(codex, dialect).status == 200
    assert [seen.connection for seen in upstream.seen] == [0, 0]


FAILED = {
    "type": "response.failed",
    "response": {
        **RESPONSE,
        "status": "failed",
        "error": {"code": "server_is_overloaded", "message": "busy"},
    },
}
ENDINGS = [
    pytest.param(sse(PAYLOADS[0], FAILED), "busy", id="failed"),
    pytest.param(
        sse({"type": "error", "code": "rate_limit_exceeded", "message": "slow down", "param": None}),
        "slow down",
        id="error",
    ),
    pytest.param(STREAM[:4], "", id="ended in the middle"),
    pytest.param([*STREAM[:4], CLOSE], "", id="cut"),
    pytest.param([b"data: {oops\n\n"], "", id="no JSON"),
]


@pytest.mark.parametrize("dialect", list(ASKS))
@pytest.mark.parametrize(("steps", "says"), ENDINGS)
def test_a_stream_that_fails_is_no_whole_answer(
    codex: Proxy, upstream: Upstream, steps: list[Any], says: str, dialect: str
) -> None:
    upstream.reply(steps, headers=SSE)
    got = ask(codex, dialect)
    assert got.status >= 400
    assert says in got.json()["error"]["message"]


@pytest.mark.parametrize(
    "event",
    [
        {"type": "response.output_item.done"},
        {"type": "response.completed"},
        {"type": "response.completed", "response": 5},
        {"type": "response.failed", "response": 5},
    ],
    ids=json.dumps,
)
def test_a_malformed_stream_is_no_whole_answer(
    codex: Proxy, upstream: Upstream, event: dict[str, Any]
) -> None:
    upstream.reply(sse(PAYLOADS[0], event), headers=SSE)
    assert codex.ask("/v1/responses", {**FITTING, "stream": False}).status == 502


def test_an_incomplete_answer_is_whole(codex: Proxy, upstream: Upstream) -> None:
    end = {
        "type": "response.incomplete",
        "response": {
            **RESPONSE,
            "status": "incomplete",
            "incomplete_details": {"reason": "max_output_tokens"},
        },
    }
    upstream.reply(sse(*PAYLOADS[:-1], end), headers=SSE)
    got = ask(codex, "responses").json()
    assert (got["status"], got["output"]) == ("incomplete", [ITEM])


LIMIT = {
    "error": {
        "type": "usage_limit_reached",
        "message": "The usage limit has been reached",
        "plan_type": "plus",
    }
}


@pytest.mark.parametrize("dialect", list(ASKS))
@pytest.mark.parametrize(
    "words", [{"resets_in_seconds": 90}, {"resets_at": 0, "resets_in_seconds": 1}], ids=["in", "at"]
)
def test_a_usage_limit_says_when_it_ends(
    codex: Proxy, upstream: Upstream, dialect: str, words: dict[str, int]
) -> None:
    if "resets_at" in words:
        words = {**words, "resets_at": int(time.time()) + 90}
    upstream.reply({"error": {**LIMIT["error"], **words}}, 429)
    got = ask(codex, dialect)
    assert got.status == 429
    assert 85 <= int(got.headers["retry-after"]) <= 90
    again = ask(codex, dialect)
    assert again.status == 429
    assert 85 <= int(again.headers["retry-after"]) <= 90
    assert len(upstream.seen) == 1, "it is not asked again before that"


# --- one account after the other -----------------------------------------------------------------


def with_keys(make_proxy: ProxyMaker, upstream: Upstream, count: int, **settings: Any) -> Proxy:
    keys = [
        {"api-key": f"key-{n}", "base-url": upstream.url, "models": [{"name": "up-claude"}]}
        for n in range(count)
    ]
    return make_proxy(claude_api_key=keys, **settings)


CLAUDE = {"model": "up-claude", "max_tokens": 9, "messages": [HELLO]}
OK, ERROR = {"ok": 1}, {"error": {"type": "x", "message": "no"}}
OUTCOMES = [  # statuses of the upstream one after the other, what the client gets, who was asked
    pytest.param([200], 200, "0", id="the first answers"),
    pytest.param([429, 200], 200, "01", id="429"),
    pytest.param([401, 200], 200, "01", id="401"),
    pytest.param([402, 200], 200, "01", id="402"),
    pytest.param([403, 200], 200, "01", id="403"),
    pytest.param([404, 200], 200, "01", id="404"),
    pytest.param([500, 200], 200, "01", id="500"),
    pytest.param([502, 200], 200, "01", id="502"),
    pytest.param([503, 200], 200, "01", id="503"),
    pytest.param([529, 200], 200, "01", id="529"),
    pytest.param([500, 429, 200], 200, "012", id="two fail"),
    pytest.param([429, 500, 503], 503, "012", id="all fail: the last one is told"),
    pytest.param([400], 400, "0", id="400 is the client's mistake"),
    pytest.param([413], 413, "0", id="413"),
    pytest.param([422], 422, "0", id="422"),
]


@pytest.mark.parametrize(("statuses", "status", "asked"), OUTCOMES)
def test_who_is_asked(
    make_proxy: ProxyMaker, upstream: Upstream, statuses: list[int], status: int, asked: str
) -> None:
    proxy = with_keys(make_proxy, upstream, 3)
    for number in statuses:
        upstream.reply(OK if number == 200 else ERROR, number)
    assert proxy.ask("/v1/messages", CLAUDE).status == status
    assert "".join(seen.headers["authorization"][-1] for seen in upstream.seen) == asked


BREAKING = [
    pytest.param([CLOSE], "raw", id="no answer"),
    pytest.param([b"HTTP/1.1 200", CLOSE], "raw", id="half a head"),
    pytest.param([b"garbage\r\n\r\n", CLOSE], "raw", id="garbage"),
    pytest.param([b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n", CLOSE], "raw", id="no body"),
    pytest.param(
        sse({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}),
        "chunked",
        id="error first",
    ),
]


@pytest.mark.parametrize(("steps", "framing"), BREAKING)
def test_what_fails_before_the_first_piece_is_asked_of_the_next(
    make_proxy: ProxyMaker, upstream: Upstream, steps: list[Any], framing: str
) -> None:
    proxy = with_keys(make_proxy, upstream, 2)
    upstream.reply(steps, headers=SSE, framing=framing)
    upstream.reply(OK)
    assert proxy.ask("/v1/messages", CLAUDE).json() == OK
    assert len(upstream.seen) == 2


def test_after_the_first_piece_nobody_else_is_asked(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = with_keys(make_proxy, upstream, 2)
    said = {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "hi"}}
    upstream.reply([*sse({"type": "message_start", "message": {}}, said), CLOSE], headers=SSE)
    got = proxy.ask("/v1/messages", {**CLAUDE, "stream": True})
    assert (got.status, got.payloads()[-1]["type"]) == (200, "error")
    assert len(upstream.seen) == 1


@pytest.mark.parametrize("status", [408, 500, 502, 503, 529])
def test_a_fault_that_may_pass_does_not_block_the_only_account(
    make_proxy: ProxyMaker, upstream: Upstream, status: int
) -> None:
    proxy = with_keys(make_proxy, upstream, 1)
    upstream.reply(ERROR, status)
    upstream.reply(OK)
    assert [proxy.ask("/v1/messages", CLAUDE).status for _ in range(2)] == [status, 200]


def test_another_model_of_a_tired_account_is_served(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    models = [{"name": "up-claude"}, {"name": "up-other"}]
    proxy = make_proxy(claude_api_key=[{"api-key": "k", "base-url": upstream.url, "models": models}])
    upstream.reply(ERROR, 429, {"retry-after": "60"})
    upstream.reply(OK)
    assert proxy.ask("/v1/messages", CLAUDE).status == 429
    assert proxy.ask("/v1/messages", {**CLAUDE, "model": "up-other"}).status == 200


ROUNDS = [  # request-retry, max-retry-interval, retry-after, answers, status, times asked
    pytest.param(0, 30, "0", [429, 200], 429, 1, id="no retries"),
    pytest.param(1, 30, "0", [429, 200], 200, 2, id="one"),
    pytest.param(1, 30, "0", [429, 429, 200], 429, 2, id="one is not two"),
    pytest.param(3, 30, "0", [429, 429, 429, 200], 200, 4, id="three"),
    pytest.param(3, 1, "2", [429, 200], 429, 1, id="longer than it may"),
    pytest.param(3, 30, "0.3", [429, 200], 200, 2, id="waits"),
    pytest.param(3, 30, "", [500, 200], 200, 2, id="a bad moment"),
    pytest.param(3, 30, "", [500, 500, 200], 500, 2, id="nobody knows how long"),
    pytest.param(3, 30, "0", [400, 200], 400, 1, id="no use"),
]


@pytest.mark.parametrize(("retries", "limit", "wait", "statuses", "status", "asked"), ROUNDS)
def test_rounds(  # noqa: PLR0917
    make_proxy: ProxyMaker,
    upstream: Upstream,
    retries: int,
    limit: int,
    wait: str,
    statuses: list[int],
    status: int,
    asked: int,
) -> None:
    proxy = with_keys(make_proxy, upstream, 1, request_retry=retries, max_retry_interval=limit)
    for number in statuses:
        upstream.reply(
            OK if number == 200 else ERROR, number, {"retry-after": wait} if wait and number != 200 else {}
        )
    begun = time.monotonic()
    assert proxy.ask("/v1/messages", CLAUDE).status == status
    assert len(upstream.seen) == asked
    assert time.monotonic() - begun >= (0.3 if wait == "0.3" else 0)


def test_a_client_that_leaves_while_its_retry_is_waited_for(
    make_proxy: ProxyMaker, upstream: Upstream
) -> None:
    proxy = with_keys(make_proxy, upstream, 1, request_retry=1)
    upstream.reply(ERROR, 429, {"retry-after": "2"})
    body = json.dumps(CLAUDE).encode()
    with closing(proxy.connect()) as peer:
        peer.sendall(
            b"POST /v1/messages HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: %d\r\n\r\n%b"
            % (len(body), body)
        )
        assert upstream.asked.wait(DEADLINE)
    end = time.monotonic() + DEADLINE
    while proxy.server.working and time.monotonic() < end:
        threading.Event().wait(0.02)
    assert not proxy.server.working
    assert len(upstream.seen) == 1


@pytest.mark.parametrize(
    ("force", "model", "key"),
    [
        (False, "up-claude", "01"), (False, "team/up-claude", "1"), (True, "up-claude", "0"), (True, "team/up-claude", "1"),
        (False, "other/up-claude", ""),
    ],
)  # fmt: skip
def test_prefixes(make_proxy: ProxyMaker, upstream: Upstream, force: bool, model: str, key: str) -> None:
    keys = [
        {
            "api-key": f"key-{n}",
            "base-url": upstream.url,
            "models": [{"name": "up-claude"}],
            **({"prefix": "team"} if n else {}),
        }
        for n in range(2)
    ]
    proxy = make_proxy(claude_api_key=keys, force_model_prefix=force)
    for _ in range(4):
        upstream.reply(OK)
    statuses = {proxy.ask("/v1/messages", {**CLAUDE, "model": model}).status for _ in range(4)}
    assert statuses == ({200} if key else {404})
    assert {seen.headers["authorization"][-1] for seen in upstream.seen} == set(key)
    assert all(seen.json()["model"] == "up-claude" for seen in upstream.seen)
    listed = {row["id"] for row in proxy.ask("/v1/models").json()["data"]}
    assert {"up-claude", "team/up-claude"} <= listed


# --- counting -------------------------------------------------------------------------------------


def test_a_count_passes_where_the_upstream_counts(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = make_proxy()
    upstream.reply({"input_tokens": 42})
    got = proxy.ask("/v1/messages/count_tokens", CLAUDE)
    assert (got.json(), upstream.seen[0].path) == ({"input_tokens": 42}, "/v1/messages/count_tokens")
    assert "x-cliproxy-estimate" not in got.headers
    upstream.reply({"totalTokens": 7})
    assert proxy.ask("/v1beta/models/up-gemini:countTokens", ASKS["gemini"][2]).json() == {"totalTokens": 7}
    assert upstream.seen[1].path == "/v1beta/models/up-gemini:countTokens"


def test_a_limit_on_counting_is_none_on_talking(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = with_keys(make_proxy, upstream, 2)
    for _ in range(2):
        upstream.reply(ERROR, 429, {"retry-after": "600"})
    upstream.reply(OK)
    assert proxy.ask("/v1/messages/count_tokens", CLAUDE).status == 429
    assert proxy.ask("/v1/messages", CLAUDE).status == 200
    assert [seen.headers["authorization"][-1] for seen in upstream.seen][:2] == ["0", "1"]


COUNTS = [
    pytest.param("/v1/messages/count_tokens", CLAUDE, "input_tokens", id="claude"),
    pytest.param("/v1/responses/input_tokens", ASKS["responses"][2], "input_tokens", id="responses"),
    pytest.param("/v1beta/models/up-chat:countTokens", ASKS["gemini"][2], "totalTokens", id="gemini"),
]


@pytest.mark.parametrize(("path", "body", "key"), COUNTS)
def test_a_count_is_estimated_where_it_does_not(
    make_proxy: ProxyMaker, upstream: Upstream, path: str, body: dict[str, Any], key: str
) -> None:
    got = make_proxy().ask(path, {**body, "model": "up-chat"} if "model" in body else body)
    assert got.status == 200
    assert got.json()[key] > 0
    assert got.headers["x-cliproxy-estimate"]
    assert not upstream.seen


def test_compact_is_the_responses_dialect_s_own(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = make_proxy()
    upstream.reply(OK)
    assert proxy.ask("/v1/responses/compact", {"model": "up-responses", "input": "x"}).json() == OK
    assert upstream.seen[0].path == "/v1/responses/compact"


def test_codex_compacts_without_a_stream(codex: Proxy, upstream: Upstream) -> None:
    whole = b'{"object": "response.compaction","output": [{"type":"compaction","encrypted_content":"x"}]}'
    upstream.routes["/responses/compact"] = make_reply(whole, headers={"content-type": "application/json"})
    body = b'{"model":"gpt-test","input":[],"instructions":"x","tools":[],"parallel_tool_calls":false}'
    headers = {"accept": "application/json"}
    assert codex.ask("/v1/responses/compact", body, headers).body == whole
    assert (upstream.seen[0].body, upstream.seen[0].headers["accept"]) == (body, *headers.values())
    more = {**json.loads(body), "store": False, "stream": False, "user": "me"}
    assert codex.ask("/v1/responses/compact", more).body == whole
    assert upstream.seen[1].json() == json.loads(body)


def test_an_account_that_cannot_compact_is_not_asked(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    key = {"api-key": "k", "base-url": upstream.url, "models": [{"name": "m"}]}
    proxy = make_proxy(claude_api_key=[key], codex_api_key=[key])
    upstream.routes["/responses/compact"] = make_reply(OK)
    for _ in range(2):
        got = proxy.ask("/v1/responses/compact", {"model": "m", "input": "x"})
        assert (got.status, got.json()) == (200, OK)


# --- thinking of another provider, which nothing marks

THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "of-somebody-else"}
SAYS = {"type": "text", "text": "so"}
BARE: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {  # path, body, and the upstream's words
    "claude": (
        "/v1/messages",
        {"max_tokens": 9, "messages": [HELLO, {"role": "assistant", "content": [THOUGHT, SAYS]}, HELLO]},
        {"type": "error", "error": {"type": "invalid_request_error", "message": "messages.1.content.0: Invalid `signature` in `thinking` block"}},
    ),
    "responses": (
        "/v1/responses",
        {"input": [HELLO, {"type": "reasoning", "summary": [], "encrypted_content": "of-somebody-else"}, {"role": "assistant", "content": "so"}, HELLO]},
        {"error": {"message": "The encrypted content could not be verified.", "type": "invalid_request_error", "code": "invalid_encrypted_content"}},
    ),
}  # fmt: skip


@pytest.mark.parametrize("again", [False, True], ids=["then it answers", "refused all the same"])
@pytest.mark.parametrize("dialect", BARE)
def test_thinking_of_another_provider_is_left_out(
    make_proxy: ProxyMaker, upstream: Upstream, dialect: str, again: bool
) -> None:
    """Kimi's thinking comes to Anthropic when the user changes the model halfway: design.md, proofs."""
    path, body, refusal = BARE[dialect]
    upstream.reply(refusal, 400)
    upstream.reply(*([refusal, 400] if again else [ANSWERS[dialect](Said(text="well"))]))
    got = make_proxy().ask(path, {"model": f"up-{dialect}", **body})
    first, second = upstream.seen
    assert b"of-somebody-else" in first.body
    assert b"of-somebody-else" not in second.body
    assert b"so" in second.body
    assert got.status == (400 if again else 200)
    if again:
        assert got.json() == refusal


# --- until something is said ---------------------------------------------------------------------------

TOLD = {"type": "overloaded_error", "message": "busy"}
ENDS: dict[str, bytes] = {  # dialect -> the error that a stream ends with
    "claude": frame({"type": "error", "error": TOLD}, "error"),
    "chat": frame({"error": {"message": "busy", "type": "overloaded_error", "code": 503}}),
    "responses": frame(
        {"type": "response.failed", "response": {**RESPONSE, "status": "failed", "error": {"code": "server_is_overloaded", "message": "busy"}}},
        "response.failed",
    ),
    "gemini": frame({"error": {"code": 503, "status": "UNAVAILABLE", "message": "busy"}}),
}  # fmt: skip
OPENINGS: dict[str, list[bytes]] = {  # dialect -> what says nothing yet
    "claude": [*STREAMS["claude"](Said(text="never"))[:2], frame({"type": "ping"}, "ping")],
    "chat": [STREAMS["chat"](Said())[0], frame({"id": "c1", "choices": [], "usage": {"prompt_tokens": 9}})],
    "responses": [frame({"type": "codex.rate_limits"}), *STREAMS["responses"](Said(text="never"))[:1]],
    "gemini": [frame({"responseId": "r", "usageMetadata": {"promptTokenCount": 9}}), b": comment\n\n"],
}
WHOLE_ERRORS: dict[str, dict[str, Any]] = {
    "claude": {"type": "error", "error": TOLD},
    "chat": {"error": {"message": "busy", "code": 503}},
    "responses": {
        **RESPONSE,
        "status": "failed",
        "error": {"code": "server_is_overloaded", "message": "busy"},
    },
    "gemini": {"error": {"code": 503, "status": "UNAVAILABLE", "message": "busy"}},
}
PAIRS = [pytest.param(c, u, id=f"{c} on {u}") for c in NAMES for u in NAMES]


def two_of_each(make_proxy: ProxyMaker, upstream: Upstream, **settings: Any) -> Proxy:
    """A proxy with two accounts of each dialect."""
    url = upstream.url

    def keys(dialect: str) -> list[dict[str, Any]]:
        models = [{"name": f"up-{dialect}"}]
        return [{"api-key": f"key-{n}", "base-url": url, "models": models} for n in "01"]

    entries = [{"api-key": f"key-{n}"} for n in "01"]
    chat = {"name": "up", "base-url": url, "models": [{"name": "up-chat"}], "api-key-entries": entries}
    return make_proxy(
        claude_api_key=keys("claude"), codex_api_key=keys("responses"), gemini_api_key=keys("gemini"),
        openai_compatibility=[chat], **settings,
    )  # fmt: skip


def ask_as(proxy: Proxy, client: str, model: str, *, stream: bool = True) -> Got:
    path, stream_path, body = ASKS[client]
    path = (stream_path if stream else path).replace("gpt-test", model)
    if client == "gemini":
        return proxy.ask(path, body)
    return proxy.ask(path, {**body, "model": model, "stream": stream})


BEFORE = ["told", "cut", "ended", "reset"]


@pytest.mark.parametrize("piece", [7, 65_536])
@pytest.mark.parametrize("how", BEFORE)
@pytest.mark.parametrize(("client", "dialect"), PAIRS)
def test_who_fails_before_anything_is_said_is_not_heard(
    make_proxy: ProxyMaker, upstream: Upstream, client: str, dialect: str, how: str, piece: int
) -> None:
    proxy = two_of_each(make_proxy, upstream)
    upstream.piece = piece
    lasts: dict[str, list[Any]] = {"told": [ENDS[dialect]], "cut": [CLOSE], "ended": [], "reset": [RESET]}
    upstream.reply([*OPENINGS[dialect], *lasts[how]], headers=SSE)
    upstream.reply(STREAMS[dialect](Said(text="hi there")), headers=SSE)
    got = ask_as(proxy, client, f"up-{dialect}")
    assert got.status == 200
    assert len(upstream.seen) == 2
    assert b"busy" not in got.body
    assert b"never" not in got.body
    assert b"the" in got.body


@pytest.mark.parametrize(("client", "dialect"), PAIRS)
def test_when_all_fail_before_anything_is_said_it_is_an_http_error(
    make_proxy: ProxyMaker, upstream: Upstream, client: str, dialect: str
) -> None:
    proxy = two_of_each(make_proxy, upstream)
    for _ in range(2):
        upstream.reply([*OPENINGS[dialect], ENDS[dialect]], headers=SSE)
    got = ask_as(proxy, client, f"up-{dialect}")
    assert got.status in {503, 529}
    assert got.json()["error"]["message"] == "busy"


EMPTY = {
    "empty": b"",
    "blank": b" \n",
    "object": b"{}",
    "page": b"<html>busy</html>",
    "list": b"[]",
    "cut": b'{"id": "x", ',
}


@pytest.mark.parametrize("body", [pytest.param(body, id=name) for name, body in EMPTY.items()])
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("client", "dialect"), PAIRS)
def test_a_success_that_says_nothing_is_a_failure(
    make_proxy: ProxyMaker, upstream: Upstream, client: str, dialect: str, stream: bool, body: bytes
) -> None:
    proxy = two_of_each(make_proxy, upstream)
    upstream.reply(body, headers={"content-type": "text/html" if b"html" in body else "application/json"})
    upstream.reply(ANSWERS[dialect](Said(text="hi there")))
    got = ask_as(proxy, client, f"up-{dialect}", stream=stream)
    assert (got.status, len(upstream.seen)) == (200, 2)
    assert b"there" in got.body


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("client", "dialect"), PAIRS)
def test_an_error_with_a_status_of_success_is_a_failure(
    make_proxy: ProxyMaker, upstream: Upstream, client: str, dialect: str, stream: bool
) -> None:
    proxy = two_of_each(make_proxy, upstream)
    upstream.reply(WHOLE_ERRORS[dialect])
    upstream.reply(ANSWERS[dialect](Said(text="hi there")))
    got = ask_as(proxy, client, f"up-{dialect}", stream=stream)
    assert (got.status, len(upstream.seen)) == (200, 2)
    upstream.replies = [make_reply(WHOLE_ERRORS[dialect])] * 2
    assert ask_as(two_of_each(make_proxy, upstream), client, f"up-{dialect}").status in {503, 529}


def test_no_choice_is_a_failure(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = two_of_each(make_proxy, upstream)
    upstream.reply({"id": "x", "choices": [], "usage": {"prompt_tokens": 1}})
    upstream.reply(ANSWERS["chat"](Said(text="hi there")))
    assert b"hi there" in ask_as(proxy, "chat", "up-chat", stream=False).body


FLAT = frame(
    {"type": "error", "code": "server_is_overloaded", "message": "busy", "sequence_number": 9}, "error"
)
LATE = [*ENDS.items(), ("responses", FLAT)]


@pytest.mark.parametrize(("dialect", "told"), LATE)
def test_an_error_of_the_upstream_is_followed_by_none_of_ours(
    make_proxy: ProxyMaker, upstream: Upstream, dialect: str, told: bytes
) -> None:
    ends = cp.STREAM_ENDS[dialect]
    begun = [said for said in STREAMS[dialect](Said(text="hi there")) if not any(end in said for end in ends)]
    upstream.reply([*begun, told], headers=SSE)
    got = ask_as(two_of_each(make_proxy, upstream), dialect, f"up-{dialect}")
    assert got.body.count(b"busy") == 1
    assert b"in the middle" not in got.body
    assert len(upstream.seen) == 1


DUE = [*((name, name) for name in NAMES), ("claude", "responses"), ("responses", "claude")]


@pytest.mark.parametrize(("client", "dialect"), DUE)
def test_an_opening_goes_out_when_it_is_due(
    make_proxy: ProxyMaker, upstream: Upstream, client: str, dialect: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What comes later is told in the stream, and nobody else is asked."""
    monkeypatch.setattr(cp, "TICK", 0.05)
    monkeypatch.setattr(cp, "OPENING_TIME", 0.1)
    proxy = two_of_each(make_proxy, upstream)
    go = threading.Event()
    upstream.reply([*OPENINGS[dialect], go, ENDS[dialect]], headers=SSE)
    with closing(proxy.connect()) as peer:
        peer.sendall(request_of(client, f"up-{dialect}"))
        seen = peer.recv(4096)
        go.set()
        while more := peer.recv(4096):
            seen += more
    assert seen.startswith(b"HTTP/1.1 200 OK")
    assert seen.endswith(b"0\r\n\r\n")
    assert b"busy" in seen
    assert len(upstream.seen) == 1


def request_of(client: str, model: str) -> bytes:
    _, path, body = ASKS[client]
    whole = json.dumps(body if client == "gemini" else {**body, "model": model, "stream": True}).encode()
    line = f"POST {path.replace('gpt-test', model)} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n"
    return line.encode() + b"content-length: %d\r\n\r\n%b" % (len(whole), whole)


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("client", NAMES)
def test_a_client_is_kept_patient_before_the_upstream_answers(
    make_proxy: ProxyMaker, upstream: Upstream, client: str, fails: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cp, "TICK", 0.05)
    proxy = two_of_each(make_proxy, upstream, streaming={"keepalive-seconds": 1})
    go = threading.Event()
    head = b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    upstream.reply([go, head], framing="raw")
    if fails:
        upstream.reply({"error": {"message": "busy", "type": "overloaded_error"}}, 503)
    else:
        upstream.reply(STREAMS["claude"](Said(text="hi there")), headers=SSE)
    with closing(proxy.connect()) as peer:
        peer.sendall(request_of(client, "up-claude"))
        seen = b""
        while (
            cp.DIALECTS[client].keepalive.replace(cp.PING, cp.KEEP_ALIVE)
            not in seen.partition(b"\r\n\r\n")[2]
        ):
            seen += peer.recv(4096)
        go.set()
        while more := peer.recv(4096):
            seen += more
    assert seen.endswith(b"0\r\n\r\n")
    assert (b"busy" in seen, b"the" in seen) == (fails, not fails)
    assert len(upstream.seen) == 2


def test_a_mistake_while_one_account_is_asked_is_that_account_s(
    make_proxy: ProxyMaker, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    proxy = with_keys(make_proxy, upstream, 2)
    first = proxy.app.router.candidates("up-claude")[0].account
    first.places = []  # as no account is
    upstream.replies = [make_reply(OK)] * 2
    for _ in range(2):
        assert proxy.ask("/v1/messages", CLAUDE).json() == OK
    assert "Traceback" in caplog.text
    assert len(upstream.seen) == 2


CUTS = {  # what is no end of a stream, though it may look like one
    "claude": [*STREAMS["claude"](Said(text="hi there"))[:-2]],
    "chat": STREAMS["chat"](Said(text="hi there"))[:3],
    "responses": STREAMS["responses"](Said(text="hi there"))[:-1],
    "gemini": STREAMS["gemini"](Said(text="hi there"))[:1],
}
HALVES = {  # half an event that tells the end
    "claude": b'event: message_stop\ndata: {"type":"message_stop"',
    "chat": b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}',
    "responses": b'event: response.completed\ndata: {"type":"response.completed","response":{"id":"r"',
    "gemini": b'data: {"candidates":[{"finishReason":"STOP"',
}


@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("framing", ["chunked", "close"])
@pytest.mark.parametrize(("client", "dialect"), PAIRS)
def test_what_is_cut_off_is_not_told_as_finished(
    make_proxy: ProxyMaker, upstream: Upstream, client: str, dialect: str, framing: str, half: bool
) -> None:
    proxy = two_of_each(make_proxy, upstream)
    steps = [*CUTS[dialect], *([HALVES[dialect]] if half else [])]
    upstream.reply(steps, headers=SSE, framing=framing)
    got = ask_as(proxy, client, f"up-{dialect}")
    assert (got.status, len(upstream.seen)) == (200, 1)
    assert b"error" in got.body
    assert not any(end in got.body for end in cp.STREAM_ENDS[client] if b"failed" not in end)


@pytest.mark.parametrize("client", NAMES)
def test_a_chat_that_is_done_without_a_reason_is_finished(
    proxy: Proxy, upstream: Upstream, client: str
) -> None:
    upstream.reply([*CUTS["chat"], b"data: [DONE]\n\n"], headers=SSE)
    got = ask_as(proxy, client, "up-chat")
    assert b"the" in got.body
    assert b"error" not in got.body.replace(b'"error":null', b"")


def test_a_cut_whole_answer_is_asked_of_the_next(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    """Who gets it whole has nothing of it yet."""
    proxy = with_keys(make_proxy, upstream, 2)
    upstream.reply([b'HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{"content": [', CLOSE], framing="raw")
    upstream.reply(OK)
    assert proxy.ask("/v1/messages", CLAUDE).json() == OK


# --- what is told of usage -----------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("client", "dialect"), PAIRS)
def test_usage_is_known_on_both_lanes(
    proxy: Proxy,
    upstream: Upstream,
    client: str,
    dialect: str,
    stream: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    said = Said(text="hi there")
    if stream:
        upstream.reply(STREAMS[dialect](said), headers=SSE)
    else:
        upstream.reply(ANSWERS[dialect](said))
    assert ask_as(proxy, client, f"up-{dialect}", stream=stream).status == 200
    (row,) = proxy.rows()
    assert (row.model, bool(row.account)) == (f"up-{dialect}", True)
    assert (row.input, row.output) == (9, 5)
    assert " in=9 out=5\n" in proxy.log()


def test_a_failed_request_names_whom_it_asked(
    make_proxy: ProxyMaker, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    proxy = with_keys(make_proxy, upstream, 1)
    upstream.reply(ERROR, 400)
    assert proxy.ask("/v1/messages", CLAUDE).status == 400
    assert "account=claude-api-key[0] status=400" in proxy.log()
    assert [(row.account, row.status) for row in proxy.rows()] == [("claude-api-key[0]", 400)]


# --- a full context ------------------------------------------------------------------------------------

FULL = [  # dialect of the upstream, its status, what it says, and whether it tells both numbers
    pytest.param(("chat", 400, "This model's maximum context length is 8192 tokens. However, your messages resulted in 9000 tokens.", True), id="vLLM"),
    pytest.param(("chat", 400, "the request exceeds the available context size, try increasing it", False), id="llama.cpp"),
    pytest.param(("chat", 413, "Prompt contains 9000 tokens, too large for model with 8192 maximum context length", True), id="Mistral"),
    pytest.param(("responses", 400, "Your input exceeds the context window of this model. Please adjust your input and try again.", False), id="OpenAI"),
    pytest.param(("claude", 400, "prompt is too long: 9000 tokens > 8192 maximum", True), id="Claude"),
    pytest.param(("gemini", 400, "The input token count (9000) exceeds the maximum number of tokens allowed (8192).", True), id="Gemini"),
]  # fmt: skip
SIGNS = {
    "claude": (b"prompt is too long", b"9000 tokens > 8192 maximum"),
    "chat": (b'"context_length_exceeded"', b"9000"),
    "responses": (b'"context_length_exceeded"', b"9000"),
    "gemini": (
        b"exceeds the maximum number of tokens",
        b"(9000) exceeds the maximum number of tokens allowed (8192)",
    ),
}


def refusal_of(dialect: str, message: str) -> dict[str, Any]:
    kinds: dict[str, dict[str, Any]] = {
        "claude": {"type": "invalid_request_error"},
        "gemini": {"code": 400, "status": "INVALID_ARGUMENT"},
    }
    said = {"message": message, **kinds.get(dialect, {"type": "invalid_request_error", "param": None})}
    return {"type": "error", "error": said} if dialect == "claude" else {"error": said}


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("client", NAMES)
@pytest.mark.parametrize("full", FULL)
def test_a_full_context_is_told_in_the_words_that_a_client_acts_upon(
    make_proxy: ProxyMaker, upstream: Upstream, client: str, full: tuple[str, int, str, bool], stream: bool
) -> None:
    dialect, status, message, numbers = full
    proxy = two_of_each(make_proxy, upstream)
    upstream.reply(refusal_of(dialect, message), status)
    got = ask_as(proxy, client, f"up-{dialect}", stream=stream)
    assert (got.status, len(upstream.seen)) == (400, 1)
    sign, counts = SIGNS[client]
    assert sign in got.body
    assert counts in got.body or not numbers


@pytest.mark.parametrize("client", NAMES)
def test_a_context_that_is_full_in_the_middle_of_a_stream(
    make_proxy: ProxyMaker, upstream: Upstream, client: str
) -> None:
    proxy = two_of_each(make_proxy, upstream)
    failed = {"code": "context_length_exceeded", "message": "Your input exceeds the context window."}
    last = frame({"type": "response.failed", "response": {**RESPONSE, "status": "failed", "error": failed}})
    upstream.reply([*CUTS["responses"], last], headers=SSE)
    got = ask_as(proxy, client, "up-responses")
    assert got.status == 200
    assert SIGNS[client][0] in got.body


OTHERS = [
    "messages.0.content.1.image.source.base64: image exceeds 5 MB maximum: 6291456 bytes > 5242880 bytes",
    "max_tokens is too large: 100000. This model supports at most 4096 completion tokens",
    "Rate limit reached for gpt-4 on tokens per min (TPM): Limit 10000, Requested 12000",
]


@pytest.mark.parametrize("message", OTHERS)
def test_other_things_that_are_too_large(proxy: Proxy, upstream: Upstream, message: str) -> None:
    upstream.reply(refusal_of("chat", message), 400)
    assert ask_as(proxy, "claude", "up-chat", stream=False).json()["error"]["message"] == message


# --- limits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("client", ["claude", "chat"])
def test_an_event_without_end_is_a_failure(
    make_proxy: ProxyMaker, upstream: Upstream, client: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cp, "EVENT_LIMIT", 100_000)
    upstream.reply([*CUTS["claude"], *[b"data: " + b"x" * 50_000] * 40], headers=SSE)
    got = ask_as(two_of_each(make_proxy, upstream), client, "up-claude")
    assert (got.status, len(upstream.seen)) == (200, 1)
    assert b"100,000 bytes" in got.body
    assert len(got.body) < 20_000


def test_an_opening_without_end_goes_out(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    pings = [frame({"type": "ping", "x": "y" * 1_000}, "ping")] * 200
    upstream.reply([*pings, ENDS["claude"]], headers=SSE)
    got = ask_as(two_of_each(make_proxy, upstream), "claude", "up-claude")
    assert (got.status, len(upstream.seen)) == (200, 1)
    assert got.body.endswith(ENDS["claude"])
