"""JSON Schema in the keywords of each service."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

import cliproxy as cp
from cliproxy import Format, Model, Target, Tool
from support.fitting import GEMINI_3, ask, fit, up

GEMINI_25_PRO = Model("gemini-2.5-pro", output=65_536, budget=(128, 32_768), can_stop=False)


# --- schemas

CASE_15 = {
    "type": "object",
    "$schema": "..",
    "properties": {
        "const": {"const": 3},
        "default": {"type": ["string", "null"]},
        "n": {"$ref": "#/$defs/N"},
        "e": {"enum": [1, 2], "type": "integer"},
    },
    "required": ["const", "zz"],
    "additionalProperties": False,
    "$defs": {"N": {"type": "object", "properties": {"n": {"$ref": "#/$defs/N"}}}},
}


def test_schema_of_case_15() -> None:
    cleaned = cp.openapi_schema(CASE_15)
    assert cleaned == {
        "type": "OBJECT",
        "properties": {
            "const": {"type": "INTEGER", "description": "(one of: [3])"},
            "default": {"type": "STRING", "nullable": True},
            "n": {"type": "OBJECT", "properties": {"n": {"type": "OBJECT", "description": "N"}}},
            "e": {"type": "INTEGER", "description": "(one of: [1,2])"},
        },
        "required": ["const"],
    }


ANY = {"type": "STRING", "description": "any JSON value"}
CLEANED = [  # the schema of a property, and what becomes of it
    pytest.param({"$ref": "#/$defs/a~1b%20c", "description": "mine"}, {"type": "INTEGER", "description": "mine"}, id="ref"),
    pytest.param({"$ref": "#/$defs/gone"}, {"type": "OBJECT", "description": "gone"}, id="unresolvable"),
    pytest.param({"$ref": "http://x/y"}, {"type": "OBJECT", "description": "y"}, id="remote"),
    pytest.param({"type": "string", "x-a": 1, "readOnly": True, "examples": []}, {"type": "STRING"}, id="dropped"),
    pytest.param({"type": "string", "not": {"enum": ["a"]}},
                 {"type": "STRING", "description": '(not: {"type":"STRING","enum":["a"]})'}, id="noted") ,
    pytest.param({"const": "a"}, {"type": "STRING", "enum": ["a"]}, id="const"),
    pytest.param({"enum": ["a", None]}, {"type": "STRING", "nullable": True, "enum": ["a"]}, id="null entry"),
    pytest.param({"enum": ["a", 1]}, {"type": "STRING", "enum": ["a", "1"]}, id="mixed"),
    pytest.param({"enum": [True]}, {"type": "BOOLEAN", "description": "(one of: [true])"}, id="boolean"),
    pytest.param({"enum": [1, 2.5]}, {"type": "NUMBER", "description": "(one of: [1,2.5])"}, id="numbers"),
    pytest.param({"enum": [], "type": "string"}, {"type": "STRING"}, id="empty enum"),
    pytest.param({"enum": [None]}, {**ANY, "nullable": True}, id="only null"),
    pytest.param({"type": ["string", "integer"]}, {"anyOf": [{"type": "STRING"}, {"type": "INTEGER"}]}, id="types"),
    pytest.param({"type": "null"}, {"type": "STRING", "nullable": True}, id="null"),
    pytest.param({"type": ["null"]}, {"type": "STRING", "nullable": True}, id="list of null"),
    pytest.param(True, ANY, id="true"),
    pytest.param({}, ANY, id="any"),
    pytest.param({"description": "d"}, {"type": "STRING", "description": "d"}, id="described"),
    pytest.param({"allOf": [{"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]},
                            {"properties": {"b": {"type": "number"}}, "required": ["b"]}]},
                 {"type": "OBJECT", "properties": {"a": {"type": "STRING"}, "b": {"type": "NUMBER"}},
                  "required": ["a", "b"]}, id="allOf"),
    pytest.param({"oneOf": [{"type": "string"}, {"type": "integer"}]},
                 {"anyOf": [{"type": "STRING"}, {"type": "INTEGER"}]}, id="oneOf"),
    pytest.param({"anyOf": [{"type": "string"}, {"type": "null"}], "description": "d"},
                 {"type": "STRING", "description": "d", "nullable": True}, id="optional"),
    pytest.param({"anyOf": [{"type": "null"}]}, {"type": "STRING", "nullable": True}, id="nothing but null"),
    pytest.param({"type": "string", "minLength": 1, "anyOf": [{"format": "enum"}, {"enum": ["b"]}]},
                 {"anyOf": [{"type": "STRING", "format": "enum"}, {"type": "STRING", "enum": ["b"]}]}, id="siblings"),
    pytest.param({"properties": {"a": {}, "b": {}}, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]},
                 {"type": "OBJECT", "properties": {"a": ANY, "b": ANY}}, id="one of them required"),
    pytest.param({"type": "object", "anyOf": [{"anyOf": [{}, {}]}]},
                 {"anyOf": [{"type": "OBJECT"}, {"type": "OBJECT"}]}, id="alternatives in the only one"),
    pytest.param({"type": "string", "anyOf": [{"anyOf": [{"format": "enum"}, {"pattern": "x"}]}, {"enum": ["b"]}]},
                 {"anyOf": [{"anyOf": [{"type": "STRING", "format": "enum"}, {"type": "STRING", "pattern": "x"}]},
                            {"type": "STRING", "enum": ["b"]}]}, id="alternatives in one of them"),
    pytest.param({"type": "integer", "exclusiveMinimum": 0, "exclusiveMaximum": 9},
                 {"type": "INTEGER", "minimum": 1, "maximum": 8}, id="exclusive"),
    pytest.param({"type": "number", "exclusiveMinimum": 0},
                 {"type": "NUMBER", "description": "(exclusiveMinimum: 0)"}, id="exclusive number"),
    pytest.param({"type": "integer", "multipleOf": 2}, {"type": "INTEGER", "description": "(multipleOf: 2)"}, id="multiple"),
    pytest.param({"type": "array"}, {"type": "ARRAY", "items": ANY}, id="no items"),
    pytest.param({"type": "array", "items": True}, {"type": "ARRAY", "items": ANY}, id="any items"),
    pytest.param({"items": [{"type": "string"}, {"type": "integer"}]},
                 {"type": "ARRAY", "items": {"anyOf": [{"type": "STRING"}, {"type": "INTEGER"}]}}, id="tuple"),
    pytest.param({"prefixItems": [{"type": "string"}], "type": "array"},
                 {"type": "ARRAY", "items": {"type": "STRING"}}, id="prefix items"),
    pytest.param({"type": "object"}, {"type": "OBJECT"}, id="free object"),
    pytest.param({"type": "object", "properties": {}, "required": []}, {"type": "OBJECT"}, id="empty object"),
    pytest.param({"properties": {"a": False, "b": True}, "required": ["a"]},
                 {"type": "OBJECT", "properties": {"b": ANY}}, id="boolean schemas"),
    pytest.param({"type": "string", "format": "uri"}, {"type": "STRING", "description": '(format: "uri")'}, id="format"),
    pytest.param({"type": "string", "format": "date-time"}, {"type": "STRING", "format": "date-time"}, id="date"),
    pytest.param({"properties": {"$ref": {"type": "string"}, "title": {"type": "string"}}},
                 {"type": "OBJECT", "properties": {"$ref": {"type": "STRING"}, "title": {"type": "STRING"}}}, id="names"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "cleaned"), CLEANED)
def test_cleaned_schemas(schema: Any, cleaned: Any) -> None:
    root = {"type": "object", "properties": {"p": schema}, "$defs": {"a/b c": {"type": "integer"}}}
    before = json.dumps(root)
    assert cp.openapi_schema(root)["properties"]["p"] == cleaned
    assert json.dumps(root) == before  # the client's own schema is left alone


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.sampled_from(["a", "#/$defs/A", "b"]))
KEYWORDS = st.sampled_from(["$ref", "const", "default", "title", "format", "type", "properties", "a"])


def schemas(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    many = st.lists(inner, max_size=2)
    return st.fixed_dictionaries({}, optional={
        "type": st.sampled_from(["object", "string", "array", "null", "integer", ["string", "null"], ["array", "object"]]),
        "properties": st.dictionaries(KEYWORDS, inner, max_size=3), "required": st.one_of(st.booleans(), st.lists(KEYWORDS, max_size=3)),
        "anyOf": many, "oneOf": many, "allOf": many, "items": st.one_of(inner, many), "prefixItems": many,
        "$ref": st.sampled_from(["#", "#/$defs/A", "#/$defs/B", "#/properties/a", "#/nowhere"]),
        "const": SCALARS, "enum": st.lists(SCALARS, max_size=3), "not": st.just({}), "additionalProperties": st.booleans(),
        "format": st.sampled_from(["uri", "int32"]), "minItems": st.integers(0, 3), "pattern": st.just("x"),
        "$defs": st.fixed_dictionaries({"A": inner, "B": inner}), "exclusiveMinimum": st.integers(), "x-y": SCALARS,
    })  # fmt: skip


SCHEMAS = schemas(st.recursive(st.one_of(st.booleans(), st.just({})), schemas, max_leaves=4))


def check_subset(node: Any) -> None:
    assert set(node) <= cp.OPENAPI_KEYWORDS
    assert ("type" in node) != ("anyOf" in node)
    assert node.get("type", "OBJECT") in {"OBJECT", "STRING", "ARRAY", "INTEGER", "NUMBER", "BOOLEAN"}
    assert all(isinstance(value, str) for value in node.get("enum", ()))
    assert set(node.get("required", ())) <= set(node.get("properties", ()))
    assert node.get("type") != "ARRAY" or "items" in node
    inner = [
        *node.get("properties", {}).values(),
        *node.get("anyOf", ()),
        *([node["items"]] if "items" in node else []),
    ]
    for child in inner:
        check_subset(child)


@settings(max_examples=40, deadline=None)
@given(SCHEMAS)
@example({"type": "object", "anyOf": [{"anyOf": [{}, False]}]})
@example({"type": "object", "anyOf": [{"anyOf": [{}, False]}, {}]})
@example({"type": "object", "properties": {"a": {}}, "anyOf": [{"anyOf": [{}, False]}]})
def test_any_schema_can_be_cleaned(schema: dict[str, Any]) -> None:
    check_subset(cp.openapi_schema(schema))
    cp.walk_schema(schema, cp.gemini_node)
    cp.claude_clean(schema)


@settings(max_examples=60)
@given(
    st.dictionaries(st.text(max_size=9), st.sampled_from([{"type": "string"}, {"type": ["integer", "null"]}]))
)
def test_property_names_are_kept(properties: dict[str, Any]) -> None:
    schema = {"type": "object", "properties": properties}
    assert cp.openapi_schema(schema).get("properties", {}).keys() == properties.keys()
    assert cp.walk_schema(schema, cp.gemini_node)["properties"].keys() == properties.keys()
    assert cp.claude_clean(schema)["properties"].keys() == properties.keys()


def test_schemas_without_end() -> None:
    bomb: dict[str, Any] = {
        "$defs": {"z": {"type": "string"}},
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/0"}},
    }
    for at in range(12):  # each refers eight times to the next: 8 ** 12
        bomb["$defs"][str(at)] = {"properties": {str(n): {"$ref": f"#/$defs/{at + 1}"} for n in range(8)}}
    assert len(json.dumps(cp.openapi_schema(bomb))) < 1_000_000
    deep: dict[str, Any] = {"type": "string"}
    for _ in range(300):
        deep = {"type": "object", "properties": {"a": deep}}
    for clean in (cp.openapi_schema, lambda s: cp.walk_schema(s, cp.gemini_node)):
        assert clean(deep)["properties"]
    loop = {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}
    assert cp.openapi_schema(loop)["type"] == "OBJECT"


ROOTS = [
    pytest.param(None, {"type": "object", "properties": {}}, id="none"),
    pytest.param({"additionalProperties": False},
                 {"type": "object", "properties": {}, "additionalProperties": False}, id="no type"),
    pytest.param({"allOf": [{"properties": {"a": {}}, "required": ["a"]}, {"properties": {"b": {}}}]},
                 {"type": "object", "properties": {"a": {}, "b": {}}, "required": ["a"]}, id="allOf"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "root"), ROOTS)
@pytest.mark.parametrize("dialect", ["claude", "chat", "responses"])
def test_root_of_arguments(schema: Any, root: Any, dialect: str) -> None:
    assert fit(ask(dialect="gemini", tools=(Tool("f", schema=schema),)), dialect).tools[0].schema == root


def test_tool_schemas_for_gemini() -> None:
    schema = {
        "type": "object",
        "properties": {
            "a": {"const": 1, "exclusiveMinimum": 0, "$ref": "#/definitions/x"},
            "const": {"type": "string"},
        },
        "definitions": {"x": {"type": "string", "pattern": "y"}},
    }
    request = ask(
        tools=(Tool("f", schema=schema), Tool("g", schema={"type": "object", "properties": {}}), Tool("h"))
    )
    plain = fit(request, "gemini").tools
    assert plain[0].schema == {
        "type": "object",
        "properties": {"a": {"type": "string", "enum": [1]}, "const": {"type": "string"}},
        "$defs": {"x": {"type": "string"}},
    }
    target = Target("gemini-cli", GEMINI_3, frozenset({"openapi-schema"}))
    strict = fit(request, "gemini", target).tools
    assert strict[0].schema
    assert strict[0].schema["properties"]["a"]["type"] == "STRING"
    own = request._replace(dialect="gemini")
    assert fit(own, "gemini", target).tools == own.tools


def test_answer_formats() -> None:
    schema = {
        "type": "object",
        "properties": {
            "a": {"type": "string", "maxLength": 3, "format": "uri", "description": "d"},
            "b": {"oneOf": [{"type": "object", "properties": {}}, {"type": "array", "minItems": 2}]},
            "c": {"$ref": "#/$defs/C", "description": "dropped"},
            "d": {"type": "string", "format": "regex"},
        },
        "$defs": {"C": {"type": "object"}},
    }
    request = ask(format=Format("schema", "n", schema))
    written = fit(request, "claude").format
    assert written
    assert written.schema == {
        "type": "object",
        "properties": {
            "a": {"type": "string", "format": "uri", "description": "d (maxLength: 3)"},
            "b": {"anyOf": [
                {"type": "object", "properties": {}, "additionalProperties": False},
                {"type": "array", "description": "(minItems: 2)"},
            ]},
            "c": {"$ref": "#/$defs/C"},
            "d": {"type": "string", "description": '(format: "regex")'},
        },
        "$defs": {"C": {"type": "object", "additionalProperties": False}},
        "additionalProperties": False,
    }  # fmt: skip
    assert fit(request, "responses").format == request.format
    form = fit(request, "gemini").format
    assert form
    assert form.schema
    assert "maxLength" not in form.schema["properties"]["a"]
    assert fit(ask(format=Format("json")), "claude").format == Format("json")


ASK: dict[str, dict[str, Any]] = {
    "claude": {"max_tokens": 9, "messages": [{"role": "user", "content": "q"}]},
    "chat": {"messages": [{"role": "user", "content": "q"}]},
    "responses": {"input": [{"role": "user", "content": "q"}]},
    "gemini": {"contents": [{"role": "user", "parts": [{"text": "q"}]}]},
}


def test_case_15_schema_on_the_wire() -> None:
    target = Target("gemini-cli", GEMINI_25_PRO, frozenset({"openapi-schema"}))
    tool = {"type": "function", "function": {"name": "f", "parameters": CASE_15}}
    written = up("chat", {**ASK["chat"], "tools": [tool]}, "gemini", target)
    assert written["tools"][0]["functionDeclarations"][0]["parameters"] == cp.openapi_schema(CASE_15)


# --- references that stand alone

NAMED: dict[str, Any] = {
    "A": {"type": "object", "properties": {"y": {"type": "string"}}, "required": ["y"], "description": "A's"},
    "Tree": {"type": "object", "properties": {"left": {"$ref": "#/$defs/Tree", "title": "Left"}}},
    "Deep": {"type": "object", "properties": {"d": {"$ref": "#/$defs/Deep", "type": "object"}}},
    "Loop": {"allOf": [{"$ref": "#/$defs/Loop"}, {"type": "object"}]},
}
Z = {"type": "object", "properties": {"z": {"type": "string"}}, "required": ["z"]}
A_AND_Z = {
    "type": "object",
    "description": "A's",
    "properties": {"y": {"type": "string"}, "z": {"type": "string"}},
    "required": ["y", "z"],
}
ALONE = [  # the schema of a property, and what becomes of it for Gemini
    pytest.param({"$ref": "#/$defs/A"}, {"$ref": "#/$defs/A"}, id="alone"),
    pytest.param({"$ref": "#/$defs/A", "title": "T", "default": None}, {"$ref": "#/$defs/A"}, id="title"),
    pytest.param({"$ref": "#/$defs/A", "description": "D"}, {"$ref": "#/$defs/A", "description": "D"}, id="told"),
    pytest.param({"allOf": [{"$ref": "#/$defs/A"}], "title": "T", "description": "D"},
                 {"$ref": "#/$defs/A", "description": "D"}, id="pydantic 1"),
    pytest.param({"allOf": [{"$ref": "#/$defs/A"}, Z]}, A_AND_Z, id="allOf"),
    pytest.param({"allOf": [Z, {"allOf": [{"$ref": "#/$defs/A"}]}]}, {**A_AND_Z, "required": ["y", "z"]}, id="allOf in allOf"),
    pytest.param({"$ref": "#/$defs/A", **Z}, A_AND_Z, id="beside an object"),
    pytest.param({"$ref": "#/$defs/A", "anyOf": [{"required": ["y"]}]},
                 {**NAMED["A"], "anyOf": [{"required": ["y"]}]}, id="beside alternatives"),
    pytest.param({"$ref": "#/definitions/A", **Z}, A_AND_Z, id="of the older form"),
    pytest.param({"$ref": "#/$defs/gone", **Z}, Z, id="of nothing"),
    pytest.param({"$ref": "#/$defs/Loop", "type": "object"}, {"type": "object"}, id="of itself alone"),
    pytest.param({"$ref": "#/$defs/Deep", "type": "object"},
                 {"type": "object", "properties": {"d": {"$ref": "#/$defs/Deep"}}}, id="within itself"),
    pytest.param({"type": "array", "items": {"$ref": "#/$defs/A", "title": "T"}},
                 {"type": "array", "items": {"$ref": "#/$defs/A"}}, id="in an array"),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "cleaned"), ALONE)
def test_references_stand_alone_for_gemini(schema: dict[str, Any], cleaned: dict[str, Any]) -> None:
    whole = {"type": "object", "properties": {"p": schema}, "$defs": NAMED, "definitions": {"A": NAMED["A"]}}
    before = json.dumps(whole)
    asked = ask(tools=(Tool("f", "", whole),), format=Format("schema", schema=whole))
    got = fit(asked, "gemini", Target("gemini", GEMINI_25_PRO))
    assert got.format is not None
    for found in (got.tools[0].schema, got.format.schema):
        assert found is not None
        assert found["properties"]["p"] == cleaned
        assert found["$defs"]["Tree"]["properties"]["left"] == {"$ref": "#/$defs/Tree"}
    assert json.dumps(whole) == before


def test_answer_formats_for_claude_join_what_allof_names() -> None:
    whole = {"type": "object", "properties": {"p": {"allOf": [{"$ref": "#/$defs/A"}], "title": "T"},
             "q": {"allOf": [{"$ref": "#/$defs/A"}, Z]}}, "$defs": {"A": NAMED["A"]}}  # fmt: skip
    form = fit(ask(format=Format("schema", schema=whole)), "claude").format
    assert form is not None
    assert form.schema is not None
    assert form.schema["properties"]["p"] == {"$ref": "#/$defs/A"}
    assert form.schema["properties"]["q"] == {**A_AND_Z, "additionalProperties": False}


def test_references_that_multiply_come_to_an_end() -> None:
    twice = {
        f"D{n}": {
            "type": "object",
            "properties": {k: {"$ref": f"#/$defs/D{n + 1}", "type": "object"} for k in "abcd"},
        }
        for n in range(14)
    }
    whole = {"type": "object", "properties": {"p": {"$ref": "#/$defs/D0", "type": "object"}}, "$defs": twice}
    assert len(json.dumps(cp.lone_refs(whole))) < 1_000_000


def test_what_stands_beside_a_reference_is_joined_in_the_older_form() -> None:
    cleaned = cp.openapi_schema(
        {"type": "object", "properties": {"p": {"$ref": "#/$defs/A", **Z}}, "$defs": NAMED}
    )
    assert cleaned["properties"]["p"]["properties"].keys() == {"y", "z"}
    assert cleaned["properties"]["p"]["required"] == ["y", "z"]


def test_a_reference_at_the_root_leaves_what_it_names_clean() -> None:
    whole = {"$ref": "#/definitions/P", "definitions": {"P": {"properties": {"a": {"$ref": "#/definitions/Q", **Z}},
             "type": "object"}, "Q": NAMED["A"]}}  # fmt: skip
    cleaned = cp.gemini_clean(whole)
    assert cleaned["$ref"] == "#/$defs/P"
    assert cleaned["$defs"]["P"]["properties"]["a"] == A_AND_Z


PERSON = {"type": "object", "properties": {"a": {"type": "string"}}, "required": ["a"]}
CLOSED = {**PERSON, "additionalProperties": False}
REFERRED = [
    pytest.param({"allOf": [{"$ref": "#/definitions/P"}], "title": "P"}, {"$ref": "#/definitions/P"}, id="alone"),
    pytest.param(
        {"allOf": [{"$ref": "#/definitions/P"}, {"properties": {"b": {"type": "null"}}}]},
        {**CLOSED, "properties": {"a": {"type": "string"}, "b": {"type": "null"}}},
        id="with another",
    ),
    pytest.param(
        {"allOf": [{"$ref": "#/definitions/P"}], "properties": {"b": {"$ref": "#/definitions/P"}}},
        {**CLOSED, "properties": {"a": {"type": "string"}, "b": {"$ref": "#/definitions/P"}}},
        id="with properties",
    ),
    pytest.param({"allOf": [{"minimum": 1}, {"type": "integer"}]},
                 {"type": "integer", "description": "(minimum: 1)"}, id="no reference"),
    pytest.param({"allOf": [{"$ref": "#/definitions/L"}, {"type": "object"}]},
                 {"type": "object", "additionalProperties": False}, id="without end"),
    pytest.param({"allOf": [{"$ref": "#/nowhere"}, PERSON]}, CLOSED, id="to nothing"),
]  # fmt: skip


@pytest.mark.parametrize(("node", "wanted"), REFERRED)
def test_claude_gets_no_reference_among_all_of(node: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Pydantic 1 writes each nested model so; Claude refuses it."""
    endless = {"allOf": [{"$ref": "#/definitions/L"}, {"type": "object"}]}
    schema = {"type": "object", "properties": {"x": node}, "definitions": {"P": PERSON, "L": endless}}
    written = cp.claude_clean(schema)
    assert written["properties"]["x"] == wanted
    assert "allOf" not in json.dumps(written)


