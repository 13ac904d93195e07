"""A home folder, and commands in it: in a pseudo-terminal, or in this process."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import cliproxy as cp
from support.paths import ROOT
from support.upstream import DEADLINE
from support.world import World

Json = cp.Json


class Session:
    """A command in a pseudo-terminal of 100 x 60, over SSH if nothing else is said, and its user."""

    def __init__(self, home: Path, *words: str, **environ: str) -> None:
        import fcntl  # noqa: PLC0415 -- POSIX only
        import pty  # noqa: PLC0415
        import struct  # noqa: PLC0415
        import termios  # noqa: PLC0415

        self.mine, theirs = pty.openpty()
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 60, 100, 0, 0))
        shell = {
            "SSH_CONNECTION": "10.0.0.1 51000 10.0.0.2 22",
            "USER": "ann",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        kept = {name: value for name, value in os.environ.items() if not name.endswith("API_KEY")}
        own = 'exec "$@" <"$0" >"$0" 2>&1'  # to open it makes it the terminal that Ctrl-C acts on
        self.process = subprocess.Popen(
            ["/bin/sh", "-c", own, os.ttyname(theirs), sys.executable, str(ROOT / "cliproxy.py"), *words],
            env={**kept, **shell, "HOME": str(home), **environ}, cwd=home, start_new_session=True,
        )  # fmt: skip
        self.theirs = theirs  # kept open until the other side has opened it
        self.text, self.decoder = "", codecs.getincrementaldecoder("utf-8")()

    def read(self) -> str:
        if self.theirs >= 0 and self.text:
            os.close(self.theirs)
            self.theirs = -1
        text = self.decoder.decode(os.read(self.mine, 4096))
        self.text = (self.text + text).replace("\r\n", "\n")
        return text

    def read_to(self, pattern: str) -> str:
        while not (match := re.search(pattern, self.text, re.MULTILINE)):
            self.read()
        return str(match[0])

    def type(self, text: str) -> None:
        os.write(self.mine, text.encode())

    def end(self) -> int:
        with contextlib.suppress(OSError):  # how Linux says that the other side is closed
            while self.read():
                pass
        os.close(self.mine)
        return self.process.wait(timeout=DEADLINE)


class Home:
    """A home folder with a config that points every provider at the world.

    What asks nothing and serves nobody runs in this process: an interpreter a command takes a second.
    """

    def __init__(self, folder: Path, world: World, **config: Any) -> None:
        self.folder, self.auth = folder, folder / ".cli-proxy-api"
        self.auth.mkdir(mode=0o700)
        settings = {"providers": world.config().data["providers"], "port": 0, **config}
        self.write(settings)
        self.settings = settings

    def write(self, settings: Json) -> None:
        (self.auth / "config.json").write_text(json.dumps(settings))

    def start(self, *words: str, **environ: str) -> Session:
        return Session(self.folder, *words, **environ)

    def run(self, *words: str) -> tuple[int, str]:
        """Run a command to its end in this process; return its exit status and all that it says."""
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            try:
                status = cp.main(list(words))
            except SystemExit as ended:  # argparse
                status = int(ended.code or 0)
        return status, said.getvalue()

    def shell(self, *words: str) -> tuple[int, str]:
        """Run a command in a terminal of its own."""
        session = self.start(*words)
        status = session.end()
        return status, session.text

    def files(self) -> list[str]:
        return sorted(path.name for path in self.auth.glob("*-*.json"))
