"""A world of providers on loopback: they hand out, rotate, refuse and revoke tokens as the real ones do."""

from __future__ import annotations

import base64
import hashlib
import itertools
import json
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

import cliproxy as cp

Answer = tuple[int, cp.Json]
OPENAI_AUTH = "https://api.openai.com/auth"
CODE_LIFE = 600.0


def jwt(claims: cp.Json) -> str:
    body = base64.urlsafe_b64encode(json.dumps(claims).encode()).rstrip(b"=").decode()
    return f"eyJhbGciOiJSUzI1NiJ9.{body}.c2lnbmF0dXJl"


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self, moment: float) -> None:
        self.moment = moment

    def __call__(self) -> float:
        return self.moment

    def advance(self, seconds: float) -> None:
        self.moment += seconds


class Ask(NamedTuple):
    """A request as a provider sees it."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: cp.Json

    @property
    def token(self) -> str:
        return self.headers.get("authorization", "").partition("Bearer ")[2]


class Fault(NamedTuple):
    """What a token URL says next, whatever it is asked. `spend`: it does the work first."""

    status: int  # 0: hang up without an answer
    body: Any = b""
    headers: dict[str, str] = {}  # noqa: RUF012 -- never written to
    spend: bool = False


class World(ThreadingHTTPServer):
    """All providers. What tests set: `faults`, `consent`, `devices`, `google`, `email`, `plan`."""

    request_queue_size = 128
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), WorldHandler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.clock = Clock(float(int(time.time())))
        self.lock = threading.Lock()
        self.used = 12.5  # percent of Claude's five hours
        self.serial = itertools.count(1)
        self.asks: list[Ask] = []
        self.codes: dict[str, cp.Json] = {}
        self.devices: dict[str, cp.Json] = {}  # device code -> {user_code, state: pending|granted|denied}
        self.live: dict[str, str] = {}  # refresh token -> provider
        self.access: dict[str, str] = {}  # access token -> provider
        self.faults: dict[str, list[Fault]] = defaultdict(list)
        self.denied = ""  # the user refuses, with this error
        self.email, self.plan, self.account = "ann@example.com", "plus", "acc-1"
        self.life = 3600
        self.device_login = True
        self.google: cp.Json = {
            "load": {"currentTier": {"id": "standard-tier"}, "cloudaicompanionProject": "proj-1"},
            "projects": ["proj-1", "proj-2"],
            "enabled": set(),
            "polls": 1,
        }

    def handle_error(self, *_: Any) -> None:
        """A client that hangs up is none of our business."""

    def count(self, path: str) -> int:
        return sum(ask.path == path for ask in self.asks)

    def config(self, **providers: cp.Json) -> cp.Config:
        """Settings that point every login here."""
        u = self.url
        google = {
            "authorize-url": f"{u}/google/authorize", "token-url": f"{u}/google/token", "base-url": f"{u}/google",
            "profile-url": f"{u}/google/userinfo", "projects-url": f"{u}/google/projects", "services-url": f"{u}/google",
            "client-secret": "open-secret", "redirect-port": free_port(),
        }  # fmt: skip
        sections: cp.Json = {
            "claude": {
                "authorize-url": f"{u}/claude/authorize", "token-url": f"{u}/claude/token", "revoke-url": f"{u}/claude/revoke",
                "profile-url": f"{u}/claude/profile", "usage-url": f"{u}/claude/usage", "redirect-port": free_port(),
            },
            "codex": {
                "authorize-url": f"{u}/codex/authorize", "token-url": f"{u}/codex/token", "usage-url": f"{u}/codex/usage",
                "device-url": f"{u}/codex/api/accounts/deviceauth", "redirect-port": free_port(),
            },
            "gemini": google,
            "antigravity": {**google, "redirect-port": free_port()},
            "kimi": {"device-url": f"{u}/kimi/device", "token-url": f"{u}/kimi/token"},
            "qwen": {"device-url": f"{u}/qwen/device", "token-url": f"{u}/qwen/token"},
            "xai": {"authorize-url": f"{u}/xai/.well-known/openid-configuration"},
            "iflow": {
                "authorize-url": f"{u}/iflow/authorize", "token-url": f"{u}/iflow/token", "profile-url": f"{u}/iflow/user",
                "client-secret": "open-secret", "redirect-port": free_port(),
            },
        }  # fmt: skip
        for name, section in providers.items():
            sections[name] = {**sections[name], **section}
        return cp.parse_config(None, json.dumps({"providers": sections}))

    # What every provider does

    def tokens(self, provider: str) -> cp.Json:
        number = next(self.serial)
        access, renew = f"{provider}-access-{number}", f"{provider}-refresh-{number}"
        self.live[renew] = self.access[access] = provider
        return {
            "access_token": access, "refresh_token": renew, "token_type": "Bearer", "expires_in": self.life, "scope": "s",
        }  # fmt: skip

    def authorize(self, ask: Ask, provider: str) -> tuple[int, str]:
        """The user consents, or does not; return the redirect."""
        query = ask.query
        target = query.get("redirect_uri") or query["redirect"]
        if self.denied:
            return 302, f"{target}?{urlencode({'error': self.denied, 'state': query['state']})}"
        assert query["client_id"] == cp.LOGINS[provider].client_id
        assert query["response_type"] == "code"
        code = f"{provider}/code-{next(self.serial):020}"
        self.codes[code] = {
            "provider": provider, "redirect_uri": target, "challenge": query.get("code_challenge"),
            "method": query.get("code_challenge_method"), "state": query["state"], "until": self.clock() + CODE_LIFE,
        }  # fmt: skip
        return 302, f"{target}?{urlencode({'code': code, 'state': query['state']})}"

    def redeem(self, body: cp.Json, provider: str, *, state: bool = False) -> Answer:
        code = self.codes.pop(str(body.get("code")), {})
        digest = hashlib.sha256(str(body.get("code_verifier")).encode()).digest()
        proof = base64.urlsafe_b64encode(digest).rstrip(b"=").decode()
        good = [
            code.get("provider") == provider,
            code.get("redirect_uri") == body.get("redirect_uri"),
            code.get("until", 0) > self.clock(),
            not code.get("challenge") or (code["method"] == "S256" and proof == code["challenge"]),
            not state or code.get("state") == body.get("state"),
        ]
        if not all(good):
            return 400, {"error": "invalid_grant", "error_description": f"bad code {good}"}
        return 200, self.tokens(provider)

    def rotate(self, body: cp.Json, provider: str, error: str = "invalid_grant") -> Answer:
        if self.live.pop(str(body.get("refresh_token")), "") != provider:
            return 400, {"error": error, "error_description": "Refresh token not found or invalid"}
        return 200, self.tokens(provider)

    def id_token(self) -> str:
        account = {"chatgpt_account_id": self.account, "chatgpt_plan_type": self.plan}
        return jwt({"email": self.email, "sub": "sub-1", OPENAI_AUTH: account})

    # Claude

    def claude_authorize(self, ask: Ask) -> tuple[int, str]:
        assert ask.query["code"] == "true"
        return self.authorize(ask, "claude")

    def claude_token(self, ask: Ask) -> Answer:
        if not ask.headers["content-type"].startswith("application/json"):
            return 400, {"error": {"type": "invalid_request_error", "message": "not JSON"}}
        if ask.body["grant_type"] == "refresh_token":
            status, answer = self.rotate(ask.body, "claude")
        else:
            status, answer = self.redeem(ask.body, "claude", state=True)
        if status == 200:
            answer["account"] = {"uuid": self.account, "email_address": self.email}
            answer["organization"] = {"uuid": f"org-{self.account}", "name": "Ann's"}
        return status, answer

    def claude_profile(self, ask: Ask) -> Answer:
        assert ask.headers["anthropic-beta"] == "oauth-2025-04-20"
        if self.access.get(ask.token) != "claude":
            return 401, {"error": {"type": "authentication_error"}}
        account = {"uuid": self.account, "email": self.email}
        return 200, {
            "account": account,
            "organization": {"uuid": f"org-{self.account}", "organization_type": "claude_max"},
        }

    def claude_usage(self, ask: Ask) -> Answer:
        if self.access.get(ask.token) != "claude":
            return 401, {"error": {"type": "authentication_error", "message": "OAuth token has expired"}}
        return 200, {
            "five_hour": {"utilization": self.used, "resets_at": "2026-02-09T10:40:11.123456+00:00"},
            "seven_day": {"utilization": 80, "resets_at": None}, "seven_day_opus": None, "extra_usage": {"is_enabled": False},
        }  # fmt: skip

    def claude_revoke(self, ask: Ask) -> Answer:
        assert ask.body["token_type_hint"] == "refresh_token"
        self.live.pop(ask.body["token"], None)
        return 200, {}

    # Codex

    def codex_authorize(self, ask: Ask) -> tuple[int, str]:
        assert ask.query["originator"] == "cliproxy"
        return self.authorize(ask, "codex")

    def codex_token(self, ask: Ask) -> Answer:
        assert ask.headers["content-type"] == "application/x-www-form-urlencoded"
        if ask.body["grant_type"] == "refresh_token":
            status, answer = self.rotate(ask.body, "codex", "refresh_token_reused")
        else:
            status, answer = self.redeem(ask.body, "codex")
        return (
            (status, {**answer, "id_token": self.id_token()})
            if status == 200
            else (status, {"error": {"code": answer["error"]}})
        )

    def codex_api_accounts_deviceauth_usercode(self, ask: Ask) -> Answer:
        if not self.device_login:
            return 404, {}
        assert ask.body == {"client_id": cp.LOGINS["codex"].client_id}
        self.devices["dev"] = {"user_code": "ABCD-1234", "state": "pending"}
        return 200, {"device_auth_id": "dev", "user_code": "ABCD-1234", "interval": "5"}

    def codex_api_accounts_deviceauth_token(self, ask: Ask) -> Answer:
        device = self.devices[ask.body["device_auth_id"]]
        if device["state"] != "granted":
            return (403 if device["state"] == "pending" else 400), {
                "error": {"code": "access_denied", "message": "denied"}
            }
        verifier = "device-verifier"
        challenge = base64.urlsafe_b64encode(hashlib.sha256(verifier.encode()).digest()).rstrip(b"=").decode()
        self.codes["device-code"] = {
            "provider": "codex", "redirect_uri": f"{self.url}/codex/deviceauth/callback", "challenge": challenge,
            "method": "S256", "until": self.clock() + CODE_LIFE,
        }  # fmt: skip
        return 200, {
            "authorization_code": "device-code",
            "code_verifier": verifier,
            "code_challenge": challenge,
        }

    def codex_usage(self, ask: Ask) -> Answer:
        assert ask.headers["chatgpt-account-id"] == self.account
        week = {"used_percent": 40, "limit_window_seconds": 604_800, "reset_at": 1_770_633_611}
        five = {"used_percent": 7.5, "limit_window_seconds": 18_000, "reset_at": 1_770_633_600}
        more = [{"limit_name": "spark", "rate_limit": {"primary_window": five, "secondary_window": None}}]
        return 200, {
            "rate_limit": {"primary_window": five, "secondary_window": week},
            "additional_rate_limits": more,
        }

    # Google

    def google_authorize(self, ask: Ask) -> tuple[int, str]:
        assert (ask.query["access_type"], ask.query["prompt"]) == ("offline", "consent")
        name = next(
            name for name in ("gemini", "antigravity") if cp.LOGINS[name].client_id == ask.query["client_id"]
        )
        return self.authorize(ask, name)

    def google_token(self, ask: Ask) -> Answer:
        name = next(
            name for name in ("gemini", "antigravity") if cp.LOGINS[name].client_id == ask.body["client_id"]
        )
        if ask.body.get("client_secret") != "open-secret":
            return 401, {"error": "invalid_client", "error_description": "The OAuth client was not found."}
        if ask.body["grant_type"] == "authorization_code":
            return self.redeem(ask.body, name)
        if self.live.get(ask.body["refresh_token"]) != name:
            return 400, {"error": "invalid_grant", "error_description": "Token has been expired or revoked."}
        return 200, {key: value for key, value in self.tokens(name).items() if key != "refresh_token"}

    def google_userinfo(self, ask: Ask) -> Answer:
        return (
            (200, {"email": self.email}) if ask.token in self.access else (401, {"error": {"message": "no"}})
        )

    def google_projects(self, ask: Ask) -> Answer:
        assert ask.token in self.access
        return 200, {"projects": [{"projectId": name} for name in self.google["projects"]]}

    def google_v1internal_loadCodeAssist(self, ask: Ask) -> Answer:
        assert ask.token in self.access
        return 200, dict(self.google["load"])

    def google_v1internal_onboardUser(self, ask: Ask) -> Answer:
        if ask.body["tierId"] == "free-tier" and "cloudaicompanionProject" in ask.body:
            return 400, {
                "error": {
                    "code": 400,
                    "message": "Precondition check failed.",
                    "status": "FAILED_PRECONDITION",
                }
            }
        self.google["chosen"] = ask.body.get("cloudaicompanionProject", "free-project")
        return 200, {"name": "operations/op-1", "done": False}

    def google_v1internal_operations(self, _: Ask) -> Answer:
        self.google["polls"] -= 1
        done = {"done": True, "response": {"cloudaicompanionProject": {"id": self.google["chosen"]}}}
        return 200, {"name": "operations/op-1", **(done if self.google["polls"] < 0 else {})}

    def google_service(self, ask: Ask) -> Answer:
        project = ask.path.split("/")[3]
        if ask.path.endswith(":enable"):
            self.google["enabled"].add(project)
        return 200, {"state": "ENABLED" if project in self.google["enabled"] else "DISABLED"}

    # Device flows

    def device(self, provider: str, fields: set[str], ask: Ask) -> Answer:
        assert set(ask.body) == fields, ask.body
        assert ask.headers["content-type"] == "application/x-www-form-urlencoded"
        code = f"{provider}-device-{next(self.serial)}"
        self.devices[code] = {"state": "pending", "challenge": ask.body.get("code_challenge")}
        page = f"{self.url}/{provider}/activate"
        return 200, {
            "device_code": code, "user_code": "WXYZ", "verification_uri": page,
            "verification_uri_complete": f"{page}?user_code=WXYZ", "expires_in": 600, "interval": 1,
        }  # fmt: skip

    def device_token(self, provider: str, ask: Ask, pending: int) -> Answer:
        body = ask.body
        if body["grant_type"] == "refresh_token":
            return self.rotate(body, provider)
        assert body["grant_type"] == "urn:ietf:params:oauth:grant-type:device_code"
        device = self.devices[body["device_code"]]
        if device.get("challenge"):
            digest = hashlib.sha256(body["code_verifier"].encode()).digest()
            assert base64.urlsafe_b64encode(digest).rstrip(b"=").decode() == device["challenge"]
        errors = {
            "pending": "authorization_pending",
            "denied": "access_denied",
            "slow": "slow_down",
            "old": "expired_token",
        }
        error = errors.get(device["state"])
        return (pending, {"error": error}) if error else (200, self.tokens(provider))

    def kimi_device(self, ask: Ask) -> Answer:
        assert ask.headers["x-msh-platform"] == "cliproxy"
        assert len(ask.headers["x-msh-device-id"]) == 32
        return self.device("kimi", {"client_id"}, ask)

    def kimi_token(self, ask: Ask) -> Answer:
        return self.device_token("kimi", ask, 200)

    def qwen_device(self, ask: Ask) -> Answer:
        return self.device("qwen", {"client_id", "scope", "code_challenge", "code_challenge_method"}, ask)

    def qwen_token(self, ask: Ask) -> Answer:
        status, answer = self.device_token("qwen", ask, 400)
        return status, {**answer, **({"resource_url": "portal.qwen.ai"} if status == 200 else {})}

    def xai_well_known_openid_configuration(self, _: Ask) -> Answer:
        return 200, {
            "device_authorization_endpoint": self.google.get("xai", f"{self.url}/xai/device"),
            "token_endpoint": f"{self.url}/xai/token",
        }

    def xai_device(self, ask: Ask) -> Answer:
        return self.device("xai", {"client_id", "scope"}, ask)

    def xai_token(self, ask: Ask) -> Answer:
        status, answer = self.device_token("xai", ask, 400)
        return status, {**answer, **({"id_token": self.id_token()} if status == 200 else {})}

    # iFlow

    def iflow_authorize(self, ask: Ask) -> tuple[int, str]:
        assert ask.query["loginMethod"] == "phone"
        ask.query["response_type"] = "code"
        return self.authorize(ask, "iflow")

    def iflow_token(self, ask: Ask) -> Answer:
        pair = base64.b64encode(f"{cp.LOGINS['iflow'].client_id}:open-secret".encode()).decode()
        if ask.headers.get("authorization") != f"Basic {pair}":
            return 401, {"error": "invalid_client"}
        if ask.body["grant_type"] == "refresh_token":
            return self.rotate(ask.body, "iflow")
        return self.redeem(ask.body, "iflow")

    def iflow_user(self, ask: Ask) -> Answer:
        token = ask.query["accessToken"]
        assert self.access[token] == "iflow"
        return 200, {"success": True, "data": {"apiKey": f"key-of-{token}", "email": self.email}}


def free_port() -> int:
    import socket  # noqa: PLC0415

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class WorldHandler(BaseHTTPRequestHandler):
    server: World
    protocol_version = "HTTP/1.1"

    def read_ask(self) -> Ask:
        url = urlsplit(self.path)
        raw = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
        form = "urlencoded" in (self.headers.get("content-type") or "")
        body = dict(parse_qsl(raw, strict_parsing=True)) if form else json.loads(raw or "{}")
        headers = {name.lower(): value for name, value in self.headers.items()}
        assert headers.get("user-agent", "").startswith(("cliproxy/", "Python-urllib", "curl", "test")), (
            headers
        )
        return Ask(self.command, url.path, dict(parse_qsl(url.query)), headers, body)

    def do_GET(self) -> None:
        world = self.server
        with world.lock:
            ask = self.read_ask()
            world.asks.append(ask)
            faults = world.faults[ask.path.strip("/")]
            fault = faults.pop(0) if faults else None
            status, answer = self.route(ask) if not fault or fault.spend else (0, {})
        if fault and not fault.status:
            self.close_connection = True
        elif fault:
            body = fault.body if isinstance(fault.body, bytes) else json.dumps(fault.body).encode()
            self.reply(fault.status, body, fault.headers)
        elif isinstance(answer, str):
            self.reply(status, b"", {"location": answer})
        else:
            self.reply(status, json.dumps(answer).encode(), {"content-type": "application/json"})

    do_POST = do_GET  # noqa: N815

    def route(self, ask: Ask) -> tuple[int, Any]:
        if ask.path.startswith("/google/projects/"):
            return self.server.google_service(ask)
        name = ask.path.strip("/").replace("/.", "/").replace("/", "_").replace(":", "_").replace("-", "_")
        name = name.replace("v1internal_operations_op_1", "v1internal_operations")
        handle: Callable[[Ask], tuple[int, Any]] | None = getattr(self.server, name, None)
        return handle(ask) if handle else (404, {"error": f"no {ask.path}"})

    def reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass
