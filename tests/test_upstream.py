"""Asking providers: the ChatGPT backend, failing over, keep-alives, counts, old completions."""

from __future__ import annotations

import json
import threading
import time
from contextlib import closing
from typing import Any

import pytest

import cliproxy as cp
from support.codex import ASKS, HELLO, ITEM, PAYLOADS, RESPONSE, STREAM, USAGE, add_codex, ask, sse
from support.dialogue import ANSWERS, Said
from support.proxy import Proxy, ProxyMaker
from support.upstream import CLOSE, DEADLINE, Upstream, make_reply

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
    pytest.param({"input": [{"type": "item_reference", "id": "m"}]}, {**FORCED, "input": [{"type": "item_reference", "id": "m"}]}, id="a reference"),
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
    upstream.reply([*sse({"type": "message_start", "message": {}}), CLOSE], headers=SSE)
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
    assert proxy.ask("/v1/responses/compact", {"model": "up-claude", "input": "x"}).status == 501


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
