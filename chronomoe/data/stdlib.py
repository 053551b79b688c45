"""The corpus that is on every machine: the running Python's own standard library, about 12 MB of real text.

Three domains. `code`: a source file. `prose`: its docstrings of at least 200 characters, and each help topic of
`pydoc_data`. `tables`: a source file that is mostly module-level literals (character maps, entity and alias tables).

A docstring that becomes prose is cut out of its file, so no text is there twice, and both documents carry the file as
their origin, so both land on the same side of the split. Sources are parsed, never imported.
"""

from __future__ import annotations

import ast
import gc
import inspect
import os
import platform
import sysconfig
import tokenize
import warnings
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from chronomoe.data.cache import file_signature
from chronomoe.data.document import Document
from chronomoe.data.settings import DataSettings
from chronomoe.settings import InputError

SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "lib-dynload", "__pycache__"}
HELP_TOPICS = "pydoc_data/topics.py"
MIN_PROSE_CHARS = 200
BLOCKS = ("body", "handlers", "orelse", "finalbody", "cases")
"""Fields that hold statements, or what holds statements, in the order they have in every kind of node."""
CUT = b'"""..."""'  # stands where a docstring was: the file still parses, also in front of a __future__ import


def signature(settings: DataSettings) -> Any:
    """Changes when the corpus may have: the Python version and every source's size and time of change."""
    root = _library_root()
    return [platform.python_version(), file_signature(source_files(root))]


def documents(settings: DataSettings) -> Iterator[Document]:
    return library_documents(_library_root())


def library_documents(root: Path) -> Iterator[Document]:
    """Every document of the library at `root`, in the order of the file names."""
    seen: set[str] = set()
    for path in source_files(root):
        origin = path.relative_to(root).as_posix()
        try:
            with tokenize.open(path) as file:
                source = file.read()
            tree = _parse(source)
        except (SyntaxError, UnicodeDecodeError):
            continue  # kept by the library as an example of a broken file
        if origin == HELP_TOPICS:
            yield from _help_topics(tree)
        else:
            yield from _module_documents(source, tree, origin, seen)


def _parse(source: str) -> ast.Module:
    collects = gc.isenabled()
    gc.disable()  # a syntax tree holds no garbage, and looking for it takes a quarter of the time
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old sources are not this project's business
            return ast.parse(source)
    finally:
        if collects:
            gc.enable()


def source_files(root: Path) -> list[Path]:
    """The library's Python files in sorted order: no test suites, no installed packages, nothing written per build."""
    found: list[Path] = []
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(name for name in subfolders if name not in SKIPPED_FOLDERS)
        names = (name for name in files if name.endswith(".py") and not name.startswith("_sysconfigdata"))
        found.extend(Path(folder, name) for name in names)
    return sorted(found)


def _library_root() -> Path:
    root = Path(sysconfig.get_path("stdlib"))
    if not (root / "os.py").is_file():
        raise InputError(f"data.source=stdlib: this Python has no sources in {root}: use data=text data.path=...")
    return root


def _module_documents(source: str, tree: ast.Module, origin: str, seen: set[str]) -> Iterator[Document]:
    docstrings = [found for found in map(_docstring, _statements(tree)) if found and len(found.text) >= MIN_PROSE_CHARS]
    code = _cut(source, [docstring.node for docstring in docstrings])
    if code.strip():
        yield Document(code, "tables" if _is_table(source, tree) else "code", origin)

    # The same docstring in two files would put one text on both sides of the split: only the first is kept.
    new = dict.fromkeys(text for found in docstrings if (text := inspect.cleandoc(found.text)) not in seen)
    seen.update(new)
    if new:
        yield Document("\n\n".join(new) + "\n", "prose", origin)


def _statements(tree: ast.Module) -> Iterator[ast.AST]:
    """The tree and its statements in the order of `ast.walk`, breadth first; about one node in seven."""
    found: deque[ast.AST] = deque([tree])
    while found:
        node = found.popleft()
        yield node
        for block in BLOCKS:
            found.extend(getattr(node, block, ()))


class Docstring(NamedTuple):
    node: ast.Constant
    text: str


def _docstring(node: ast.AST) -> Docstring | None:
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        match node.body:
            case [ast.Expr(value=ast.Constant(value=str(text)) as constant), *_]:
                return Docstring(constant, text)
    return None


def _cut(source: str, nodes: list[ast.Constant]) -> str:
    """`source` with each of `nodes` replaced by the mark `CUT`. Columns of the syntax tree count UTF-8 bytes."""
    data = source.encode()
    line_starts = [0]
    for line in data.splitlines(keepends=True):
        line_starts.append(line_starts[-1] + len(line))

    kept, end = [], 0
    for node in sorted(nodes, key=lambda node: node.lineno):
        kept += [data[end : line_starts[node.lineno - 1] + node.col_offset], CUT]
        end = line_starts[(node.end_lineno or 0) - 1] + (node.end_col_offset or 0)  # always set by ast.parse
    return b"".join([*kept, data[end:]]).decode()


def _is_table(source: str, tree: ast.Module) -> bool:
    """Whether more than half of the characters stand in module-level assignments of literals."""
    lines = source.splitlines(keepends=True)
    assigned = (node for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign) and _is_literal(node.value))
    covered = sum(len(line) for node in assigned for line in lines[node.lineno - 1 : node.end_lineno])
    return 2 * covered > len(source)


def _is_literal(node: ast.expr | None) -> bool:
    try:
        return node is not None and bool(ast.literal_eval(node) or True)
    except (ValueError, TypeError):
        return False


def _help_topics(tree: ast.Module) -> Iterator[Document]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            for name, text in ast.literal_eval(node.value).items():
                yield Document(text.strip() + "\n", "prose", f"{HELP_TOPICS}:{name}")
