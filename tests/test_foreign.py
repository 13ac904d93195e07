"""FOREIGN: configurations of LiteLLM and claude-code-router, read as ours."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import cliproxy as cp

KEYS_AND_FALLBACKS = """
model_list:
  - model_name: sonnet
    litellm_params: {model: anthropic/claude-sonnet-5, api_key: sk-ant-1, api_base: "https://relay.example/v1"}
  - model_name: fast
    litellm_params: {model: openai/gpt-5.5, api_key: sk-oa-1, rpm: 60, drop_params: true, stream: true}
  - model_name: fast
    litellm_params: {model: openai/gpt-5.5, api_key: sk-oa-2}
  - model_name: local
    litellm_params: {model: "ollama_chat/qwen3:32b", api_base: "http://127.0.0.1:11434"}
router_settings: {num_retries: 2, fallbacks: [{sonnet: [fast]}, {fast: [local]}], model_group_alias: {quick: fast}}
general_settings: {master_key: sk-of-the-owner}
"""
ENDPOINT = "openai-compatibility"
# fmt: off
LITELLM = [
    pytest.param(KEYS_AND_FALLBACKS, {}, {
        "api-keys": ["sk-of-the-owner"], "request-retry": 2, "model-fallbacks": {"sonnet": ["fast"], "fast": ["local"]},
        "claude-api-key": [{"api-key": "sk-ant-1", "base-url": "https://relay.example", "models": [{"name": "claude-sonnet-5", "alias": "sonnet"}]}],
        ENDPOINT: [
            {"name": "openai", "models": [{"name": "gpt-5.5", "alias": "fast"}, {"name": "gpt-5.5", "alias": "quick"}],
             "api-key-entries": [{"api-key": "sk-oa-1"}, {"api-key": "sk-oa-2"}]},
            {"name": "ollama", "base-url": "http://127.0.0.1:11434/v1", "models": [{"name": "qwen3:32b", "alias": "local"}]}],
    }, ["litellm_params.rpm has no counterpart"], id="keys, fallbacks, aliases"),
    pytest.param('model_list: [{model_name: "*", litellm_params: {model: "openai/*", api_key: os.environ/OPENAI_API_KEY}}]', {},
                 {}, [], id="all of a variable"),
    pytest.param('model_list: [{model_name: a, litellm_params: {model: openai/gpt-5.5, api_key: os.environ/OPENAI_API_KEY}}]', {"OPENAI_API_KEY": "k"},
                 {ENDPOINT: [{"name": "openai", "models": [{"name": "gpt-5.5", "alias": "a"}], "api-key-entries": [{"api-key": "k"}]}]},
                 ["model_list[0]: the key was copied from the variable OPENAI_API_KEY"], id="another name, of a variable"),
    pytest.param('model_list: [{model_name: a, litellm_params: {model: deepseek/deepseek-chat, api_key: os.environ/DEEPSEEK_API_KEY}}]', {},
                 {ENDPOINT: [{"name": "deepseek", "models": [{"name": "deepseek-chat", "alias": "a"}]}]}, [], id="a variable that we read"),
    pytest.param('model_list: [{model_name: "team/*", litellm_params: {model: "groq/*", api_key: k}}]', {},
                 {ENDPOINT: [{"name": "groq", "prefix": "team", "api-key-entries": [{"api-key": "k"}]}]}, [], id="wildcard with a prefix"),
    pytest.param('model_list: [{model_name: a, litellm_params: {model: openai/responses/gpt-5.5, api_key: k}}]', {},
                 {"codex-api-key": [{"api-key": "k", "base-url": "https://api.openai.com/v1", "models": [{"name": "gpt-5.5", "alias": "a"}]}]},
                 [], id="responses"),
    pytest.param('''
model_list:
  - {model_name: s, litellm_params: {model: openrouter/x/y, api_key: os.environ/MINE, order: 1, weight: 3, temperature: 0.2, additional_drop_params: [user]}}
  - {model_name: s, litellm_params: {model: azure/gpt-5, api_base: "https://x.example", api_key: k}}
  - {model_name: e, litellm_params: {model: openai/e3}, model_info: {mode: embedding}}
environment_variables: {MINE: sk-or-9}
litellm_settings: {drop_params: true, cache: true}
router_settings: {routing_strategy: least-busy}
''', {}, {
        "payload": {"default": [{"models": [{"name": "s"}], "params": {"temperature": 0.2}}], "filter": [{"models": [{"name": "s"}], "params": ["user"]}]},
        "routing": {"strategy": "round-robin"},
        ENDPOINT: [{"name": "openrouter", "priority": -1, "models": [{"name": "x/y", "alias": "s"}], "api-key-entries": [{"api-key": "sk-or-9", "weight": 3}]}],
    }, ["litellm_settings.cache has no counterpart", "model_list[0]: the key was copied from the variable MINE",
        "model_list[1] (azure/gpt-5) is left out: Azure's addresses and versions are not spoken here",
        "model_list[2] (e) is left out: its mode is embedding, and only chats have names of their own",
        "routing_strategy 'least-busy' chooses by what is not measured here: accounts take turns"], id="order, weight, body, what cannot be"),
    pytest.param('model_list: [{model_name: a, litellm_params: {model: x1/y, api_key: os.environ/NONE, api_base: "http://127.0.0.1:9/v1"}}]', {},
                 {ENDPOINT: [{"name": "x1", "base-url": "http://127.0.0.1:9/v1", "models": [{"name": "y", "alias": "a"}]}]},
                 ["model_list[0]: the variable NONE is not set; put the key in"], id="a variable that is not set"),
]
# fmt: on


@pytest.mark.parametrize(("text", "environ", "settings", "notes"), LITELLM)
def test_litellm(text: str, environ: dict[str, str], settings: Any, notes: list[str]) -> None:
    assert cp.read_foreign(
        "litellm", cp.read_yaml(text) if "\n" in text else cp.yaml_read(text), environ
    ) == (settings, notes)
    warnings = cp.parse_config(None, json.dumps(settings)).warnings
    assert not warnings


CCR = """{ // mine
  "APIKEY": "ccr-key", "PROXY_URL": "http://127.0.0.1:7890", "PORT": 3456,
  "Providers": [
    {"name": "deepseek", "api_base_url": "https://api.deepseek.com/chat/completions", "api_key": "$DEEPSEEK_API_KEY",
     "models": ["chat"], "transformer": {"use": ["deepseek", ["maxtoken", {"max_tokens": 9}]], "chat": {"use": ["tooluse"]}}},
    {"name": "gemini", "api_base_url": "https://generativelanguage.googleapis.com/v1beta/models/", "api_key": "g1",
     "models": ["gemini-2.5-pro"], "transformer": {"use": ["gemini"]}}],
  "Router": {"default": "deepseek,chat", "think": "deepseek,chat", "longContextThreshold": 60000}, "CUSTOM_ROUTER_PATH": "x.js"
}"""
CCR_SETTINGS = {
    "api-keys": ["ccr-key"],
    "proxy-url": "http://127.0.0.1:7890",
    "payload": {"override": [{"models": [{"name": "chat"}], "params": {"max_tokens": 9}}]},
    ENDPOINT: [
        {"name": "deepseek", "models": [{"name": "chat"}, {"name": "chat", "alias": "deepseek,chat"}]}
    ],
    "gemini-api-key": [
        {
            "api-key": "g1",
            "models": [
                {"name": "gemini-2.5-pro"},
                {"name": "gemini-2.5-pro", "alias": "gemini,gemini-2.5-pro"},
            ],
        }
    ],
}
CCR_NOTES = [
    "CUSTOM_ROUTER_PATH has no counterpart",
    "Router.default: run `cliproxy setup claude-code --model chat`",
    "Router.think has no counterpart: the client chooses its models",
]


def test_claude_code_router() -> None:
    found = cp.read_foreign("ccr", cp.read_places(CCR, yaml=False).value, {})
    assert found == (CCR_SETTINGS, CCR_NOTES)
    assert not cp.parse_config(None, json.dumps(CCR_SETTINGS)).warnings


@pytest.mark.parametrize("kind", ["litellm", "ccr"])
@pytest.mark.parametrize(
    "data",
    [[], {}, {"model_list": {}}, {"model_list": [1]}, {"Providers": [1, {"api_base_url": 1, "models": 3}]}],
)
def test_what_is_no_such_configuration_is_refused(kind: str, data: Any) -> None:
    with pytest.raises(ValueError, match="no configuration of"):
        cp.read_foreign(kind, data, {})


def test_a_litellm_file_is_served_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    path = tmp_path / "litellm.yaml"
    path.write_text(KEYS_AND_FALLBACKS, encoding="utf-8")
    config = cp.load_config(path)
    assert config["api-keys"] == ["sk-of-the-owner"]
    assert f"{path}: this is a configuration of LiteLLM, read as ours" in config.warnings


def test_import_prints_yaml_and_tells_the_rest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "config.json"
    path.write_text(CCR, encoding="utf-8")
    assert cp.main(["import", "ccr", str(path)]) == 0
    told = capsys.readouterr()
    assert cp.read_yaml(told.out) == CCR_SETTINGS
    assert told.err.splitlines()[: len(CCR_NOTES)] == [f"cliproxy: {note}" for note in CCR_NOTES]
    path.write_text("{", encoding="utf-8")
    assert cp.main(["import", "ccr", str(path)]) == 1
    path.write_text('{"port": 1, "debug": true}', encoding="utf-8")
    assert cp.main(["import", "cliproxyapi", str(path)]) == 0
    assert capsys.readouterr().out == "port: 1\ndebug: true\n"
