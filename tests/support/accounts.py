"""Accounts in front of the scripted upstream, and what it says when it refuses."""

from __future__ import annotations

import json
import time
from typing import Any

import cliproxy as cp
from support.proxy import Got, Proxy, ProxyMaker
from support.upstream import Reply, Seen, Upstream, make_reply
from support.world import World

Json = cp.Json
HI = [{"role": "user", "content": "hi"}]
CLAUDE_ASK = {"model": "claude-sonnet-4-6", "max_tokens": 9, "messages": HI}
ANSWER = {"type": "message", "role": "assistant", "content": [{"type": "text", "text": "hello"}]}


class House:
    """A proxy whose logins are at the world, and whose Claude API is the scripted upstream."""

    def __init__(self, world: World, make_proxy: ProxyMaker, upstream: Upstream, **config: Any) -> None:
        providers = world.config().data["providers"]
        for name in ("claude", "codex"):
            providers[name]["base-url"] = upstream.url
        self.world, self.upstream = world, upstream
        self.proxy: Proxy = make_proxy(providers=providers, claude_api_key=[], **config)
        upstream.routes["/v1/messages"] = self.serve

    def serve(self, seen: Seen) -> Reply:
        token = seen.headers["authorization"].partition("Bearer ")[2]
        if self.world.access.get(token) == "claude":
            return make_reply(ANSWER)
        error = {"type": "authentication_error", "message": "OAuth token has expired"}
        return make_reply({"type": "error", "error": error}, 401)

    def add(self, name: str = "a", *, ends: float = -60.0, **fields: Any) -> str:
        """Put a Claude credential there; `ends` in seconds from now."""
        tokens = self.world.tokens("claude")
        if ends < 0:
            del self.world.access[tokens["access_token"]]
        file = f"claude-{name}.json"
        data = {
            "type": "claude", "email": f"{name}@example.com", "id_token": "",
            "access_token": tokens["access_token"], "refresh_token": tokens["refresh_token"],
            "expired": cp.write_time(time.time() + ends), "last_refresh": cp.write_time(time.time() - 3600), **fields,
        }  # fmt: skip
        (self.proxy.auth_dir / file).write_text(json.dumps(data))
        self.proxy.app.poll()
        return file

    def ask(self) -> Got:
        return self.proxy.ask("/v1/messages", CLAUDE_ASK)

    def account(self, file: str = "claude-a.json") -> cp.Account:
        return next(a for a in self.proxy.app.router.offers.accounts if a.name == file)

    def file(self, file: str = "claude-a.json") -> Json:
        data: Json = json.loads((self.proxy.auth_dir / file).read_text())
        return data

    @property
    def refreshes(self) -> int:
        return self.world.count("/claude/token")


class Pool:
    """A proxy with keys named a, b, ... of the Claude API, all at the upstream, which scripts each."""

    def __init__(self, make_proxy: ProxyMaker, upstream: Upstream, keys: str, **config: Any) -> None:
        models = [{"name": "up"}, {"name": "other"}]
        entries = config.pop("entries", {})
        rows = [
            {"api-key": k, "base-url": upstream.url, "models": models, **entries.get(k, {})} for k in keys
        ]
        self.script: dict[str, Reply] = {}
        self.upstream = upstream
        upstream.routes["/v1/messages"] = self.serve
        self.proxy: Proxy = make_proxy(claude_api_key=rows, **config)
        self.router = self.proxy.app.router

    def serve(self, seen: Seen) -> Reply:
        return self.script.get(key_of(seen), make_reply(ANSWER))

    def ask(self, model: str = "up", headers: dict[str, str] | None = None, **body: Any) -> Got:
        return self.proxy.ask("/v1/messages", {**CLAUDE_ASK, "model": model, **body}, headers)

    def asked(self) -> str:
        """The keys of the requests since the last time."""
        found = "".join(key_of(seen) for seen in self.upstream.seen)
        self.upstream.seen.clear()
        return found

    def rests(self) -> dict[tuple[str, str], float]:
        state = self.router.state() or {"cooldowns": []}
        return {(row["account"][-2], row["model"]): row["end"] - time.time() for row in state["cooldowns"]}


def key_of(seen: Seen) -> str:
    return seen.headers.get("x-api-key") or seen.headers["authorization"].partition("Bearer ")[2]
