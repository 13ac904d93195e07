"""Services that a name is enough for: `name: openrouter`, or `base-url: provider://openrouter`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

import cliproxy as cp
from support.paths import ROOT
from support.proxy import Proxy, ProxyMaker
from support.upstream import Upstream, make_reply

ASK = {"model": "some/model", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}
SPOKEN = {"choices": [{"message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}]}
WANTED = """
    openrouter openai deepseek groq mistral glm zai zhipu moonshot kimi together fireworks cerebras nvidia xai perplexity
    huggingface github dashscope qwen siliconflow minimax ollama vllm lmstudio lm-studio llamacpp llama.cpp litellm sambanova cohere
""".split()


def alone(make_proxy: ProxyMaker, environ: dict[str, str], entry: Any, **more: Any) -> Proxy:
    """A proxy with one endpoint and no other account."""
    nobody: dict[str, Any] = {f"{name}_api_key": [] for name in ("claude", "codex", "gemini", "vertex")}
    return make_proxy(environ, openai_compatibility=[entry], **nobody, **more)


def accounts(path: Path, entry: Any, environ: dict[str, str] | None = None) -> list[cp.Account]:
    config = cp.parse_config(path, json.dumps({"openai-compatibility": [entry]}))
    assert config.warnings == ()
    return list(cp.accounts_of_endpoints(config, environ or {}))


def test_all_that_people_ask_for_are_there() -> None:
    assert set(WANTED) <= cp.PRESETS.keys()


def test_the_readme_names_them_all() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    told = readme.partition("Known by name: ")[2].partition(".\n")[0]
    assert re.findall(r"`([^`]+)`", told) == sorted(cp.PRESETS)


@pytest.mark.parametrize("name", cp.PRESETS)
def test_a_name_is_enough(make_proxy: ProxyMaker, upstream: Upstream, name: str) -> None:
    preset = cp.PRESETS[name]
    environ = {variable: f"key of {variable}" for variable in preset.keys}
    here = {name: {"base-url": f"{upstream.url}/up"}}
    proxy = alone(make_proxy, environ, {"name": name.upper()}, providers=here)
    upstream.reply(SPOKEN)
    told = [{"role": "user", "content": "hi"}, {"role": "developer", "content": "S"}]
    asked = {"model": "some/model", "max_output_tokens": 99, "input": told}
    assert proxy.ask("/v1/responses", asked).status == 200
    (seen,) = upstream.seen
    body = seen.json()
    assert seen.path == "/up/chat/completions"
    key = f"Bearer key of {preset.keys[0]}" if preset.keys else None
    assert seen.headers.get("authorization") == key
    assert ("max_tokens" in body) is ("max-tokens" in preset.quirks)
    assert body["messages"][1]["role"] == "system"


@pytest.mark.parametrize("name", cp.PRESETS)
def test_a_base_url_may_name_it(
    make_proxy: ProxyMaker, upstream: Upstream, tmp_path: Path, name: str
) -> None:
    preset = cp.PRESETS[name]
    entry = {"name": "Mine", "base-url": f" Provider://{name.title()}/ "}
    (account,) = accounts(tmp_path, entry, dict.fromkeys(preset.keys[-1:], "k"))
    assert (account.name, account.base, account.provider.name) == ("mine[0]", preset.base, "mine")
    assert (account.token, account.quirks) == ("k" if preset.keys else "", preset.quirks)
    keyed = {**entry, "api-key-entries": [{"api-key": "own"}]}
    proxy = alone(make_proxy, {}, keyed, providers={"mine": {"base-url": f"{upstream.url}/up"}})
    upstream.reply(SPOKEN)
    assert proxy.ask("/v1/chat/completions", ASK).status == 200
    assert upstream.seen[0].path == "/up/chat/completions"
    assert upstream.seen[0].headers["authorization"] == "Bearer own"


@pytest.mark.parametrize(
    ("wrong", "nearest"), [("opnrouter", "openrouter"), ("Groqq", "groq"), ("zzzzz", "")]
)
def test_an_unknown_one_is_an_error(tmp_path: Path, wrong: str, nearest: str) -> None:
    with pytest.raises(cp.ProxyError) as caught:
        accounts(tmp_path, {"name": "a", "base-url": f"provider://{wrong}"})
    said = str(caught.value)
    assert f'openai-compatibility[0].base-url: "provider://{wrong}" is not possible' in said
    assert (f"did you mean {nearest}?" in said) is bool(nearest)
    assert all(name in said for name in cp.PRESETS), "it lists all"


# fmt: off
LEAKS = [  # name, base URL, does the variable's key go there?
    ("openai",  "",                             True),
    ("openai",  "https://api.openai.com/v1",    True),
    ("openai",  "https://api.openai.com/v2/x",  True),
    ("openai",  "http://127.0.0.1:9/v1",        False),
    ("openai",  "https://evil.example/v1",      False),
    ("mine",    "provider://openai",            True),
    ("openai",  "provider://openai",            True),
    ("litellm", "https://gateway.example/v1",   True),  # it is wherever its owner runs it
]
# fmt: on


@pytest.mark.parametrize(("name", "base", "goes"), LEAKS)
def test_keys_of_the_environment_go_to_their_own_provider_only(
    tmp_path: Path, name: str, base: str, goes: bool
) -> None:
    environ = {"OPENAI_API_KEY": "secret", "LITELLM_API_KEY": "secret"}
    (account,) = accounts(tmp_path, {"name": name, "base-url": base}, environ)
    assert account.token == ("secret" if goes else "")


def test_several_keys_and_models(make_proxy: ProxyMaker, upstream: Upstream) -> None:
    entry = {
        "name": "team", "base-url": "provider://deepseek", "models": [{"name": "deepseek-chat", "alias": "ds"}],
        "api-key-entries": [{"api-key": "a"}, {"api-key": "b"}],
    }  # fmt: skip
    proxy = alone(make_proxy, {}, entry, providers={"team": {"base-url": upstream.url}})
    upstream.replies = [make_reply(SPOKEN)] * 2
    for _ in range(2):
        assert proxy.ask("/v1/chat/completions", {**ASK, "model": "ds"}).status == 200
    keys = [seen.headers["authorization"] for seen in upstream.seen]
    assert keys == ["Bearer a", "Bearer b"]
    assert proxy.ask("/v1/chat/completions", ASK).status == 404, "models were listed"
