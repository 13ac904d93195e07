"""What the bodies of errors say: the same in all dialects."""

from __future__ import annotations

import json
from typing import Any

import pytest

import cliproxy as cp

SAID = [
    pytest.param({"error": {"message": "m"}}, "m", id="object"),
    pytest.param([{"error": {"message": "m"}}], "m", id="list"),
    pytest.param({"error": "m"}, "m", id="text"),
    pytest.param({"message": "m"}, "m", id="bare"),
    pytest.param({"detail": "m"}, "m", id="detail"),
    pytest.param(
        {"detail": [{"loc": ["body", "a"], "msg": "m"}, {"msg": "n"}]}, "m; n", id="FastAPI's details"
    ),
    pytest.param({"detail": [{"a": 1}]}, '[{"a":1}]', id="other details"),
    pytest.param({"odd": 1}, '{"odd":1}', id="unknown"),
    pytest.param("m", "m", id="no object"),
    pytest.param({}, "the upstream gave no reason", id="nothing"),
]


@pytest.mark.parametrize(("body", "words"), SAID)
def test_words_of_an_error(body: Any, words: str) -> None:
    assert cp.error_words(cp.error_said(body)) == words


@pytest.mark.parametrize("dialect", cp.DIALECTS)
@pytest.mark.parametrize("body", [b"", b"null", b"{}", b"[]", b"[1]", b"7", b"\xff\xfe", b"[" * 100_000])
def test_bodies_without_an_error(dialect: str, body: bytes) -> None:
    error = cp.DIALECTS[dialect].read_error(502, body)
    assert (error.kind, error.status) == ("upstream_failed", 502)
    assert str(error)


def test_a_page_is_cut_to_its_words() -> None:
    assert cp.error_body(502, b"<html><h1>Bad  gateway</h1>\n<p>now</p></html>") == "Bad gateway now"


WAITS = [
    pytest.param({"resets_in_seconds": 12}, 12, id="seconds"),
    pytest.param({"resets_at": 50, "resets_in_seconds": 12}, 12, id="a moment, but no clock"),
    pytest.param({"details": [{"retryDelay": "34.4s"}]}, 34.4, id="delay"),
    pytest.param({"message": "Please try again in 1m20.5s."}, 80.5, id="OpenAI's words"),
    pytest.param({"message": "Your quota will reset after 1h1s."}, 3601, id="Google's words"),
    pytest.param({"message": "try again in a while, or reset after 1.2.3s"}, None, id="none"),
]


@pytest.mark.parametrize(("error", "seconds"), WAITS)
def test_waits(error: dict[str, Any], seconds: float | None) -> None:
    assert cp.error_wait(json.dumps(error)) == pytest.approx(seconds)


def test_waits_until_a_moment() -> None:
    body = '{"resets_at": "1000050", "resets_in_seconds": 12}'
    assert cp.error_wait(body, lambda moment: float(moment) - 1_000_000) == 50


def test_a_last_event_needs_no_blank_line() -> None:
    assert list(cp.sse_read([b'data: {"n": 1}'])) == [{"n": 1}]
    assert list(cp.sse_read([b'data: {"n": 1}\r'])) == [{"n": 1}]


NO_PAYLOADS = [
    b"data: [DONE]\n\n",
    b"data:\n\n",
    b": ping\n\n",
    b"event: ping\n\n",
    b"data: [1]\n\n",
    b"data: null\n\n",
]


@pytest.mark.parametrize("data", NO_PAYLOADS)
def test_what_is_no_payload_is_skipped(data: bytes) -> None:
    assert list(cp.sse_read([data, b'data: {"n": 1}\n\n'])) == [{"n": 1}]


@pytest.mark.parametrize("data", [b"data: {\n\n", b"data: <html>\n\n", b"data: \xff\xfe{}\n\n"])
def test_what_is_not_json_is_an_error(data: bytes) -> None:
    with pytest.raises(cp.ProxyError, match="the upstream sent") as caught:
        list(cp.sse_read([data]))
    assert caught.value.kind == "upstream_failed"


def test_frames() -> None:
    assert cp.sse_frame({"a": "ü\u2028"}) == b'data: {"a":"\\u00fc\\u2028"}\n\n'
    assert cp.sse_frame({"a": 1}, "delta") == b'event: delta\ndata: {"a":1}\n\n'
    assert list(cp.sse_read([cp.sse_frame({"a": "\r\n\u2028"}, "x")])) == [{"a": "\r\n\u2028"}]
