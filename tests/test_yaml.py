"""YAML: what the plain subset holds is read as pyyaml reads it; edits change what differs, and nothing else."""

from __future__ import annotations

import difflib
import json
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import cliproxy as cp

WHOLE = """\
# the head
port: 8317 # the port
api-keys:
  - a # first
  - "b"

# before routing
routing:
  strategy: round-robin   # rr
  session-affinity: true
claude-api-key:
- api-key: k1  # one
  models:
    - name: m
      alias: n
- api-key: k2
text: |
  hello
    world
folded: >-
  one
  two
flow: [1, 2, {a: b}]
empty:
last: x
"""
DATA: dict[str, Any] = cp.read_yaml(WHOLE)
GONE = object()


def by_pyyaml(text: str) -> Any:
    """Read as CONFIG does where the plain reader gives up: YAML 1.2, keys as texts."""

    class Loader(yaml.SafeLoader):
        yaml_implicit_resolvers: dict[str, Any] = {}  # noqa: RUF012

    for tag, pattern in cp.YAML_KINDS.items():
        Loader.add_implicit_resolver(f"tag:yaml.org,2002:{tag}", pattern, None)
    return json.loads(json.dumps(yaml.load(text, Loader)))


def changed(text: str, wanted: Any, *, plain: bool = True) -> list[str]:
    """Return the lines that an edit takes out and puts in."""
    edited = cp.edit_text(text, wanted, yaml=plain)
    _, _, *lines = difflib.unified_diff(text.splitlines(), edited.splitlines(), n=0, lineterm="")
    return [line for line in lines if line[:2] != "@@"]


def test_everything_plain_is_read() -> None:
    assert by_pyyaml(WHOLE) == DATA
    assert DATA["text"] == "hello\n  world\n"
    assert DATA["folded"] == "one two"


# fmt: off
EDITS = [
    pytest.param({"port": 9}, ["-port: 8317 # the port", "+port: 9 # the port"], id="a number keeps its comment"),
    pytest.param({"api-keys": ["a", "c", "b"]}, ["+  - c"], id="an item in the middle"),
    pytest.param({"api-keys": ["b"]}, ["-  - a # first"], id="an item gone"),
    pytest.param({"api-keys": []}, ["-api-keys:", "-  - a # first", '-  - "b"', "+api-keys: []"], id="no item left"),
    pytest.param({"routing": {"strategy": "ff", "session-affinity": True}},
                 ["-  strategy: round-robin   # rr", "+  strategy: ff   # rr"], id="in a section"),
    pytest.param({"routing": {**DATA["routing"], "x": {"y": [1, {"z": 2}]}}},
                 ["+  x:", "+    y:", "+      - 1", "+      - z: 2"], id="a section in a section"),
    pytest.param({"claude-api-key": [*DATA["claude-api-key"], {"api-key": "k3", "models": []}]},
                 ["+- api-key: k3", "+  models: []"], id="an object behind the others"),
    pytest.param({"claude-api-key": [{"models": DATA["claude-api-key"][0]["models"]}, {"api-key": "k2"}]},
                 ["-- api-key: k1  # one", "-  models:", "+- models:"], id="the key behind a dash gone"),
    pytest.param({"flow": [1, {"a": "c"}]}, ["-flow: [1, 2, {a: b}]", '+flow: [1, {"a": "c"}]'], id="in brackets"),
    pytest.param({"empty": {"a": 1}}, ["+  a: 1"], id="where nothing stood"),
    pytest.param({"text": GONE}, ["-text: |", "-  hello", "-    world"], id="a text gone"),
    pytest.param({"folded": "x: y"}, ["-folded: >-", "-  one", "-  two", '+folded: "x: y"'], id="a text that needs quotes"),
    pytest.param({"new": "true"}, ['+new: "true"'], id="a new key at the end"),
]
# fmt: on


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize(("values", "lines"), EDITS)
def test_an_edit_changes_nothing_else(values: dict[str, Any], lines: list[str], end: str) -> None:
    wanted = {key: value for key, value in {**DATA, **values}.items() if value is not GONE}
    assert changed(WHOLE.replace("\n", end), wanted) == lines
    edited = cp.edit_text(WHOLE.replace("\n", end), wanted, yaml=True)
    assert by_pyyaml(edited) == wanted
    assert edited.count("\n") == edited.count(end)


JSONC = """\
{
  // the head
  "port": 1, /* the port */
  "list": [
    {"a": 1},
    {"b": 2}, // two
  ],
  "o": {"x": [1,2]}
}
"""
# fmt: off
JSON_EDITS = [
    pytest.param({"port": 2}, ['-  "port": 1, /* the port */', '+  "port": 2, /* the port */'], id="a number"),
    pytest.param({"list": [{"b": 2}]}, ['-    {"a": 1},'], id="the first item gone"),
    pytest.param({"list": [{"a": 1}]}, ['-    {"b": 2}, // two', "+    {\"a\": 1}, // two", '-    {"a": 1},'], id="the last item gone"),
    pytest.param({"o": {"x": [1, 2], "y": 3}}, ['-  "o": {"x": [1,2]}', '+  "o": {"x": [1,2], "y": 3}'], id="in one line"),
    pytest.param({"new": {"a": 1}}, ['-  "o": {"x": [1,2]}', '+  "o": {"x": [1,2]},', '+  "new": {', '+    "a": 1', "+  }"], id="on lines"),
]
# fmt: on


