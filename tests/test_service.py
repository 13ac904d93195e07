"""SERVICE: what keeps the proxy running, on three kinds of systems, and completion."""

from __future__ import annotations

import plistlib
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

import cliproxy as cp
from support.paths import ROOT

ODD = (
    "/opt/my python/bin/python3",
    "-u",
    "/home/me/50% of $it/cliproxy.py",
    "serve",
    "--config",
    "/home/me/a b.yaml",
)
PLAN = cp.Plan(ODD, Path("/home/me"), "me")


def test_a_unit_quotes_what_systemd_would_read() -> None:
    unit = cp.systemd_unit(PLAN).decode()
    command = '"/opt/my python/bin/python3" -u "/home/me/50%% of $$it/cliproxy.py" serve --config "/home/me/a b.yaml"'
    assert f"ExecStart={command}\n" in unit
    assert f"RestartPreventExitStatus={cp.CONFIG_EXIT}\n" in unit
    assert "WantedBy=default.target" in unit
    system = cp.systemd_unit(PLAN._replace(system=True)).decode()
    assert "User=me\n" in system
    assert "ReadWritePaths=/home/me/.cli-proxy-api\n" in system
    assert "WantedBy=multi-user.target" in system


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="there is no systemd here")
@pytest.mark.parametrize("system", [False, True], ids=["user", "system"])
def test_systemd_takes_the_unit(tmp_path: Path, system: bool) -> None:
    path = tmp_path / "cliproxy.service"
    command = (sys.executable, "-u", str(ROOT / "cliproxy.py"), "serve")
    path.write_bytes(cp.systemd_unit(cp.Plan(command, tmp_path, "root", system)))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(path)], capture_output=True, text=True, check=False
    )
    assert "cliproxy.service" not in done.stderr
    assert done.returncode == 0


def test_the_other_systems_get_what_they_can_read() -> None:
    plist = plistlib.loads(cp.launchd_plist(PLAN))
    assert plist["ProgramArguments"] == list(ODD)
    assert plist["KeepAlive"] == {"SuccessfulExit": False}
    assert "UserName" not in plist
    task = ET.fromstring(
        cp.windows_task(PLAN._replace(user="DOMAIN\\m&e")).decode("utf-16").partition("?>")[2]
    )
    names = {"t": "http://schemas.microsoft.com/windows/2004/02/mit/task"}
    assert task.findtext(".//t:Principal/t:UserId", namespaces=names) == "DOMAIN\\m&e"
    assert task.findtext(".//t:Arguments", namespaces=names) == subprocess.list2cmdline(ODD[1:])


@pytest.mark.parametrize("platform", [*cp.MANAGERS])
@pytest.mark.parametrize("act", cp.ACTS)
def test_every_act_has_its_commands(platform: str, act: str) -> None:
    manager = cp.MANAGERS[platform]
    for words in cp.act_commands(manager, act, PLAN._replace(home=Path("/home/a b"))):
        assert not [word for word in words if "{" in word]
        assert words[0] in {"systemctl", "journalctl", "launchctl", "tail", "schtasks"}
    if act == "install":
        path = str(manager.path(PLAN))
        assert path in cp.show_act(manager, act, PLAN)


def test_install_start_and_remove(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a stand-in for the service manager, which writes down what it is told."""
    told = tmp_path / "told"
    acts = {
        "install": (f"{sys.executable} {tmp_path / 'act.py'} {told} install",),
        "stop": ("no-such-program-here",),
    }
    (tmp_path / "act.py").write_text(
        "import sys; open(sys.argv[1], 'a').write(sys.argv[2])", encoding="utf-8"
    )
    manager = cp.Manager(lambda _: tmp_path / "units" / "x.service", cp.systemd_unit, acts, "hint for {user}")
    monkeypatch.setitem(cp.MANAGERS, sys.platform, manager)
    lines: list[str] = []
    with pytest.raises(cp.ProxyError, match="install"):
        cp.manage_service("start", PLAN, lines.append)
    assert cp.manage_service("install", PLAN, lines.append) == 0
    assert told.read_text(encoding="utf-8") == "install"
    assert (tmp_path / "units" / "x.service").read_bytes() == cp.systemd_unit(PLAN)
    with pytest.raises(cp.ProxyError, match="no no-such-program-here here"):
        cp.manage_service("stop", PLAN, lines.append)
    assert cp.manage_service("uninstall", PLAN, lines.append) == 0
    assert not (tmp_path / "units" / "x.service").exists()
    assert lines[1] == "hint for me"


def test_a_file_in_a_cache_is_no_service(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cp, "__file__", "/home/me/.cache/uv/archive-v0/x/cliproxy.py")
    with pytest.raises(cp.ProxyError, match="copy cliproxy"):
        cp.service_command(None)


@pytest.mark.parametrize("act", ["docker", "install"])
def test_the_command_prints(act: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["service", act] if act == "docker" else ["service", act, "--print"]
    assert cp.main(words) == 0
    said = capsys.readouterr().out
    assert ("HEALTHCHECK" if act == "docker" else "serve") in said


@pytest.mark.parametrize("shell", [*cp.COMPLETIONS])
def test_completion_names_all_commands(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cp.main(["completion", shell]) == 0
    said = capsys.readouterr().out
    assert all(command.name in said for command in cp.COMMANDS)
    assert "--no-browser" in said


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("bash"), reason="there is no bash here")
def test_bash_completes() -> None:
    script = cp.completion("bash", {"serve": ["--port", "--host"], "models": ["--refresh"]})
    ask = ""
    for line, at in (("cliproxy serve --p", 2), ("cliproxy m", 1)):
        ask += f'\nCOMP_WORDS=({line}); COMP_CWORD={at}; _cliproxy; echo "${{COMPREPLY[@]}}"'
    done = subprocess.run(["bash", "-c", script + ask], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["--port", "models"]


def serve(*words: str) -> subprocess.Popen[str]:
    command = [sys.executable, str(ROOT / "cliproxy.py"), "serve", *words]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.slow
def test_a_bad_config_ends_with_a_status_of_its_own(tmp_path: Path) -> None:
    """So that the service is not started again and again."""
    path = tmp_path / "config.json"
    path.write_text('{"port": "x"}', encoding="utf-8")
    with serve("--config", str(path)) as process:
        _, said = process.communicate(timeout=60)
    assert process.returncode == cp.CONFIG_EXIT
    assert "port" in said


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="there is no SIGHUP here")
def test_a_hangup_reloads_and_does_not_end(tmp_path: Path) -> None:
    path = tmp_path / "config.json"
    settings: dict[str, Any] = {"port": 0, "auth-dir": str(tmp_path)}
    path.write_text(cp.dumps_text(settings), encoding="utf-8")
    with serve("--config", str(path)) as process:
        assert process.stdout is not None
        assert "listens on" in process.stdout.readline()
        process.send_signal(signal.SIGHUP)
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)
    assert process.returncode == 0
