"""The structure of the package in numbers: rooms, lines, import circles.

    python scripts/structure.py [PATH/TO/src]

A line that holds code and a comment is code. Circles are groups of modules that import one another,
within functions and for type checking included.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from collections import Counter, defaultdict
from pathlib import Path

KINDS = ("code", "docstring", "comment", "blank")
SILENT = {tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


def lines_of(text: str) -> Counter[str]:
    """How many lines of each kind a module has."""
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            docstrings |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    code: set[int] = set()
    comments: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            comments.add(token.start[0])
        elif token.type not in SILENT:
            code |= set(range(token.start[0], token.end[0] + 1))
    total, code = len(text.splitlines()), code - docstrings
    found = Counter(code=len(code), docstring=len(docstrings), comment=len(comments - code))
    found["blank"] = total - found.total()
    return found


def imports_of(name: str, text: str, modules: set[str]) -> set[str]:
    """The modules of the package that a module imports, anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (inner & modules) or {node.module}
    return (found & modules) - {name}


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules each of which leads to every other."""

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        todo = [start]
        while todo:
            new = graph[todo.pop()] - seen
            seen |= new
            todo += new
        return seen

    leads = {name: reachable(name) for name in graph}
    groups = {
        frozenset(other for other in leads[name] if name in leads[other])
        for name in graph
        if name in leads[name]
    }
    return sorted(map(sorted, groups))


def main(source: Path) -> None:
    """Print the structure of the packages in ``source``."""
    texts = {path.relative_to(source): path.read_text("utf-8") for path in source.rglob("*.py")}
    if not texts:
        sys.exit(f"no Python files in {source}")
    names = {path: ".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in texts}
    modules = set(names.values())
    graph = {names[path]: imports_of(names[path], text, modules) for path, text in texts.items()}
    rooms: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for path, text in texts.items():
        rooms[str(path.parent)] += lines_of(text) + Counter(modules=1)
    rooms["total"] = sum(rooms.values(), Counter())
    print(f"{'room':32}" + "".join(f"{kind:>10}" for kind in ("modules", *KINDS)))
    for room, counted in sorted(rooms.items(), key=lambda item: (item[0] == "total", item[0])):
        print(f"{room:32}" + "".join(f"{counted[kind]:10,}" for kind in ("modules", *KINDS)))
    longest = max(texts, key=lambda path: len(texts[path].splitlines()))
    root = [path for path in texts if path.parent == Path("gradlab") and path.name[0] != "_"]
    print(f"modules at the root: {len(root)}: {', '.join(sorted(p.stem for p in root))}")
    print(f"longest module: {longest}, {len(texts[longest].splitlines())} lines")
    print(f"import circles: {circles(graph) or 'none'}")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "src")
