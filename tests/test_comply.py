"""Public conformance suites against the proxy: echo alone, and echo behind an upstream of each dialect.

`.ci/run` fetches llm-comply (PyPI) and compatcanary (npm) and says where they are. What stays open:
llm-comply's test of `/responses/compact`, which only an upstream of the Responses dialect has, and its
`anthropic` suite, whose schema asks of every answer for fields that hardly any real one has (`container`,
`citations: null` of a text, `caller` of a call).
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from support.proxy import Proxy
from support.upstream import Upstream

COMPLY = os.environ.get("CLIPROXY_LLM_COMPLY", "")
CANARY = os.environ.get("CLIPROXY_COMPATCANARY", "")
pytestmark = pytest.mark.slow
MODELS = ("echo", "via-claude", "via-chat", "via-responses", "via-gemini")
BARS = {"open-responses": 11, "openai-chat": 8, "google-genai": 8}  # tests that pass, at least
NONE: dict[str, Any] = {
    key: [] for key in ("claude-api-key", "codex-api-key", "gemini-api-key", "openai-compatibility")
}


@pytest.fixture(scope="module")
def front(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    """A proxy whose accounts are all at another one, which has no account but answers by echo."""
    folder = tmp_path_factory.mktemp("comply")
    for name in ("front", "behind"):
        (folder / name / "auth").mkdir(parents=True)
    with closing(Upstream()) as nobody, closing(Proxy(folder / "behind", nobody, NONE, {})) as behind:
        key = {"api-key": "sk-k"}

        def model(dialect: str) -> list[dict[str, str]]:
            return [{"name": "echo", "alias": f"via-{dialect}"}]

        accounts = {
            "claude-api-key": [{**key, "base-url": behind.url, "models": model("claude")}],
            "codex-api-key": [{**key, "base-url": f"{behind.url}/v1", "models": model("responses")}],
            "gemini-api-key": [{**key, "base-url": behind.url, "models": model("gemini")}],
            "openai-compatibility": [{"name": "up", "base-url": f"{behind.url}/v1", "api-key-entries": [key],
                                      "models": model("chat")}],
        }  # fmt: skip
        with closing(Proxy(folder / "front", nobody, accounts, {})) as proxy:
            yield proxy


def run(*words: str) -> str:
    done = subprocess.run(words, capture_output=True, text=True, timeout=90, check=False)
    assert done.stdout, done.stderr
    return done.stdout


@pytest.mark.skipif(not COMPLY, reason="llm-comply is not here")
@pytest.mark.parametrize("suite", BARS)
@pytest.mark.parametrize("model", MODELS)
def test_llm_comply(front: Proxy, model: str, suite: str) -> None:
    base = f"{front.url}/v1beta" if suite == "google-genai" else f"{front.url}/v1"
    told = run(COMPLY, "-u", base, "-k", "k", "-m", model, "--format", suite, "--timeout", "10", "--json")
    report = json.loads(told)
    assert report["summary"]["passed"] >= BARS[suite], told


@pytest.mark.skipif(not CANARY, reason="compatcanary is not here")
@pytest.mark.parametrize("model", MODELS)
def test_compatcanary(front: Proxy, model: str, tmp_path: Path) -> None:
    told = run(
        "node", CANARY, "scan", "--base-url", f"{front.url}/v1", "--model", model, "--api-key", "k", "--timeout", "10"
    )  # fmt: skip
    assert "Score: 100/100" in told, told
