from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cliproxy as cp
from support.paths import ROOT

DEFAULTS = cp.load_config(None)


def load(text: str | dict[str, Any], name: str = "config.json") -> cp.Config:
    return cp.parse_config(Path(name), text if isinstance(text, str) else json.dumps(text))


def said(config: cp.Config) -> list[str]:
    """Return the warnings without the file's name."""
    return [warning.partition(": ")[2] for warning in config.warnings]


def sample(row: cp.Setting) -> Any:
    """Make up a value for a row: not its default, with every key of a record."""
    if row.clean is cp.clean_proxy:
        return "socks5://h:1"
    if row.clean in {cp.clean_url, cp.clean_guarded, cp.clean_endpoint}:
        return "https://h:1/v1"
    if row.clean is cp.clean_duration:
        return "30m"
    if row.allowed:
        return next(reversed(list(row.allowed))) if isinstance(row.allowed, dict) else 80
    return sample_of(row.shape, not row.default)


def sample_of(shape: Any, flag: bool = True) -> Any:
    if isinstance(shape, cp.Items):
        return [sample_of(shape.of)]
    if isinstance(shape, cp.Named):
        return {"x": sample_of(shape.of)}
    if isinstance(shape, tuple):
        return {row.key: sample(row) for row in shape if not row.status}
    return {bool: flag, int: 7, float: 1.5, str: "t", dict: {"a": "1"}, object: {"any": 1}}[shape]


def nested(key: str, value: Any) -> Any:
    for name in reversed(key.split(".")):
        value = {name: value}
    return value


def contains(whole: Any, part: Any) -> bool:
    if isinstance(part, dict):
        return all(contains(whole[key], value) for key, value in part.items())
    if isinstance(part, list):
        return all(contains(a, b) for a, b in zip(whole, part))
    return bool(whole == part)


# ---- the table


def test_the_defaults_are_complete_and_quiet() -> None:
    assert DEFAULTS.warnings == ()
    for row in cp.SETTINGS:
        if row.default is not None and row.key != "auth-dir":
            assert DEFAULTS[row.key] == row.default, row.key
    assert DEFAULTS["auth-dir"] == str(Path("~/.cli-proxy-api").expanduser())


@pytest.mark.parametrize("row", [r for r in cp.SETTINGS if r.status != "old"], ids=lambda r: r.key)
def test_every_row_takes_a_value(row: cp.Setting) -> None:
    value = {"allow-origins": ["http://localhost:3000"]}.get(row.key.rpartition(".")[2], sample(row))
    config = load(nested(row.key, value))
    assert said(config) == []
    known = {"routing.strategy": "fill-first", "oauth-model-alias": {"x": []}}
    raw = {"params": {"a": 1}}
    if row.key.endswith("-raw"):
        value = [{**value[0], **raw}]
    assert contains(config[row.key], known.get(row.key, value))


TYPED = [r for r in cp.SETTINGS if r.status != "old" and r.shape is not object]


@pytest.mark.parametrize("row", TYPED, ids=lambda r: r.key)
def test_every_row_refuses_what_it_cannot_be(row: cp.Setting) -> None:
    wrong = 1 if isinstance(row.shape, (cp.Named, cp.Items)) else ["x"]
    with pytest.raises(cp.ProxyError) as caught:
        load(nested(row.key, wrong))
    shown = str(caught.value)
    assert shown.startswith(f"config.json: {row.key}: ")
    assert "allowed: " in shown
    assert caught.value.param == row.key


@pytest.mark.parametrize("row", TYPED, ids=lambda r: r.key)
def test_null_is_the_default(row: cp.Setting) -> None:
    assert load(nested(row.key, None)).data == DEFAULTS.data


def test_keys_are_listed_once() -> None:
    keys = [row.key for row in cp.SETTINGS]
    assert len(keys) == len(set(keys))


def test_the_example_is_the_defaults() -> None:
    path = ROOT / "config.example.json"
    assert path.read_text(encoding="utf-8") == cp.example_config()
    assert cp.load_config(path).data == DEFAULTS.data


README = (ROOT / "README.md").read_text(encoding="utf-8")
SHOWN = README.partition("\n## Settings\n")[2].partition("\n## ")[0]
MOST_USED = re.findall(r"(?m)^\| `([\w.-]+)` \| (?:`(.*)`)? *\| (.*) \|$", SHOWN)


