"""The four dialect rooms tell one story: the same sections, and the same names in the same order."""

from __future__ import annotations

import ast
import inspect
import re

import pytest

import check_layout
import cliproxy as cp
from support.paths import ROOT

SOURCE = (ROOT / "cliproxy.py").read_text(encoding="utf-8")
TREE, ROOMS = ast.parse(SOURCE), check_layout.rooms_of(SOURCE)
DIALECTS = ["claude", "chat", "responses", "gemini"]
OUTLINE = {  # section -> its names, of X; one in parentheses may be missing
    "tables": "X_PARAMS X_PARAMS_WRITE (X_MODES) (X_MODES_WRITE) X_FINISH X_FINISH_WRITE X_USAGE x_own",
    "parts and messages, read": "x_read_part x_read_message",
    "parts and messages, written": "x_write_part x_write_message",
    "requests, read": "x_read_tool x_read_choice x_read_format x_read_params (x_read_thinking) x_read_request",
    "requests, written": "x_write_tool x_write_choice x_write_format x_write_params (x_write_thinking) x_write_request",
    "answers, read": "x_read_usage x_read_citation XReader (X_EVENTS) x_read_response x_read_stream",
    "answers, written": "x_write_usage x_write_citation XWriter x_write_response x_write_stream",
    "errors": "X_KINDS x_error x_read_error x_write_error",
}
SECTION = re.compile(r"^# --[- ]+(.*?) -+$", re.MULTILINE)


ALIKE = [
    "x_read_request", "x_write_request", "x_read_usage", "x_write_usage", "x_read_response", "x_read_stream",
    "x_write_response", "x_write_stream", "x_error", "x_read_error", "x_write_error",
]  # fmt: skip


def lines_of(dialect: str) -> list[str]:
    room = next(room for room in ROOMS if room.name == dialect.upper())
    return SOURCE.splitlines()[room.first - 1 : room.last]


def sections_of(dialect: str) -> dict[str, list[str]]:
    """Return the names that a room defines, by section, in their order."""
    room = next(room for room in ROOMS if room.name == dialect.upper())
    heads = [
        (room.first + number, found[1])
        for number, line in enumerate(lines_of(dialect))
        if (found := SECTION.match(line))
    ]
    sections: dict[str, list[str]] = {head: [] for _, head in heads}
    for top in TREE.body:
        above = [head for line, head in heads if line <= top.lineno <= room.last]
        if above:
            sections[above[-1]] += check_layout.bound_names(top)
    return sections


def names(dialect: str, cells: str) -> list[str]:
    """Put a dialect for X; what need not be there keeps its parentheses."""
    for pattern, name in (("X_", f"{dialect.upper()}_"), ("x_", f"{dialect}_"), ("X", dialect.capitalize())):
        cells = re.sub(rf"(?<!\w){pattern}", name, cells)
    return cells.split()


@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_sections(dialect: str) -> None:
    assert list(sections_of(dialect)) == list(OUTLINE)
    heads = [line for line in lines_of(dialect) if SECTION.match(line)]
    assert {(line[:6], len(line)) for line in heads} == {(f"# -- {line[5]}", 88) for line in heads}


@pytest.mark.parametrize("section", OUTLINE)
@pytest.mark.parametrize("dialect", DIALECTS)
def test_the_names_of_a_section(dialect: str, section: str) -> None:
    cells = names(dialect, OUTLINE[section])
    outline = [cell.strip("()") for cell in cells]
    there = [name for name in sections_of(dialect)[section] if name in outline]
    needed = [name for name, cell in zip(outline, cells) if name in there or "(" not in cell]
    assert there == needed


def types_of(name: str) -> list[str]:
    signature = inspect.signature(getattr(cp, name))
    return [str(value.annotation) for value in signature.parameters.values()] + [
        str(signature.return_annotation)
    ]


@pytest.mark.parametrize("name", ALIKE)
def test_what_they_take_and_return(name: str) -> None:
    first, *others = (types_of(name.replace("x_", f"{dialect}_", 1)) for dialect in DIALECTS)
    assert [first] * 3 == others


def test_what_they_call_alike_stands_in_the_same_section() -> None:
    places: dict[str, set[str]] = {}
    for dialect in DIALECTS:
        prefix = re.compile(f"{dialect}_|{dialect.upper()}_|{dialect.capitalize()}(?=[A-Z])")
        for section, found in sections_of(dialect).items():
            for name in found:
                places.setdefault(prefix.sub("X_" if name.isupper() else "x_", name), set()).add(section)
    assert {name: sections for name, sections in places.items() if len(sections) > 1} == {}
