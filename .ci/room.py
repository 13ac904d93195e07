#!/usr/bin/env python3
"""Print one room of cliproxy.py, and of the rooms above it only the outline of what it uses.

python .ci/room.py ROUTING     the room, below the signatures of all that it uses
python .ci/room.py --list      the rooms in order, with their code lines and what they hold
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.append(str(ROOT / "tests"))

from check_layout import CONTENTS, Room, bound_names, code_lines, room_at, rooms_of  # noqa: E402


def used_above(tree: ast.Module, rooms: list[Room], number: int) -> dict[int, set[str]]:
    """Return what a room uses of the rooms above it: number of the room -> names.

    Names are enough: check_layout lets no local name hide a function or a class.
    """
    home = {name: room_at(rooms, top.lineno) for top in tree.body for name in bound_names(top)}
    inside = [top for top in tree.body if room_at(rooms, top.lineno) == number]
    found: dict[int, set[str]] = {}
    for name in {node.id for top in inside for node in ast.walk(top) if isinstance(node, ast.Name)}:
        if home.get(name, number) < number:
            found.setdefault(home[name], set()).add(name)
    return found


def outline(node: ast.stmt, lines: list[str], indent: str = "") -> Iterator[str]:
    """Yield the signature of a function or class and the first line of its docstring; else the first line."""
    if not isinstance(node, (ast.FunctionDef, ast.ClassDef)):
        text = lines[node.lineno - 1]
        yield text if node.lineno == node.end_lineno else f"{text.rstrip()} ..."
        return
    head = " ".join(line.strip() for line in lines[node.lineno - 1 : node.body[0].lineno - 1])
    doc = (ast.get_docstring(node) or "").partition("\n")[0]
    yield indent + head.replace("( ", "(").replace(", )", ")").replace(" )", ")")
    if doc:
        yield f'{indent}    """{doc}"""'
    if isinstance(node, ast.ClassDef):
        for part in node.body:
            if isinstance(part, ast.AnnAssign):
                yield lines[part.lineno - 1]
            elif isinstance(part, ast.FunctionDef) and part.name[0] != "_":
                yield from outline(part, lines, "    ")


def view(source: str, name: str) -> Iterator[str]:
    """Yield the lines of the view of a room."""
    tree, rooms, lines = ast.parse(source), rooms_of(source), source.splitlines()
    number = [room.name for room in rooms].index(name)
    used = used_above(tree, rooms, number)
    for above in sorted(used):
        yield f"# {rooms[above].name}: what {name} uses of it"
        for node in tree.body:
            if room_at(rooms, node.lineno) == above and used[above].intersection(bound_names(node)):
                yield from outline(node, lines)
        yield ""
    yield from lines[rooms[number].first - 2 if number else 0 : rooms[number].last - 1]


def listing(source: str) -> Iterator[str]:
    """Yield a line a room."""
    words = {
        line.split()[1]: line.split(maxsplit=2)[2].strip()
        for line in source.splitlines()
        if CONTENTS.match(line)
    }
    for room in rooms_of(source):
        yield f"{room.name:<13}{code_lines(source, room):>5}  {words.get(room.name, 'imports')}"


def main(words: list[str]) -> int:
    """Print what was asked for; return the exit status."""
    source = (ROOT / "cliproxy.py").read_text(encoding="utf-8")
    names = [room.name for room in rooms_of(source)]
    if words == ["--list"]:
        shown = listing(source)
    elif len(words) == 1 and words[0].upper() in names:
        shown = view(source, words[0].upper())
    else:
        sys.stderr.write(f"{__doc__}\nThe rooms: {' '.join(names)}\n")
        return 2
    try:
        sys.stdout.write("\n".join(shown) + "\n")
    except BrokenPipeError:
        sys.stderr.close()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