@pytest.mark.parametrize(("key", "default", "words"), MOST_USED)
def test_the_settings_in_the_readme_are_as_it_says(key: str, default: str, words: str) -> None:
    (row,) = [row for row in cp.SETTINGS if row.key == key]
    assert words == row.help
    assert (json.loads(default) if default else "") == (row.default or ("" if not default else row.default))


def test_the_readme_shows_the_settings_that_people_change() -> None:
    assert 12 <= len(MOST_USED) <= 25


def test_the_reference_names_what_has_an_effect() -> None:
    lines = cp.config_reference().splitlines()
    keys = [line.split("`")[1] for line in lines if line.startswith("- ")]
    assert keys == [row.key for row in cp.SETTINGS if row.status in {"", "new"}]


# ---- values

# fmt: off
TAKEN = [
    ("port",            3,          3),
    ("port",            1.0,        1),
    ("debug",           True,       True),
    ("debug",           "yes",      True),
    ("debug",           "Off",      False),
    ("debug",           "n",        False),
    ("host",            1,          "1"),
    ("host",            True,       "true"),
    ("host",            " ::1 ",    "::1"),
    ("api-keys",        [1, "b"],   ["1", "b"]),
    ("api-keys",        ["a ", ""], ["a "]),
    ("api-keys",        ["a", "a"], ["a"]),
    ("request-retry",   -1,         0),
    ("routing.strategy", "RR",      "round-robin"),
    ("routing.strategy", "",        "round-robin"),
    ("routing.strategy", "wrr",     "weighted-round-robin"),
    ("routing.strategy", "fillfirst", "fill-first"),
    ("proxy-url",       " Direct ", "Direct"),
    ("proxy-url",       "socks5h://u:p@h:1", "socks5h://u:p@h:1"),
    ("auth-dir",        "/a/b",     "/a/b"),
    ("auth-dir",        "",         str(Path("~/.cli-proxy-api").expanduser())),
]
REFUSED = [  # key, value, what the message says
    ("port",             "3",      '"3" is not possible; allowed: a whole number'),
    ("port",             1.5,      "1.5 is not possible; allowed: a whole number"),
    ("port",             True,     "true is not possible; allowed: a whole number"),
    ("port",             65_536,   "65536 is not possible; allowed: 0 to 65535"),
    ("port",             -1,       "-1 is not possible; allowed: 0 to 65535"),
    ("port",             [],       "a list is not possible; allowed: a whole number"),
    ("debug",            "maybe",  '"maybe" is not possible; allowed: true or false'),
    ("debug",            1,        "1 is not possible; allowed: true or false"),
    ("host",             {},       "a mapping is not possible; allowed: a text"),
    ("api-keys",         "sk-1234567890", "sk-1...7890 is not possible; allowed: a list"),
    ("api-keys",         {},       "a mapping is not possible; allowed: a list"),
    ("api-keys",         ["schlüssel"], "a list is not possible; allowed: keys of printable ASCII characters"),
    *(("allow-origins",  [origin], "a list is not possible; allowed: origins such as http://localhost:3000")
      for origin in ("localhost:3000", "*", "http://a/path", "ftp://a", "http://u@a", "http://a:99999", "")),
    ("tls",              "on",     '"on" is not possible; allowed: a mapping'),
    ("routing.strategy", "random", '"random" is not possible; allowed: round-robin, weighted-round-robin, fill-first'),
    ("routing.session-affinity-ttl", "soon", '"soon" is not possible; allowed: a time such as 90s'),
    ("auth-dir",         "~nobody-has-this-name/a", '"~nobody-has-this-name/a" is not possible; allowed: '),
    ("proxy-url",        "ftp://user:hunter22@h", "ftp:...22@h is not possible; allowed: http://"),
    *(("proxy-url", url, f"{cp.masked(url)} is not possible; allowed: http://")
      for url in ("http://:80", "http://h:99999", "http://h:abc", "http://[::1", "http://a b:80", "10.0.0.1:8080")),
    *(("ampcode.upstream-url", url, f'"{url}" is not possible; allowed: an http or https URL')
      for url in ("h", "localhost:8080", "ftp://h", "https:///x", "http://h:99999", "http://h:abc", "http://[::1", "http://a b")),
]
# fmt: on