@pytest.mark.parametrize("client", ["chat", "responses"])
def test_strict_tools_keep_to_what_claude_can_hold_them_to(client: str) -> None:
    inner = {"type": "object", "properties": {"n": {"type": "number", "multipleOf": 0.5}}, "required": ["n"]}
    properties = {
        "l": {"type": "array", "items": inner, "maxItems": 3},
        "i": {"type": "integer", "minimum": 1},
    }
    tool = cp.Tool("f", schema={"type": "object", "properties": properties}, strict=True)
    strict, loose = fit(
        ask(dialect=client, tools=(tool, tool._replace(name="g", strict=None))), "claude"
    ).tools
    assert strict.schema == {
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "l": {
                "type": "array",
                "items": {
                    "type": "object",
                    "properties": {"n": {"type": "number", "description": "(multipleOf: 0.5)"}},
                    "required": ["n"],
                    "additionalProperties": False,
                },
                "description": "(maxItems: 3)",
            },
            "i": {"type": "integer", "description": "(minimum: 1)"},
        },
    }
    assert loose.schema == {"type": "object", "properties": properties}


# --- the smallest values


LEAST = [
    ({"type": "string"}, ""),
    ({"type": "string", "minLength": 3}, "aaa"),
    ({"type": "string", "format": "date"}, "1970-01-01"),
    ({"type": "integer", "minimum": 5, "multipleOf": 4}, 8),
    ({"type": "integer", "exclusiveMinimum": 0}, 1),
    ({"type": "number", "maximum": -3}, -3),
    ({"type": ["null", "string"]}, None),
    ({"enum": ["b", "a"]}, "b"),
    ({"const": 7}, 7),
    ({"anyOf": [{"type": "boolean"}, {"type": "string"}]}, False),
    ({"type": "array", "items": {"type": "integer"}, "minItems": 2}, [0, 0]),
    ({"type": "object", "properties": {"a": {"type": "string"}, "b": {}}, "required": ["a"]}, {"a": ""}),
    ({"allOf": [{"type": "object", "required": ["a"]}, {"properties": {"a": {"$ref": "#/$defs/N"}}}],
      "$defs": {"N": {"type": "integer"}}}, {"a": 0}),
    ({}, ""),
]  # fmt: skip


@pytest.mark.parametrize(("schema", "value"), LEAST)
def test_least_value(schema: dict[str, Any], value: Any) -> None:
    assert cp.least_value(schema) == value


def test_least_value_of_one_that_contains_itself() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#"}}, "required": ["next"]}
    assert json.dumps(cp.least_value(node)).count("next") <= cp.SCHEMA_REFS


@given(st.recursive(st.none() | st.integers() | st.text(), lambda inner: st.dictionaries(
    st.sampled_from(["type", "properties", "required", "anyOf", "items", "enum", "minItems", "minimum", "$ref", "allOf"]),
    inner | st.lists(inner, max_size=3) | st.sampled_from(["object", "array", "string", "#"]), max_size=5)))  # fmt: skip
def test_least_value_of_what_is_no_schema(schema: Any) -> None:
    if isinstance(schema, dict):
        json.dumps(cp.least_value(schema))
