from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import cliproxy as cp
from support.cost import cpu

# --- server-sent events ---------------------------------------------------------------------

STREAM = 'event: one\ndata: {"n": 1}\n\n: a comment\n\ndata: {"text": "a\u2028b\u2029\x85"}\n\n'
EVENTS = [b'event: one\ndata: {"n": 1}', b": a comment", 'data: {"text": "a\u2028b\u2029\x85"}'.encode()]
PAYLOADS = [{"n": 1}, {"text": "a\u2028b\u2029\x85"}]
LINE_ENDS = [pytest.param("\n", id="lf"), pytest.param("\r\n", id="crlf"), pytest.param("\r", id="cr")]


def pieces(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


@pytest.mark.parametrize("end", LINE_ENDS)
@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"], ids=["plain", "marked"])
def test_split_anywhere(end: str, mark: bytes) -> None:
    data = mark + STREAM.replace("\n", end).encode()
    for at in range(len(data) + 1):
        assert list(cp.sse_split([data[:at], data[at:]])) == EVENTS
        assert list(cp.sse_read([data[:at], b"", data[at:]])) == PAYLOADS
    for size in range(1, 8):
        assert list(cp.sse_split(pieces(data, size))) == EVENTS
        assert list(cp.sse_read(pieces(data, size))) == PAYLOADS


WORDS = st.lists(st.sampled_from(["data: x", "\n", "\r\n", "\r", ": c", "event: é"]), max_size=12)


@given(WORDS, st.integers(1, 5))
@settings(max_examples=100)
def test_payloads_do_not_depend_on_the_pieces(words: list[str], size: int) -> None:
    data = "".join(words).encode()
    whole = [cp.sse_data(event) for event in cp.sse_split([data])]
    assert [cp.sse_data(event) for event in cp.sse_split(pieces(data, size))] == whole


def test_mixed_line_ends() -> None:
    data = b'data: {"a": 1}\r\n\ndata: {"b": 2}\n\r\ndata: {"c": 3}\r\r\ndata: {"d": 4}\r\n\r\n'
    for size in range(1, len(data) + 1):
        assert list(cp.sse_read(pieces(data, size))) == [{"a": 1}, {"b": 2}, {"c": 3}, {"d": 4}]


def test_blank_lines_make_no_events() -> None:
    for size in range(1, 9):
        (event,) = cp.sse_split(pieces(b"\n\n\n\ndata: a\n\n\n\n\n\r\n\n", size))
        assert event.strip(b"\n") == b"data: a"
    assert list(cp.sse_split([])) == list(cp.sse_split([b""])) == list(cp.sse_split([b"\n"])) == []


def test_mark_alone_or_cut() -> None:
    assert list(cp.sse_split([b"\xef", b"\xbb", b"\xbf"])) == []
    assert list(cp.sse_split([b"\xef\xbb"])) == [b"\xef\xbb"]
    assert list(cp.sse_split([b"\xef\xbb\xbf\xef\xbb\xbfdata: a"])) == [b"\xef\xbb\xbfdata: a"]


@pytest.mark.parametrize("end", LINE_ENDS)
def test_an_event_is_out_before_the_next_chunk_is_asked_for(end: str) -> None:
    asked = []

    def chunks() -> Iterator[bytes]:
        for number in range(3):
            asked.append(number)
            yield f"data: {number}\n\n".replace("\n", end).encode()

    events = cp.sse_split(chunks())
    for number in range(3):
        assert next(events) == b"data: %d" % number
        assert asked[-1] == number


@pytest.mark.parametrize("end", [b"", b"\r"], ids=["text", "cr"])
def test_a_huge_event_costs_no_more_a_byte_than_a_small_one(end: bytes) -> None:
    def split(count: int) -> None:
        chunks = [b"data: ", *[b"x" * 1_000 + end] * count, b"\n\n"]
        assert sum(map(len, cp.sse_split(chunks))) >= count * 1_000

    small = min(cpu(lambda: split(1_000)) for _ in range(5))
    assert min(cpu(lambda: split(10_000)) for _ in range(5)) < 60 * small  # 10 if linear, 100 if quadratic


def test_fields() -> None:
    assert cp.sse_data(b"data: a") == cp.sse_data(b"data:a") == b"a"
    assert cp.sse_data(b"event: e\ndata: a\nid: 1\ndata: b") == b"a\nb"
    assert cp.sse_data(b": ping") == cp.sse_data(b"event: e") == b""


# --- words ----------------------------------------------------------------------------------


def test_json() -> None:
    assert cp.dumps({"a": ["ü", 1.5, None]}) == '{"a":["\\u00fc",1.5,null]}'
    assert cp.dumps_text({"a": "ü"}) == '{"a":"ü"}'
    assert json.loads(cp.quote('"\\\n\u2028\U0001f600')) == '"\\\n\u2028\U0001f600'


def test_without() -> None:
    assert cp.without({"a": 1, "b": 2}, frozenset("a")) == {"b": 2}
    assert cp.without({"a": 1}, frozenset("ab")) == {}


def test_digest() -> None:
    assert cp.digest("a", 1) == cp.digest("a", "1") != cp.digest("a1")
    assert len(cp.digest("\ud800")) == 24


WILDCARDS = [
    ("gpt-5", "gpt-5", True),
    ("gpt-5", "gpt-5.1", False),
    ("gpt-*", "gpt-5", True),
    ("*-mini", "gpt-5-mini", True),
    ("*-mini", "gpt-5-minimal", False),
    ("*codex*", "gpt-5-codex-mini", True),
    ("gpt-*-codex*", "gpt-5.1-codex-max", True),
    ("*", "", True),
    ("", "", True),
    ("", "a", False),
    ("a.c", "abc", False),
    ("[a]", "a", False),
    ("a?c", "abc", False),
    ("A*", "abc", False),
    ("a*c", "a\nc", True),
    ("**", "ab", True),
]


@pytest.mark.parametrize(("pattern", "name", "fits"), WILDCARDS)
def test_wildcard(pattern: str, name: str, fits: bool) -> None:
    assert cp.wildcard(pattern, name) is fits


SECRETS = [
    ("sk-ant-1234567890", "sk-a...7890"),
    ("123456789", "1234...6789"),
    ("12345678", "12...78"),
    ("12345", "12...45"),
    ("1234", "1...4"),
    ("123", "1...3"),
    ("12", "..."),
    ("", "..."),
]


@pytest.mark.parametrize(("secret", "shown"), SECRETS)
def test_mask(secret: str, shown: str) -> None:
    assert cp.masked(secret) == shown


# --- paths ----------------------------------------------------------------------------------

BODY: dict[str, Any] = {
    "model": "m",
    "a": {"b": [{"c": 1}, {"c": 2, "d": None}]},
    "k.v": {"x*y": 1, "u@w": 2},
    "1": {"2": "two"},
    "": {"e": 5},
    "tools": [{"name": "x", "strict": True, "on": 1}, {"name": "y.z"}, {"name": "xx", "strict": False}],
}
GETS = [
    ("model", "m"),
    ("a.b.0.c", 1),
    ("a.b.1.d", None),
    ("a.b.2", "missing"),
    ("a.b.-1", "missing"),
    ("a.x.y", "missing"),
    ("model.x", "missing"),
    ("model.0", "missing"),
    ("a.b.c", "missing"),
    (r"k\.v.x\*y", 1),
    ("k.v", "missing"),
    (r"k\.v.u\@w", 2),
    ("1.2", "two"),
    (":1.:2", "two"),
    ("a.b.:0", "missing"),
    (".e", 5),
    ("tools.#.name", ["x", "y.z", "xx"]),
    ("tools.#.strict", [True, False]),
    ("tools.#(name==x).strict", True),
    ('tools.#(name=="x").on', 1),
    ('tools.#(name=="y.z").name', "y.z"),
    ('tools.#(name=="y.z").strict', "missing"),
    ('tools.#(name=="nobody")', "missing"),
    ("tools.#(strict==true).name", "x"),
    ("tools.#(on=1).name", "x"),
    ("tools.#(on==1.0).name", "x"),
    ("tools.#(on==true).name", "missing"),
    ("tools.#(strict).name", "x"),
    ("tools.#(strict)#.name", ["x", "xx"]),
    ('tools.#(name%"x*")#.name', ["x", "xx"]),
    ('tools.#(name!%"x*")#.name', ["y.z"]),
    ('tools.#(name!="x")#.name', ["y.z", "xx"]),
    ("tools.1|name", "y.z"),
    ("m*l", "m"),
    ("mod?l", "m"),
    ("mod?", "missing"),
    ("model.#", []),
    ("tools.#(", "missing"),
    ("model\\", "missing"),
]


@pytest.mark.parametrize(("path", "value"), GETS)
def test_path_get(path: str, value: Any) -> None:
    assert cp.path_get(BODY, path, "missing") == value
    assert cp.path_exists(BODY, path) is (value not in ("missing", []))


def test_path_test_of_the_element_itself() -> None:
    assert cp.path_get({"a": ["x", "y"]}, 'a.#(=="y")') == "y"
    assert cp.path_get({"a": ["x", "y", 1]}, 'a.#(%"*")#') == ["x", "y"]


SETS = [  # Source: spec/config.md 7
    ({}, "a.b.c", 1, {"a": {"b": {"c": 1}}}),
    ({"a": {"x": 0}}, "a.b", 1, {"a": {"x": 0, "b": 1}}),
    ({"a": [{"b": 0}]}, "a.0.b", 1, {"a": [{"b": 1}]}),
    ({}, "a.0.b", 1, {"a": [{"b": 1}]}),
    ({}, "a.2", 1, {"a": [None, None, 1]}),
    ({"a": [0]}, "a.3", 1, {"a": [0, None, None, 1]}),
    ({"a": [0]}, "a.-1", 1, {"a": [0, 1]}),
    ({}, "a.-1", 1, {"a": [1]}),
    ({}, "a.-1.b", 1, {"a": [{"b": 1}]}),
    ({}, r"a\.b", 1, {"a.b": 1}),
    ({}, r"a\*b.c\?", 1, {"a*b": {"c?": 1}}),
    ({}, "a.:1", 2, {"a": {"1": 2}}),
    ({"a": {}}, "a.1", 2, {"a": {"1": 2}}),
    ({"a": [0]}, "a.:0", 2, {"a": [0]}),
    ({}, ".a", 1, {"": {"a": 1}}),
    ({"a": "text"}, "a.b", 1, {"a": {"b": 1}}),
    ({"a": "text"}, "a.1", 1, {"a": [None, 1]}),
    ({"a": None}, "a.b", 1, {"a": {"b": 1}}),
    ({"a": [0]}, "a.b", 1, {"a": [0]}),
    ({"a": [[0]]}, "a.0.b.c", 1, {"a": [[0]]}),
    ({}, "a", None, {"a": None}),
    ({"a": 1}, "", 2, {"a": 1}),
    ({"t": [{"s": 1}, {}, {"s": 2}]}, "t.#.s", 0, {"t": [{"s": 0}, {}, {"s": 0}]}),
    ({"t": [{"s": 1}, {"s": 1}]}, "t.#(s==1).s", 0, {"t": [{"s": 0}, {"s": 1}]}),
    ({"t": [{"s": 1}, {"s": 1}]}, "t.#(s==1)#.s", 0, {"t": [{"s": 0}, {"s": 0}]}),
    ({"t": [{}]}, "t.#.s", 0, {"t": [{}]}),
    ({}, "t.#.s", 0, {}),
    ({"abc": 1}, "a*", 2, {"abc": 2}),
    ({}, "a*", 2, {}),
    ({}, "a@b", 2, {}),
    ({"a@b": 1}, "a@b", 2, {"a@b": 2}),
    ({"a": {"1": 5}}, "a|1", 2, {"a": {"1": 2}}),
    ({}, "a|b", 2, {}),
]


@pytest.mark.parametrize(("data", "path", "value", "wanted"), SETS)
def test_path_set(data: Any, path: str, value: Any, wanted: Any) -> None:
    before = copy.deepcopy(data)
    got = cp.path_set(data, path, value)
    assert cp.dumps(got) == cp.dumps(wanted)
    assert data == before
    assert (got is data) is (data == wanted)


DELETES = [
    ({"a": {"b": 1, "c": 2}}, "a.b", {"a": {"c": 2}}),
    ({"a": [1, 2, 3]}, "a.1", {"a": [1, 3]}),
    ({"a": [1, 2, 3]}, "a.-1", {"a": [1, 2]}),
    ({"a": [{"b": 1}]}, "a.-1.b", {"a": [{}]}),
    ({"a": [{"b": 1}]}, "a.0.b", {"a": [{}]}),
    ({"a": []}, "a.-1", {"a": []}),
    ({"a": [1]}, "a.1", {"a": [1]}),
    ({"a": [1]}, "a.b", {"a": [1]}),
    ({"a": [1]}, "a.:0", {"a": [1]}),
    ({"a": 1}, "a.b", {"a": 1}),
    ({"a": 1}, "b.c", {"a": 1}),
    ({"a.b": 1, "a": {"b": 1}}, r"a\.b", {"a": {"b": 1}}),
    ({"a": {"1": 2}}, "a.:1", {"a": {}}),
    ({"a": {"1": 2}}, "a.1", {"a": {}}),
    ({"a": [{"b": 1}]}, "a.#.b", {"a": [{"b": 1}]}),
    ({"abc": 1}, "a*", {"abc": 1}),
    ({"a": 1}, "", {"a": 1}),
]


@pytest.mark.parametrize(("data", "path", "wanted"), DELETES)
def test_path_delete(data: Any, path: str, wanted: Any) -> None:
    before = copy.deepcopy(data)
    got = cp.path_delete(data, path)
    assert got == wanted
    assert data == before
    assert (got is data) is (data == wanted)


SAME = [("model", "m"), ("a.b.0.c", 1), ("a.b.0", {"c": 1}), ("tools.#(on==1).strict", True)]


@pytest.mark.parametrize(("path", "value"), SAME)
def test_setting_what_is_there_changes_nothing(path: str, value: Any) -> None:
    assert cp.path_set(BODY, path, value) is BODY


def test_one_is_not_true() -> None:
    assert cp.path_set({"a": 1}, "a", True)["a"] is True
    assert cp.path_set({"a": {"b": 1}}, "a", {"b": True})["a"]["b"] is True


def test_what_does_not_lead_to_the_path_is_shared() -> None:
    got = cp.path_set(BODY, "a.b.0.c", 9)
    assert got["tools"] is BODY["tools"]
    assert got["a"]["b"][1] is BODY["a"]["b"][1]


NAMES = st.sampled_from(["a", "b", "1"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 3) | st.text("ab.#*1", max_size=2),
    lambda kids: st.lists(kids, max_size=3) | st.dictionaries(NAMES, kids, max_size=3),
    max_leaves=8,
)
PATHS = st.text('ab.:1-#*?|@()\\"=%!', max_size=12).filter(lambda path: "1" * 5 not in path)


@given(st.dictionaries(NAMES, JSON), PATHS, JSON)
@settings(max_examples=100)
def test_no_path_breaks_anything(data: Any, path: str, value: Any) -> None:
    before = copy.deepcopy(data)
    cp.path_get(data, path)
    cp.path_set(data, path, value)
    cp.path_delete(data, path)
    assert data == before


@given(st.lists(st.sampled_from(["a", "b", ":1", "c", "0", "1"]), min_size=1, max_size=4), JSON)
@settings(max_examples=100)
def test_what_is_set_is_there(keys: list[str], value: Any) -> None:
    path = ".".join(keys)
    data = cp.path_set({}, path, value)
    assert cp.same_json(cp.path_get(data, path, "missing"), value)
    assert not cp.path_exists(cp.path_delete(data, path), path)


SAMES = [
    (1, 1.0, True),
    (1, True, False),
    ("1", 1, False),
    ([1], [1], True),
    ({"a": 1}, {"a": True}, False),
    (None, False, False),
]


@pytest.mark.parametrize(("one", "other", "same"), SAMES)
def test_same_json(one: Any, other: Any, same: bool) -> None:
    assert cp.same_json(one, other) is same


NO_NUMBERS = [
    pytest.param(float("nan"), None, id="nan"),
    pytest.param([float("inf")], [1.7976931348623157e308], id="list"),
    pytest.param({"a": {"b": (float("-inf"), 1.5, "x", 7, True)}}, {"a": {"b": [-1.7976931348623157e308, 1.5, "x", 7, True]}}, id="deep"),
]  # fmt: skip


@pytest.mark.parametrize(("data", "right"), NO_NUMBERS)
def test_numbers_that_json_has_no_word_for(data: Any, right: Any) -> None:
    assert json.loads(cp.dumps(data)) == json.loads(cp.dumps_text(data)) == right