@pytest.mark.parametrize(("key", "value", "expected"), TAKEN)
def test_values_are_taken(key: str, value: Any, expected: Any) -> None:
    config = load(nested(key, value))
    assert config[key] == expected
    assert said(config) == []


@pytest.mark.parametrize(("key", "value", "message"), REFUSED)
def test_values_are_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(cp.ProxyError) as caught:
        load(nested(key, value))
    assert f"config.json: {key}: {message}" in str(caught.value)


def test_half_a_surrogate_is_refused_wherever_it_stands() -> None:
    for data in (
        {"api-keys": ["\ud800"]},
        {"claude-api-key": [{"api-key": "a\udc00"}]},
        {"x": {"\ud800": 1}},
    ):
        with pytest.raises(cp.ProxyError, match=r"config\.json: .*surrogates not allowed"):
            load(data)


def test_a_deep_place_is_named_and_a_secret_masked() -> None:
    entry = {"api-key-entries": [{"api-key": "a"}, {"api-key": ["sk-secret-secret"]}]}
    with pytest.raises(cp.ProxyError) as caught:
        load({"openai-compatibility": [entry]})
    place = "openai-compatibility[0].api-key-entries[1].api-key: a list is not"
    assert place in str(caught.value)
    assert "secret-secret" not in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
TOP_LEVEL = sorted({row.key.partition(".")[0] for row in cp.SETTINGS})


@given(st.dictionaries(st.sampled_from(TOP_LEVEL), json_values, max_size=4))
def test_any_file_is_read_or_refused(data: dict[str, Any]) -> None:
    try:
        config = load(data)
    except cp.ProxyError as exc:
        outcome = str(exc)
    else:
        outcome = f"config.json: {config['port']}"
    assert outcome.startswith("config.json: ")


# ---- unknown keys


# fmt: off
UNKNOWN = [
    ({"prot": 1},                         "prot is not a known key; did you mean port?"),
    ({"qqqqq": 1},                        "qqqqq is not a known key"),
    ({"tls": {"enabled": True}},          "tls.enabled is not a known key; did you mean enable?"),
    ({"claude-api-key": [{"apikey": ""}]}, "claude-api-key[0].apikey is not a known key; did you mean api-key?"),
    ({"openai-compatibility": [{"base-url": "http://h", "models": [{"nam": "m"}]}]},
     "openai-compatibility[0].models[0].nam is not a known key; did you mean name?"),
    ({"providers": {"codex": {"tokenurl": "u"}}}, "providers.codex.tokenurl is not a known key; did you mean token-url?"),
]
# fmt: on


@pytest.mark.parametrize(("data", "warning"), UNKNOWN)
def test_unknown_keys_are_named_and_kept(data: dict[str, Any], warning: str) -> None:
    config = load(data)
    assert said(config) == [warning]
    assert contains(config.data, data)


def test_keys_that_are_of_no_use_here_are_kept_quietly() -> None:
    data = {"plugins": {"a": [1]}, "pprof": {"enable": True}, "routing": {"session-affinity": True}}
    config = load({**data, "claude-api-key": [{"api-key": "k", "weight": 2, "cloak": {}}]})
    assert said(config) == []
    assert config["routing.session-affinity"] is True
    assert config["claude-api-key"][0]["weight"] == 2


def test_a_slip() -> None:
    assert cp.slip("gpt-5-codx", ["gpt-5-codex", "claude"]) == "; did you mean gpt-5-codex?"
    assert not cp.slip("zzz", ["gpt-5-codex", "claude"])


# ---- lists of accounts


