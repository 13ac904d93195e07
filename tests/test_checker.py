"""The shared checker on a sample: a client's SDK sees through the proxy what the upstream really said.

With CLIPROXY_CHECK=full all recordings run, in random pieces too, and all requests: some minutes.
"""

from __future__ import annotations

import importlib.util
import os
import re
import socket
import subprocess
import sys
from contextlib import suppress

import pytest

from support.paths import SHARED
from support.proxy import ProxyMaker

FULL = os.environ.get("CLIPROXY_CHECK") == "full"
NEEDS = ("anthropic", "openai", "google.genai", "httpx", "pydantic")  # of the checker, and Python 3.11
RUNS = [
    pytest.param(["differential", "--include-same"], id="answers"),
    pytest.param(
        ["differential", "--include-same", "--chunking", "random", "--seed", "1"], id="random pieces"
    ),
    pytest.param(["differential", "--corpus", "recordings/synthetic"], id="hand-written"),
    pytest.param(["request_check", "--with-urls", "--strict-turns"], id="requests"),
]
KNOWN = {  # recording -> why it differs, and will
    "openrouter-stream-error": "an error without a type, cut in two: passing bytes stay as they are",
    "spliced-message-start": "two streams in one: the SDK joins the calls that we keep apart",
    "openai-custom-tool-1-stream": "OpenAI's SDK has no freeform calls in Chat streams",
    "shell-container-1-stream": "its deltas and its `done` differ, and the deltas were sent already",
    "uploaded-file": "a file of another vendor: 400, spec 3.1",
    "tools-plus-output": "a choice of some tools: the others are left out of the list, spec 2.5",
    "max-tokens-thinking-model-empty-response": "less than 16 tokens is refused by Responses: spec 1B.1",
    "image-generation-tool-1": "Messages has no place for an image: it is named in a text",
    "image-generation-with-output-format": "Messages has no place for an image: it is named in a text",
    "responses-image-generation-jpeg": "Messages has no place for an image: it is named in a text",
    "text-as-binary-content-input": "a text file is written as text, which the checker takes for lost",
    "document-url-input": "Chat takes no document by URL: 400, spec 2.3",
    "direct-url-document": "Chat takes no document by URL: 400, spec 2.3",
}


def absent() -> str:
    """Return what the checker lacks here."""
    if sys.version_info < (3, 11):
        return "Python 3.11"
    return " ".join(name for name in NEEDS if importlib.util.find_spec(name) is None)


def free_ports() -> int:
    """Return the first of four free ports in a row, below those that connections are given."""
    start = 21_000 + os.getpid() % 1_000 * 8
    return next(first for first in range(start, 32_700, 4) if all(map(is_free, range(first, first + 4))))


def is_free(port: int) -> bool:
    with suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False


def settings(port: int) -> dict[str, object]:
    """Return accounts on the checker's four replay servers."""
    entries = [{"api-key": "k"}]
    chat = {"name": "replay", "api-key-entries": entries, "base-url": f"http://127.0.0.1:{port}/v1"}
    keys = {"codex_api_key": ("responses", 1, "/v1"), "claude_api_key": ("messages", 2, ""),
            "gemini_api_key": ("gemini", 3, "")}  # fmt: skip
    accounts: dict[str, object] = {
        name: [
            {
                "api-key": "k",
                "base-url": f"http://127.0.0.1:{port + n}{path}",
                "models": [{"name": f"replay-{word}"}],
            }
        ]
        for name, (word, n, path) in keys.items()
    }
    accounts["openai_compatibility"] = [{**chat, "models": [{"name": "replay-chat"}]}]
    return {**accounts, "disable_cooling": True}


@pytest.mark.shared
@pytest.mark.timeout(600 if FULL else 120)
@pytest.mark.parametrize("run", RUNS if FULL else [RUNS[0], RUNS[3]])
def test_checker(make_proxy: ProxyMaker, run: list[str]) -> None:
    if lacks := absent():
        pytest.skip(f"the checker needs {lacks}")
    port = free_ports()
    proxy = make_proxy(**settings(port))
    program, *options = run
    command = [
        sys.executable,
        "-m",
        f"checker.{program}",
        "--proxy-url",
        proxy.url,
        "--upstream-port",
        str(port),
    ]
    command += [*options, "--max-failures", "1000", *([] if FULL else ["--limit", "12"])]
    done = subprocess.run(command, cwd=SHARED, capture_output=True, text=True, check=False)
    failed = [line for line in done.stdout.splitlines() if re.match(r"  \w+->\w+ ", line)]
    assert "pass (" in done.stdout, done.stderr[-2000:]
    assert [line for line in failed if not any(word in line for word in KNOWN)] == []
