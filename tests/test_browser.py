"""The dashboard in a browser: each view with real traffic, and what people do there."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import cliproxy as cp
from support.logins import consent
from support.office import KEY, SECRET, OfficeMaker
from support.proxy import Proxy, ProxyMaker, keys_for
from support.upstream import Upstream, wait_for
from support.usage import reply
from support.world import World, free_port

DRIVER = shutil.which("chromedriver")
AXE = Path(os.environ.get("CLIPROXY_NODE_MODULES", "node_modules"), "axe-core", "axe.min.js").absolute()
VIEWS = ("Now", "Accounts", "Usage", "Models", "Clients", "Config", "Logs")
EVIL = "<img src=x onerror=hacked=1>"
CHAT = "/v1/chat/completions"
webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(not DRIVER, reason="needs Chromium and its driver")]
OPTIONS = (
    "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking",
    "disable-component-update", "disable-sync", "disable-dev-shm-usage",
)  # fmt: skip


class Tab:
    """A browser with one page open, and who sits before it."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def run(self, script: str, *values: Any) -> Any:
        return self.driver.execute_script(script, *values)

    @property
    def text(self) -> str:
        return str(self.run("return document.body.innerText"))

    def sees(self, *texts: str) -> None:
        try:
            wait_for(lambda: all(text in self.text for text in texts))
        except AssertionError:
            pytest.fail(f"{texts} are not all in {self.text!r}")

    def open(self, server: cp.Server, token: str | None = None) -> None:
        """Open the page by a link that is good for once."""
        token = server.desk.board.passes.link() if token is None else token
        self.driver.get(f"http://127.0.0.1:{server.port}/" + (f"?token={token}" if token else ""))

    def go(self, view: str) -> None:
        self.press(view, "nav a")
        wait_for(
            lambda: (
                self.run("const title = document.querySelector('h2'); return title && title.innerText")
                == view
            )
        )

    def press(self, text: str, kind: str = "button, a", within: str = "") -> None:
        """Click on what is called so, in the card whose text has `within`."""
        find = """
            const [text, kind, within] = arguments, cards = document.querySelectorAll("dialog[open], .card, header");
            const places = within ? [...cards].filter(card => card.innerText.includes(within)) : [document];
            const found = places.flatMap(place => [...place.querySelectorAll(kind)]).find(one => one.innerText === text);
            if (found) found.click();
            return Boolean(found);
        """
        wait_for(lambda: self.run(find, text, kind, within))

    def write(self, label: str, text: str) -> None:
        """Write into the field with a label."""
        fill = """
            const [label, text] = arguments;
            const named = [...document.querySelectorAll("label")].find(one => one.innerText.trim().startsWith(label));
            const field = named ? named.querySelector("input, select") : document.querySelector(`[aria-label="${label}"]`);
            if (!field) return false;
            field.value = text;
            for (const name of ["input", "change"]) field.dispatchEvent(new Event(name, {bubbles: true}));
            return true;
        """
        wait_for(lambda: self.run(fill, label, text))

    def faults(self) -> list[Any]:
        """Return what axe finds serious."""
        self.driver.execute_cdp_cmd("Runtime.evaluate", {"expression": AXE.read_text(encoding="utf-8")})
        found = self.driver.execute_cdp_cmd(
            "Runtime.evaluate",
            {"expression": "axe.run().then(told => JSON.stringify(told.violations))", "awaitPromise": True},
        )
        rows = json.loads(found["result"]["value"])
        return [(row["id"], row["nodes"]) for row in rows if row["impact"] in {"serious", "critical"}]

    def complaints(self) -> list[str]:
        """Return what the browser has against the page."""
        lines = [line["message"] for line in self.driver.get_log("browser") if line["level"] == "SEVERE"]
        return [line for line in lines if "Failed to load resource" not in line]


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    options = webdriver.ChromeOptions()
    for option in (*OPTIONS, f"user-data-dir={tmp_path_factory.mktemp('chromium')}", "window-size=1280,900"):
        options.add_argument(f"--{option}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield found
    found.quit()


@pytest.fixture
def tab(driver: Any) -> Iterator[Tab]:
    driver.get("about:blank")
    yield Tab(driver)
    driver.get("about:blank")


@pytest.fixture
def busy(make_proxy: ProxyMaker, upstream: Upstream) -> Proxy:
    """A proxy that has served some requests, and goes on to write down what comes."""
    proxy = make_proxy()
    ask(proxy, upstream, "up-chat", "codex_cli_rs/0.50.0")
    ask(proxy, upstream, "up-claude", f"{EVIL}/1.0")
    proxy.ask(CHAT, {"model": EVIL, "messages": []})
    upstream.reply({"error": {"message": f"wrong {EVIL}"}}, 400)
    proxy.ask(CHAT, {"model": "up-chat", "messages": []})
    proxy.rows(4)
    threading.Thread(target=proxy.app.scribe.run, daemon=True).start()
    return proxy


def ask(proxy: Proxy, upstream: Upstream, model: str, agent: str) -> None:
    upstream.replies.append(reply(model.removeprefix("up-"), stream=False))
    body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
    assert proxy.ask(CHAT, body, {"user-agent": agent}).status == 200


# -- the views ---------------------------------------------------------------------------


def test_each_view_shows_what_there_is(tab: Tab, busy: Proxy) -> None:
    tab.open(busy.server)
    tab.sees("requests today", "codex 0.50", "up-chat", "up-claude", "404")
    assert tab.run("return location.href") == f"{busy.url}/"  # without the token
    tab.go("Accounts")
    tab.sees("claude-api-key[0]", "ready", "Today: 1 request,")
    tab.go("Usage")
    tab.sees("Share of tokens by model", "up-claude: ", "total")
    assert tab.run("return document.querySelectorAll('figure rect').length") >= 2
    tab.go("Models")
    tab.sees("up-gemini", "gemini-api-key[0]")
    tab.go("Clients")
    tab.sees(f'"ANTHROPIC_BASE_URL": "{busy.url}"', "claude -p", "open-webui")
    tab.go("Config")
    tab.sees("good")
    tab.go("Logs")
    tab.sees("logging-to-file")
    assert tab.complaints() == []


def test_what_others_write_is_only_ever_text(tab: Tab, busy: Proxy) -> None:
    file = {"type": "codex", "email": EVIL, "access_token": "x", "disabled": True}
    (busy.auth_dir / "codex-evil.json").write_text(json.dumps(file), encoding="utf-8")
    busy.app.take_over()
    tab.open(busy.server)
    tab.sees(EVIL)
    tab.press("Details", within="400")
    for view in VIEWS:
        tab.go(view)
    assert tab.run("return [window.hacked, document.querySelectorAll('img').length]") == [None, 0]
    assert tab.complaints() == []


def test_a_request_tells_its_attempts(tab: Tab, busy: Proxy) -> None:
    tab.open(busy.server)
    tab.write("Filter", "wrong")
    wait_for(lambda: tab.run("return document.querySelectorAll('#requests tbody tr').length") == 1)
    tab.press("Details")
    tab.sees("Attempt 1: up[0]", f"wrong {EVIL}", "status 400")


def test_requests_are_seen_as_they_end(tab: Tab, busy: Proxy, upstream: Upstream) -> None:
    tab.open(busy.server)
    tab.sees("codex 0.50")
    wait_for(lambda: busy.server.working)  # it listens
    ask(busy, upstream, "up-chat", "curl/9.9")
    tab.sees("curl 9.9")


def test_a_model_is_tried(tab: Tab, busy: Proxy) -> None:
    tab.open(busy.server)
    tab.go("Models")
    tab.write("Text", "a word to be repeated")
    tab.press("Send")
    wait_for(lambda: "a word to be repeated" in tab.run("return document.querySelector('pre').innerText"))
    tab.sees("[echo, ")


@pytest.mark.skipif(not AXE.exists(), reason="needs axe-core, in CLIPROXY_NODE_MODULES")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_everybody_can_use_it(tab: Tab, busy: Proxy, scheme: str) -> None:
    feature = {"name": "prefers-color-scheme", "value": scheme}
    tab.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [feature]})
    tab.open(busy.server, token="")
    tab.sees("Management key")
    assert tab.faults() == []
    tab.open(busy.server)
    for view in VIEWS:
        tab.go(view)
        assert tab.faults() == [], view