def test_accounts_are_cleaned() -> None:
    config = load({
        "gemini-api-key": [
            {"api-key": " k ", "base-url": " http://h/ ", "prefix": " /team/ "},
            {"api-key": "k", "prefix": "again"},
            {"api-key": ""},
            {"api-key": "n", "prefix": "a/b", "headers": {" X ": " y ", "": "z", "w": " "}},
        ],
        "codex-api-key": [{"api-key": "k"}, {"api-key": "k", "base-url": "http://h"}],
        "vertex-api-key": [
            {"api-key": "k", "base-url": "http://h", "models": [{"name": "a"}, {"name": "a", "alias": "b"}]},
            {"api-key": "k"},
        ],
        "openai-compatibility": [{"name": " Open "}, {"base-url": "http://h/v1/"}],
        "claude-api-key": [{"excluded-models": [" Claude-* ", "claude-*", ""]}, {}],
    })  # fmt: skip
    gemini = config["gemini-api-key"]
    assert [(row["api-key"], row["prefix"]) for row in gemini] == [("k", "team"), ("n", "")]
    assert (gemini[0]["base-url"], gemini[1]["headers"]) == ("http://h", {"X": "y"})
    assert [row["base-url"] for row in config["codex-api-key"]] == ["http://h"]
    assert [row["models"] for row in config["vertex-api-key"]] == [[{"name": "a", "alias": "b"}]]
    assert [row["base-url"] for row in config["openai-compatibility"]] == ["http://h/v1"]
    assert config["claude-api-key"][0]["excluded-models"] == ["claude-*"]
    assert len(config["claude-api-key"]) == 2
    assert said(config) == [
        "codex-api-key[0] is ignored: it has no usable base-url",
        "gemini-api-key[1] is ignored: it repeats another",
        "gemini-api-key[2] is ignored: it has no usable api-key",
        "vertex-api-key[0].models[0] is ignored: it has no usable alias",
        "vertex-api-key[1] is ignored: it has no usable base-url",
        "openai-compatibility[0] is ignored: it has no usable base-url, and its name is not one we know",
    ]


def test_an_entry_is_complete() -> None:
    entry = load({"claude-api-key": [{"api-key": "k"}]})["claude-api-key"][0]
    assert entry == {
        "api-key": "k",
        "proxy-url": "",
        "base-url": "",
        "prefix": "",
        "priority": 0,
        "headers": {},
        "models": [],
        "excluded-models": [],
        "weight": 1,
    }


def test_aliases_and_exclusions() -> None:
    rows = [
        {"name": "a", "alias": "A"},
        {"name": "a", "alias": "x"},
        {"name": "b", "alias": "X"},
        {"name": "a", "alias": "y", "fork": True},
        {"name": " ", "alias": "z"},
    ]
    config = load({
        "oauth-model-alias": {"Claude": rows},
        "oauth-excluded-models": {" Codex ": ["GPT-*", "gpt-*", " "], "claude": []},
    })  # fmt: skip
    aliases = config["oauth-model-alias"]["claude"]
    assert [(row["alias"], row["fork"]) for row in aliases] == [("x", False), ("y", True)]
    assert config["oauth-excluded-models"] == {"codex": ["gpt-*"]}


def test_raw_payload_rules_are_decoded() -> None:
    models = [{"name": "gpt-*", "protocol": "codex"}]
    rules = [
        {"models": models, "params": {"a.b": '{"x":1}', "c": 2}},
        {"models": models, "params": {"a": "{"}},
        {"models": models, "params": {}},
    ]
    config = load({"payload": {"default-raw": rules, "override": rules[1:2]}})
    assert [row["params"] for row in config["payload.default-raw"]] == [{"a.b": {"x": 1}, "c": 2}]
    assert config["payload.override"] == rules[1:2]
    empty, broken = said(config)
    assert empty == "payload.default-raw[2] is ignored: it has no usable params"
    assert broken.startswith("payload.default-raw[1].params.a is ignored: it is no JSON: Expecting")


def test_one_bad_raw_value_takes_no_other_with_it() -> None:
    config = load({"payload": {"override-raw": [{"models": [], "params": {"a": '{"x":1}', "b.c": "{bad"}}]}})
    assert [row["params"] for row in config["payload.override-raw"]] == [{"a": {"x": 1}}]
    assert said(config)[0].startswith(
        "payload.override-raw[0].params.b.c is ignored: it is no JSON: Expecting"
    )


# ---- old spellings


