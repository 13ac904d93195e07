"""The view of one room that .ci/room.py prints."""

from __future__ import annotations

import ast

import pytest

import check_layout
import room
from support.paths import ROOT

SOURCE = (ROOT / "cliproxy.py").read_text(encoding="utf-8")
ROOMS = [one.name for one in check_layout.rooms_of(SOURCE)]

SMALL = '''"""A file.

    1. LOW   the facts   [pure]
    2. HIGH  the rest
"""

FREE = 1
############
# 1. LOW                    [pure]
############
# What everybody knows.

TABLE = {
    "a": 1,
}


class Row(NamedTuple):
    """One row.

    And more of it.
    """

    name: str

    def put(
        self,
        here: int,
    ) -> str:
        """Put it somewhere."""
        return self.name + unseen(here)


def unseen(here: int) -> str:
    return ""


############
# 2. HIGH
############
# The rest.


def high(row: Row) -> str:
    """Return the highest."""
    return row.put(TABLE["a"])
'''


def test_the_view_of_a_room() -> None:
    assert (
        "\n".join(room.view(SMALL, "HIGH"))
        == '''\
# LOW: what HIGH uses of it
TABLE = { ...
class Row(NamedTuple):
    """One row."""
    name: str
    def put(self, here: int) -> str:
        """Put it somewhere."""

############
# 2. HIGH
############
# The rest.


def high(row: Row) -> str:
    """Return the highest."""
    return row.put(TABLE["a"])'''
    )


def test_the_list_of_rooms() -> None:
    assert [line.split(maxsplit=2) for line in room.listing(SMALL)] == [
        ["HEADER", "5", "imports"], ["LOW", "16", "the facts   [pure]"], ["HIGH", "3", "the rest"],
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["HEADER", "CLAUDE", "SERVER"])
def test_a_room_is_shown_whole(name: str) -> None:
    shown = "\n".join(room.view(SOURCE, name))
    one = check_layout.rooms_of(SOURCE)[ROOMS.index(name)]
    whole = "\n".join(SOURCE.splitlines()[one.first - 1 : one.last - 1]).strip()
    assert whole in shown
    assert ast.parse(whole).body


def test_the_command_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert room.main(["tokens"]) == 0
    assert "def jwt_claims(" in capsys.readouterr().out
    assert room.main(["--list"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ROOMS
    assert room.main(["ATTIC"]) == 2
    assert "The rooms: HEADER PRIMITIVES" in capsys.readouterr().err