def test_it_fits_on_a_narrow_screen(tab: Tab, busy: Proxy) -> None:
    size = {"width": 320, "height": 700, "deviceScaleFactor": 1, "mobile": False}
    tab.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        tab.open(busy.server)
        for view in VIEWS:
            tab.go(view)
            assert tab.run("return document.documentElement.scrollWidth") <= 320, view
    finally:
        tab.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_nobody_at_all_is_told_what_to_do(tab: Tab, make_office: OfficeMaker) -> None:
    tab.open(make_office("debug: false\n").server)
    tab.sees("No request yet", "Nothing runs.")
    for view, text in (
        ("Accounts", "No account yet"),
        ("Usage", "Nothing was asked"),
        ("Models", "No account offers"),
    ):
        tab.go(view)
        tab.sees(text)


# -- what people do ----------------------------------------------------------------------


def test_a_login_is_finished_from_the_page(tab: Tab, make_office: OfficeMaker, world: World) -> None:
    office = make_office(f"providers: {json.dumps(world.config()['providers'])}\n")
    tab.open(office.server)
    tab.go("Accounts")
    tab.write("Provider", "claude")
    tab.press("Log in")
    tab.sees("Open the provider's page")
    url = tab.run("return document.querySelector('dialog pre').innerText")
    tab.write("Address of the last page", consent(url))
    tab.press("Use this address")
    tab.sees("claude-ann@example.com", "Logged in.")
    assert [one.type for one in office.app.store.credentials()] == ["claude"]