# fmt: off
OLD = [
    ({"auth": {"providers": [{"type": "x", "api-keys": ["n"]}, {"name": "c", "type": "config-api-key", "api-keys": ["a", "b"]}]}},
     "api-keys", ["a", "b"]),
    ({"auth": {"providers": {"config-api-key": {"api-key-entries": [{"api-key": "a"}], "api-keys": ["b"]}}}},
     "api-keys", ["b", "a"]),
    ({"auth": {"providers": [{"type": "config-api-key", "api-keys": ["a"]}]}, "api-keys": ["new"]}, "api-keys", ["new"]),
    ({"auth": {"providers": []}}, "api-keys", []),
    ({"auth": None}, "api-keys", []),
    ({"amp-upstream-url": "http://a/"}, "ampcode.upstream-url", "http://a"),
    ({"amp-upstream-url": "http://a", "ampcode": {"upstream-url": "http://b"}}, "ampcode.upstream-url", "http://b"),
    ({"amp-upstream-url": "http://a"}, "ampcode.restrict-management-to-localhost", True),
    ({"ampcode": {"upstream-url": "http://a"}}, "ampcode.restrict-management-to-localhost", False),
    ({"amp-restrict-management-to-localhost": False, "ampcode": {"restrict-management-to-localhost": True}},
     "ampcode.restrict-management-to-localhost", False),
    ({"amp-upstream-api-key": "k"}, "ampcode.upstream-api-key", "k"),
    ({"amp-model-mappings": [{"from": "a", "to": "b"}]}, "ampcode.model-mappings", [{"from": "a", "to": "b", "regex": False}]),
    ({"oauth-model-mappings": {"claude": [{"name": "a", "alias": "b"}]}},
     "oauth-model-alias", {"claude": [{"name": "a", "alias": "b", "fork": False}]}),
    ({"model-name-mappings": {"codex": [{"name": "a", "alias": "b", "fork": True}]}},
     "oauth-model-alias", {"codex": [{"name": "a", "alias": "b", "fork": True}]}),
]
# fmt: on


@pytest.mark.parametrize(("data", "key", "expected"), OLD)
def test_old_spellings_are_moved(data: dict[str, Any], key: str, expected: Any) -> None:
    config = load(data)
    assert config[key] == expected
    assert all("old spelling" in line for line in said(config))
    old = {row.key.partition(".")[0] for row in cp.SETTINGS if row.status == "old"}
    assert not old & config.data.keys()


def test_old_lists_of_keys_are_joined() -> None:
    config = load({
        "generative-language-api-key": ["a", "b", " ", "b"],
        "gemini-api-key": [{"api-key": "a", "prefix": "p"}],
        "openai-compatibility": [
            {"base-url": "http://h", "api-keys": ["x", "y"], "api-key-entries": [{"api-key": "y"}]}
        ],
    })  # fmt: skip
    rows = config["gemini-api-key"]
    assert [(row["api-key"], row["prefix"]) for row in rows] == [("a", "p"), ("b", "")]
    provider = config["openai-compatibility"][0]
    assert [row["api-key"] for row in provider["api-key-entries"]] == ["y", "x"]
    assert "api-keys" not in provider
    assert said(config) == []


def test_old_keys_of_the_wrong_type_are_named() -> None:
    with pytest.raises(cp.ProxyError, match=r"auth\.providers\[0\]\.api-keys: .* allowed: a list"):
        load({"auth": {"providers": [{"type": "config-api-key", "api-keys": "a"}]}})
    with pytest.raises(cp.ProxyError, match=r"auth\.providers: .* allowed: a list"):
        load({"auth": {"providers": "all"}})


def test_the_key_of_the_example_is_warned_of() -> None:
    assert "guess" in said(load({"api-keys": ["your-api-key-1"]}))[0]


# ---- files


# fmt: off
BAD_JSON = [
    ('{"port": 1 "a": 2}',             "line 1 column 12"),
    ('{"a": 1, "tls": {"b": 1, "b": 2}}', "the key 'b' is there twice"),
    ("[1]",                             "the file: a list is not possible; allowed: a mapping"),
    ("3",                               "the file: 3 is not possible; allowed: a mapping"),
    ("port: 1",                         "Expecting value: line 1 column 1"),
    pytest.param("[" * 100_000,         "recursion", id="deep"),
]
# fmt: on


@pytest.mark.parametrize(("text", "message"), BAD_JSON)
def test_damaged_json(text: str, message: str) -> None:
    with pytest.raises(cp.ProxyError) as caught:
        load(text)
    assert str(caught.value).startswith("config.json: ")
    assert message in str(caught.value)


