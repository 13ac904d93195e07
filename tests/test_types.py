"""A value of the wrong type is named, and no request is so odd that it breaks anything."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

import cliproxy as cp
from support.paths import DATA
from support.proxy import Proxy
from support.upstream import Upstream

Json = dict[str, Any]


# --- goldens: every stream of every dialect, to every client, in pieces of any size


PATHS = {
    "claude": "/v1/messages",
    "chat": "/v1/chat/completions",
    "responses": "/v1/responses",
    "gemini": "/v1beta/models/up-{}:streamGenerateContent?alt=sse",
}
QUESTION: dict[str, Json] = {
    "claude": {"max_tokens": 9, "messages": [{"role": "user", "content": "q"}]},
    "chat": {"messages": [{"role": "user", "content": "q"}], "stream_options": {"include_usage": True}},
    "responses": {"input": "q"},
    "gemini": {"contents": [{"parts": [{"text": "q"}]}]},
}


# --- what is of the wrong type

PICTURE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": 5}}
WRONG = [
    pytest.param("claude", "chat", {"max_tokens": "9"}, "max_tokens", id="a number as a text"),
    pytest.param("chat", "claude", {"n": "1"}, "n", id="how many as a text"),
    pytest.param("chat", "claude", {"temperature": "hot"}, "temperature", id="temperature"),
    pytest.param("chat", "gemini", {"stop": [5]}, "stop", id="stop"),
    pytest.param("chat", "claude", {"tools": [{"type": "function", "function": {"name": ["f"]}}]}, "name", id="name"),
    pytest.param("claude", "gemini", {"tools": [{"name": "f", "input_schema": "any"}]}, "schema", id="schema"),
    pytest.param("claude", "chat", {"messages": [{"role": "boss", "content": "q"}]}, "role", id="role"),
    pytest.param("claude", "responses", {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]}, "text", id="text"),
    pytest.param("responses", "claude", {"tool_choice": "always"}, "mode", id="choice"),
    pytest.param("gemini", "claude", {"contents": [{"parts": [{"functionCall": {"name": {}, "args": {}}}]}]}, "name", id="call"),
    pytest.param("claude", "chat", {"messages": [{"role": "user", "content": [PICTURE]}]}, "data", id="media"),
]  # fmt: skip


@pytest.mark.parametrize(("client", "dialect", "wrong", "name"), WRONG)
def test_a_value_of_the_wrong_type_is_named(
    proxy: Proxy, upstream: Upstream, client: str, dialect: str, wrong: Json, name: str
) -> None:
    path = PATHS[client].format(dialect)
    got = proxy.ask(path, {"model": f"up-{dialect}", **QUESTION[client], **wrong})
    assert got.status == 400
    assert got.json()["error"]["message"].startswith(f"{name}: ")
    assert not upstream.seen


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield the path of every value in JSON."""
    pairs = node.items() if isinstance(node, dict) else enumerate(node if isinstance(node, list) else ())
    for key, value in pairs:
        yield (*path, key)
        yield from places(value, (*path, key))


def changed(node: Any, path: tuple[Any, ...], value: Any) -> Any:
    if not path:
        return value
    copy = node.copy()
    copy[path[0]] = changed(node[path[0]], path[1:], value)
    return copy


ODD: list[Any] = [None, "", "x", 0, -1, 1.5, True, [], {}, ["x"], {"x": 1}, [None], [{}], {"type": "text"}]  # fmt: skip
REQUESTS = [
    (path.parent.name, json.loads(path.read_bytes()))
    for path in sorted(DATA.glob("*/*.json"))
    if path.name not in {"everything.json", "answer.response.json", "foreign.json", "turns.json"}
]


@hypothesis.settings(max_examples=400, deadline=None, derandomize=True)
@hypothesis.given(st.data())
def test_no_request_is_too_odd(data: st.DataObject) -> None:
    """Whatever stands in a request, it is refused or can be written for everybody."""
    dialect, body = data.draw(st.sampled_from(REQUESTS))
    path = data.draw(st.sampled_from([place for place in places(body) if place != ("model",)]))
    body = changed(body, path, data.draw(st.sampled_from(ODD)))
    try:
        request = cp.checked(cp.DIALECTS[dialect].read_request({"model": "m", "stream": True, **body}))
    except (KeyError, TypeError, AttributeError, ValueError, IndexError, cp.ProxyError):
        return  # a 400: see Errand.request
    for name, target in cp.DIALECTS.items():
        wanted = cp.Target(name, cp.model_row("m"), frozenset())
        with contextlib.suppress(cp.ProxyError):
            cp.dumps(target.write_request(cp.fit_request(request, wanted, name).request, wanted))