def test_a_login_by_device_shows_its_code(tab: Tab, make_office: OfficeMaker, world: World) -> None:
    office = make_office(f"providers: {json.dumps(world.config()['providers'])}\n")
    tab.open(office.server)
    tab.go("Accounts")
    tab.write("Provider", "qwen")
    tab.press("Log in")
    tab.sees("WXYZ")
    assert tab.run("return document.querySelectorAll('dialog .qr path').length") == 1
    tab.press("Close")


def test_an_account_that_is_paused_is_not_asked(tab: Tab, make_proxy: ProxyMaker) -> None:
    proxy = make_proxy()
    file = {
        "type": "codex",
        "email": "ann@example.com",
        "access_token": "x",
        "expired": "2099-01-01T00:00:00Z",
    }
    (proxy.auth_dir / "codex-ann.json").write_text(json.dumps(file), encoding="utf-8")
    proxy.app.take_over()

    def served() -> bool:
        return any(one.name == "codex-ann.json" for one in proxy.app.router.offers.accounts)

    assert served()
    tab.open(proxy.server)
    tab.go("Accounts")
    tab.press("Pause", within="codex-ann.json")
    tab.sees("paused")
    assert not served()
    tab.press("Resume", within="codex-ann.json")
    wait_for(served)


def test_settings_are_checked_as_they_are_typed_and_saved_with_their_comments(
    tab: Tab, make_office: OfficeMaker
) -> None:
    office = make_office("# mine\ndebug: false # quiet\n")
    tab.open(office.server)
    tab.go("Config")
    tab.write("Settings", "# mine\ndebug: perhaps # quiet\n")
    tab.sees('debug: "perhaps" is not possible')
    tab.write("Settings", "# mine\ndebug: true # quiet\n")
    tab.press("Save")
    tab.sees("Saved, and in force.")
    assert office.text == "# mine\ndebug: true # quiet\n"
    assert office.app.config["debug"] is True


def test_a_key_lets_in_and_a_wrong_one_does_not(tab: Tab, make_office: OfficeMaker) -> None:
    office = make_office(SECRET)
    tab.open(office.server, token="")
    tab.write("Management key", "wrong")
    tab.press("Enter")
    tab.sees("invalid management key")
    tab.write("Management key", KEY)
    tab.press("Enter")
    tab.sees("No request yet")


def test_the_page_finds_a_server_again_that_was_away(tab: Tab, tmp_path: Path, upstream: Upstream) -> None:
    settings = {**keys_for(upstream), "port": free_port()}
    (tmp_path / "auth").mkdir()
    first = Proxy(tmp_path, upstream, settings, {})
    tab.open(first.server)
    tab.sees("No request yet")
    first.close()
    tab.sees("The server does not answer")
    again = Proxy(tmp_path, upstream, settings, {})
    threading.Thread(target=again.app.scribe.run, daemon=True).start()
    try:
        wait_for(lambda: "does not answer" not in tab.text)  # its session has outlived the restart
        ask(again, upstream, "up-chat", "curl/9.9")
        tab.sees("curl 9.9")
    finally:
        again.app.scribe.stop()
        again.close()