YAML = """\
# a comment
host: ""   # all
port: 8318
debug: yes
api-keys:
  - 0123
  - 2024-01-01
  - no
  - 'null'
tls:
payload:
  default:
    - models: &models [{name: "gpt-*"}]
      params: {temperature: 0.7, "top_k": 5, stream: true, note: ~}
  filter:
    - models: *models
      params: [a.b]
gemini-api-key:
  - api-key: AIza:x
    headers: {X-Number: 1}
    excluded-models: ["*"]
"""


def test_yaml() -> None:
    pytest.importorskip("yaml")
    config = load(YAML, "cliproxyapi.conf")
    assert said(config) == []
    assert (config["host"], config["port"], config["debug"]) == ("", 8318, True)
    assert config["api-keys"] == ["0123", "2024-01-01", "no", "null"]
    params = config["payload.default"][0]["params"]
    assert params == {"temperature": 0.7, "top_k": 5, "stream": True, "note": None}
    assert config["payload.filter"][0]["models"][0]["name"] == "gpt-*"
    assert config["gemini-api-key"][0]["headers"] == {"X-Number": "1"}
    assert config["tls.enable"] is False


def test_yaml_merges_and_anchors() -> None:
    pytest.importorskip("yaml")
    text = (
        "claude-api-key:\n  - &base {api-key: a, prefix: p}\n  - {<<: *base, api-key: b}\n  - {<<: *base}\n"
    )
    rows = load(text, "c.yaml")["claude-api-key"]
    keys = [(row["api-key"], row["prefix"]) for row in rows]
    assert keys == [("a", "p"), ("b", "p"), ("a", "p")]


# fmt: off
BAD_YAML = [
    ("port: 1\nhost: a\nport: 2\n",     "the key 'port' is there twice: line 3"),
    ("tls:\n  key: a\n  key: b\n",      "the key 'key' is there twice: line 3"),
    ("port: 1\n  host: a\n",            "line 2"),
    ("api-keys: [sk-secret\nport: @x",  "line 2"),
    ("- a\n",                           "the file: a list is not possible; allowed: a mapping"),
    ("port: !!python/object:os.system {}\n", "could not determine a constructor"),
    ("port: !!binary aGk=\n",           "bytes"),
    ("a: &a [*a]\n",                    "Circular"),
]
# fmt: on


@pytest.mark.parametrize(("text", "message"), BAD_YAML)
def test_damaged_yaml(text: str, message: str) -> None:
    pytest.importorskip("yaml")
    with pytest.raises(cp.ProxyError) as caught:
        load(text, "config.yaml")
    assert message in str(caught.value)
    assert "secret" not in str(caught.value)


def test_json_is_json_whatever_the_file_is_called() -> None:
    assert load('\n {"port": 1}', "config.yaml")["port"] == 1