@pytest.mark.parametrize(("values", "lines"), JSON_EDITS)
def test_json_with_comments_is_edited_alike(values: dict[str, Any], lines: list[str]) -> None:
    wanted = {**cp.read_places(JSONC, yaml=False).value, **values}
    assert sorted(changed(JSONC, wanted, plain=False)) == sorted(lines)


# fmt: off
REFUSED = [
    ("a: &x 1", 1), ("a: *x", 1), ("a: !t 1", 1), ("a: 1\na: 2", 1), ("a: 1\n\tb: 2", 2), ("a: b\n  c", 2), ("a:\n  b: 1\n c: 2", 3), ("- 1\nb: 2", 2),
    ("? a", 1), ("a: 1\n---\nb: 1", 2), ("a: 'x\n  y'", 1), ("a: [1", 1), ("a: {b: 1", 1), ("a: b: c", 1), ("a: |2\n  x", 1), ("<<: {a: 1}", 1),
    ("a: >\n  x\n    y", 1), ("a: \u2028", 1), ("a: [1] x", 1), ("%YAML 1.2", 1),
]
# fmt: on


@pytest.mark.parametrize(("text", "line"), REFUSED)
def test_more_than_plain_names_its_line(text: str, line: int) -> None:
    with pytest.raises(ValueError, match=rf"line {line}|twice"):
        cp.read_yaml(text)


TOKENS = (
    "a|b:|key: |- |-|  |    |\n|\n|\n  |\n- |\"q\"|'s'|# c|#| |1|1.5|true|~|null|[|]|{|}|,|, |:|!\n|>\n|!-\n|>+\n|x y|\\n|é|=|-1|..|0x1|yes|"
    '1e3|.5|?|&a|*a|!t|%|@|`|\t|\r\n|---\n|...|<<|//c|ab#c|a:b|"a":1|k: v\n|  k2: v2\n|- i\n|  - j\n'
).split("|")


@settings(max_examples=1_500, deadline=None)
@given(st.lists(st.sampled_from([token.replace("!", "|") for token in TOKENS]), max_size=14).map("".join))
def test_what_is_read_is_what_pyyaml_reads(text: str) -> None:
    try:
        found = cp.read_yaml(text)
    except ValueError:
        return
    assert json.dumps(found) == json.dumps(by_pyyaml(text))


NAMES = st.text("abcxyz-", min_size=1, max_size=6).filter(lambda name: name[0] != "-")
TEXTS = st.sampled_from(
    'a|b c|true|1||x: y|# no|é|- z|k#|null|"q"|it\'s|http://h:1/x|a\nb|*|1.0| lead|trail |[x]|{|@a|%|='.split(
        "|"
    )
)
SCALARS = st.one_of(TEXTS, st.integers(-9, 99), st.booleans(), st.none(), st.just(1.5))
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(NAMES, inner, max_size=3)),
    max_leaves=8,
)
FILES = st.dictionaries(NAMES, VALUES, min_size=1, max_size=5)


@settings(max_examples=400, deadline=None)
@given(FILES, FILES, st.sampled_from([False, None]), st.sampled_from(["\n", "\r\n"]), st.data())
def test_any_edit_says_what_is_wanted(
    before: Any, other: Any, style: bool | None, end: str, data: Any
) -> None:
    """And what was not to change stands as it stood, with the comment behind it."""
    text = yaml.safe_dump(before, sort_keys=False, allow_unicode=True, default_flow_style=style, width=10**6)
    try:
        cp.read_yaml(text)
    except ValueError:
        return  # a text over several lines
    if text.startswith("{"):
        return  # all of it is in brackets: nothing can stand in front
    key = data.draw(st.sampled_from([*before]))
    value = other[next(iter(other))]
    kept = "# a comment\nkept: [1, 2] # behind it\n"
    edited = cp.edit_text(
        f"{kept}{text}".replace("\n", end), {"kept": [1, 2], **before, key: value}, yaml=True
    )
    assert by_pyyaml(edited) == {"kept": [1, 2], **before, key: value}
    assert edited.startswith(kept.replace("\n", end))


@settings(max_examples=300, deadline=None)
@given(FILES, FILES, st.sampled_from([None, 2, 4]))
def test_any_edit_of_json_says_what_is_wanted(before: Any, wanted: Any, indent: int | None) -> None:
    edited = cp.edit_text(json.dumps(before, indent=indent, ensure_ascii=False), wanted, yaml=False)
    assert json.loads(edited) == wanted


@pytest.mark.parametrize("text", [
    '{"a": 1 // one, {\n}', '{"a":true/* } */}', '{"a": 1e5, // big\n "b": -0.50}', '{"a": null // no\n, "b": [1 // c\n]}',
])  # fmt: skip
def test_a_word_of_json_ends_where_a_comment_begins(text: str) -> None:
    value = cp.read_places(text, yaml=False).value
    edited = cp.edit_text(text, {**value, "z": 2}, yaml=False)
    assert cp.read_places(edited, yaml=False).value == {**value, "z": 2}
    assert all(isinstance(found, (int, float, type(None), list)) for found in value.values())


def test_a_comment_stays_in_the_line_of_its_entry() -> None:
    text = '{\n\t"a": 1, // of a\n}\n'
    assert cp.edit_text(text, {"a": 1, "b": {"c": 2}}, yaml=False) == (
        '{\n\t"a": 1, // of a\n\t"b": {\n\t  "c": 2\n\t},\n}\n'
    )
