"""One question from the command line: `cliproxy try`."""

from __future__ import annotations

import re
import threading

from support.dialogue import SSE, STREAMS, Said
from support.home import Home
from support.proxy import ProxyMaker
from support.upstream import Upstream


def test_the_echo_answers_without_a_running_server(home: Home) -> None:
    status, text = home.run("try", "hello")
    assert status == 0, text
    said, told = text.splitlines()
    assert said == "hello"
    assert re.fullmatch(r"echo: \d\.\d s, the first word after \d\.\d s; \d+ tokens in, \d+ out", told), told
    assert threading.active_count() < 9


def test_the_running_server_is_asked_with_its_key(home: Home, make_proxy: ProxyMaker) -> None:
    proxy = make_proxy(api_keys=["client-key-0123456789"])
    home.write({"port": proxy.port, "api-keys": ["client-key-0123456789"]})
    status, text = home.run("try", "echo", "hello", "you")
    assert (status, text.splitlines()[0]) == (0, "hello you"), text
    home.write(
        {"port": proxy.port, "api-keys": ["another-key-0123456789"]}
    )  # a server of our own would know it
    status, text = home.run("try", "echo", "hello")
    assert (status, text.startswith("cliproxy: ")) == (1, True), text
    assert "another-key-0123456789" not in text


def test_who_answered_is_told(home: Home, make_proxy: ProxyMaker, upstream: Upstream) -> None:
    proxy = make_proxy()
    home.write({**proxy.settings, "port": proxy.port, "auth-dir": str(home.auth)})
    upstream.reply(STREAMS["chat"](Said("hm", "hello")), headers=SSE)
    status, text = home.run("try", "up-chat", "hello")
    assert status == 0, text
    assert re.search(r"^up-chat by up\[0\]: .* 9 tokens in, 5 out$", text, re.MULTILINE), text


def test_a_model_that_is_none_is_named(home: Home) -> None:
    status, text = home.run("try", "no-such-model", "hello")
    assert (status, "no-such-model" in text, text.count("\n")) == (1, True, 1), text