WITHOUT_YAML = """
import sys
sys.modules["yaml"] = None
import cliproxy
try:
    print(cliproxy.load_config(cliproxy.Path(sys.argv[1]))["port"])
except cliproxy.ProxyError as error:
    print(error)
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param("port: 1 # plain\n", "1\n", id="plain"),
        pytest.param(
            "a: &x 1\n", "{path}: '&' is not expected here: line 1; {no_yaml}\n", id="more than plain"
        ),
    ],
)
def test_yaml_without_pyyaml(tmp_path: Path, text: str, said: str) -> None:
    """The plain subset is read, and for more it is said where, and what to do."""
    path = tmp_path / "config.yaml"
    path.write_text(text, encoding="utf-8")
    command = [sys.executable, "-c", WITHOUT_YAML, str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == said.format(path=path, no_yaml=cp.NO_YAML)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path / "none.json", tmp_path):
        with pytest.raises(cp.ProxyError, match="cannot be read"):
            cp.load_config(path)
    path = tmp_path / "latin.json"
    path.write_bytes(b'{"host": "\xff"}')
    with pytest.raises(cp.ProxyError, match="utf-8"):
        cp.load_config(path)


def test_a_file_may_be_empty_or_have_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(b" \n")
    assert cp.load_config(path).data == DEFAULTS.data
    path.write_bytes(b'\xef\xbb\xbf{"port": 1}')
    assert cp.load_config(path)["port"] == 1


def test_the_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    home, here = tmp_path / "home", tmp_path / "here"
    (home / ".cli-proxy-api").mkdir(parents=True)
    here.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.setattr(cp, "__file__", str(tmp_path / "beside/cliproxy.py"))
    (home / ".config/cliproxy").mkdir(parents=True)
    (tmp_path / "beside").mkdir()
    assert cp.find_config(None) == cp.Source()
    assert cp.find_config("~/x.json") == cp.Source(home / "x.json")
    for path, trusted in (  # each goes before those above it
        (here / "config.yaml", False),
        (here / "config.json", False),
        (here / "cliproxy.json", False),
        (home / ".config/cliproxy/config.yaml", True),
        (home / ".cli-proxy-api/config.yaml", True),
        (home / ".cli-proxy-api/config.json", True),
        (tmp_path / "beside/config.json", True),
    ):
        path.write_text('{"port": 1}', encoding="utf-8")
        found = cp.find_config(None)
        assert found.path is not None
        assert (found.path.resolve(), found.trusted) == (path, trusted)


FOREIGN = [  # a config.json of the working directory, and why it is none of ours
    ('{"name": "my-web-app", "port": 3000}', "'name' is no setting of cliproxy"),
    ('{"debug": "app:*"}', "debug: "),
    ("[1]", "the file: a list is not possible"),
    ("{", "Expecting"),
    ("{}", "it holds no settings"),
    (" ", "it holds no settings"),
]


@pytest.mark.parametrize(("text", "why"), FOREIGN)
def test_a_config_of_the_working_directory_that_is_not_ours_is_not_obeyed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, text: str, why: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    assert cp.find_config(None) == cp.Source()
    assert f"config.json of this folder is not read: {why}" in caplog.text
    assert cp.find_config("config.json") == cp.Source(Path("config.json"))


def test_a_file_of_the_working_directory_sends_no_tokens_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "cliproxy.json"
    evil = {"base-url": "https://evil.example", "usage-url": "https://evil.example/u", "client-id": "x"}
    path.write_text(
        json.dumps({"providers": {"claude": evil}, "ampcode": {"upstream-url": "https://evil"}}),
        encoding="utf-8",
    )
    config = cp.load_config(path, trusted=False)
    assert {key for key, value in config["providers"]["claude"].items() if value} == {"client-id"}
    assert config["ampcode.upstream-url"] == ""
    ignored = [warning.split(" is ignored")[0].rpartition(" ")[2] for warning in config.warnings]
    assert ignored == ["providers.claude.base-url", "providers.claude.usage-url", "ampcode.upstream-url"]
    assert cp.load_config(path)["providers"]["claude"]["base-url"] == "https://evil.example"


def test_tokens_of_logins_travel_encrypted_or_not_at_all() -> None:
    for url in ("http://127.0.0.1:1", "http://localhost", "https://h"):
        assert load({"providers": {"codex": {"token-url": url}}})["providers"]["codex"]["token-url"] == url
    with pytest.raises(cp.ProxyError, match=r"providers\.codex\.token-url: .*an https URL"):
        load({"providers": {"codex": {"token-url": "http://10.0.0.1/token"}}})


def test_what_an_owner_should_know_of_settings_that_are_in_order() -> None:
    config = load({
        "claude-api-key": [{"api-key": "k", "base-url": "http://h"}, {"api-key": "k", "base-url": "http://[::1]"}],
        "openai-compatibility": [
            {"name": "a", "base-url": "http://h:1/v1"},
            {"name": "b", "base-url": "http://h:1/v1", "api-key-entries": [{"api-key": "k"}]},
        ],
        "remote-management": {"disable-control-panel": True}, "error-logs-max-files": 10, "ws-auth": True, "commercial-mode": False,
    })  # fmt: skip
    assert config.warnings == ()
    assert cp.remarks(config) == [
        "claude-api-key[0] sends a key to h unencrypted",
        "openai-compatibility[1] sends a key to h unencrypted",
        "without any effect here: ws-auth",
    ]


@pytest.mark.parametrize(
    "key",
    [
        "your-api-key",
        "your-api-key-1",
        "sk-litellm-local-your-master-key",
        "dummy-not-used",
        "Your-Proxy-API-Key",
    ],
)
def test_keys_of_examples_let_no_other_machine_in(key: str) -> None:
    with pytest.raises(cp.ProxyError, match="of your own"):
        cp.check_exposure(load({"host": "", "api-keys": [key]}))
    cp.check_exposure(load({"host": "", "api-keys": [key, "7c0d1f"]}))
    cp.check_exposure(load({"api-keys": [key]}))


# ---- watching


@pytest.fixture
def settings_file(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text('{"port": 1}', encoding="utf-8")
    return path


def replace(path: Path, text: str) -> None:
    fresh = path.with_suffix(".new")
    fresh.write_text(text, encoding="utf-8")
    Path(fresh).replace(path)


def test_an_edit_is_seen_once(settings_file: Path) -> None:
    file = cp.ConfigFile(settings_file)
    first = file.config
    assert not file.poll()
    settings_file.write_text('{"port": 2222}', encoding="utf-8")
    assert file.poll()
    assert (first["port"], file.config["port"]) == (1, 2222)
    assert not file.poll()


def test_replacing_by_rename_is_seen(settings_file: Path) -> None:
    """Same size and same time: only the inode tells."""
    file = cp.ConfigFile(settings_file)
    before = settings_file.stat()
    fresh = settings_file.with_suffix(".new")
    fresh.write_text('{"port": 2}', encoding="utf-8")
    os.utime(fresh, ns=(before.st_atime_ns, before.st_mtime_ns))
    Path(fresh).replace(settings_file)
    assert file.poll()
    assert file.config["port"] == 2


BAD_BASE = '{"claude-api-key": [{"api-key": "k", "base-url": "127.0.0.1:8080"}]}'


@pytest.mark.parametrize("text", ['{"port": ', '{"port": "x"}', "[]", BAD_BASE])
def test_a_bad_edit_keeps_the_running_settings(
    settings_file: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = cp.ConfigFile(settings_file)
    replace(settings_file, text)
    assert not file.poll()
    assert file.config["port"] == 1
    assert "the settings stay as they were" in caplog.text
    caplog.clear()
    assert not file.poll()
    assert caplog.text == ""
    replace(settings_file, '{"port": 3}')
    assert file.poll()


def test_an_empty_or_missing_file_is_waited_for(
    settings_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file = cp.ConfigFile(settings_file)
    replace(settings_file, "")
    assert not file.poll()
    settings_file.unlink()
    assert not file.poll()
    assert (file.config["port"], caplog.text) == (1, "")
    replace(settings_file, '{"port": 4, "prot": 1}')
    assert file.poll()
    assert "did you mean port?" in caplog.text


def test_the_same_settings_are_no_change(settings_file: Path) -> None:
    file = cp.ConfigFile(settings_file)
    replace(settings_file, '{ "port": 1.0 }')
    assert not file.poll()


def test_without_a_file_there_is_nothing_to_watch() -> None:
    file = cp.ConfigFile(None)
    assert file.config.data == DEFAULTS.data
    assert not file.poll()


# ---- exposure


def test_an_edit_does_not_open_the_running_server_to_all(
    settings_file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The host that counts is the one that is listened on, whatever the file says by now."""
    settings_file.write_text('{"host": "0.0.0.0", "api-keys": ["k"]}', encoding="utf-8")
    file = cp.ConfigFile(settings_file)
    for text in ('{"host": "0.0.0.0", "debug": true}', '{"debug": true}'):
        replace(settings_file, text)
        assert not file.poll()
        assert file.config["api-keys"] == ["k"]
        assert "host 0.0.0.0 lets other machines in" in caplog.text
        caplog.clear()
    replace(settings_file, '{"api-keys": ["other"]}')
    assert file.poll()


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_loopback_needs_no_keys(host: str) -> None:
    cp.check_exposure(load({"host": host}))


@pytest.mark.parametrize("host", ["", "0.0.0.0", "::", "10.0.0.1", "127.0.0.1.example.com"])
def test_other_hosts_need_keys(host: str) -> None:
    with pytest.raises(cp.ProxyError, match="add a key to api-keys"):
        cp.check_exposure(load({"host": host}))
    with pytest.raises(cp.ProxyError, match="add a key to api-keys"):
        cp.check_exposure(load({"host": host, "api-keys": [" "]}))
    cp.check_exposure(load({"host": host, "api-keys": ["k"]}))
