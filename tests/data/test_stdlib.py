from __future__ import annotations

import ast
import inspect
import re
from collections import Counter
from pathlib import Path

import pytest

from chronomoe.data import stdlib
from chronomoe.data.corpus import hold_out
from chronomoe.data.settings import DataSettings
from chronomoe.data.stdlib import library_documents, source_files
from chronomoe.settings import InputError

LONG = "What it does, at length: " + "déjà vu, " * 30
MODULE = f'''"""{LONG}

    Indented.
"""
from __future__ import annotations


class Clock:
    """Short."""

    def tick(self): """{LONG} on one line."""; return "é"

    async def tock(self):
        r"""{LONG}
        with a continuation.
        """
'''


@pytest.fixture
def library(tmp_path: Path) -> Path:
    files = {
        "os.py": "import sys\n",
        "clock.py": MODULE,
        "clock_copy.py": MODULE + "x = 1\n",
        "alphabet.py": "import sys\nNAMES = {\n" + "".join(f"    'letter {i}': {i},\n" for i in range(50)) + "}\n",
        "broken.py": "def (:\n",
        "latin.py": "# -*- coding: latin-1 -*-\nname = 'é'\n",
        "test/test_clock.py": "assert True\n",
        "site-packages/installed.py": "assert True\n",
        "_sysconfigdata__linux.py": "build = {}\n",
        "pydoc_data/topics.py": "topics = {'if': 'The if statement\\n', 'for': 'The for statement\\n'}\n",
    }
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="latin-1" if name == "latin.py" else "utf-8")
    return tmp_path


def test_a_long_docstring_moves_from_the_code_to_the_prose(library):
    code, prose = [document for document in library_documents(library) if document.origin == "clock.py"]
    docstrings = [ast.get_docstring(node) for node in ast.walk(ast.parse(MODULE)) if hasattr(node, "body")]
    moved = [docstring for docstring in docstrings if docstring and len(docstring) > 200]
    assert len(moved) == 3
    assert (code.domain, prose.domain) == ("code", "prose")
    assert all(docstring in prose.text and docstring not in code.text for docstring in moved)
    assert LONG not in code.text
    assert '"""Short."""' in code.text
    assert 'return "é"' in code.text
    compile(code.text, "clock.py", "exec")  # also in front of the __future__ import


def test_a_docstring_in_two_files_becomes_prose_once(library):
    prose = [document.text for document in library_documents(library) if LONG[:50] in document.text]
    assert len(prose) == 1


def test_mostly_literal_files_are_tables_and_help_topics_are_prose(library):
    labels = {document.origin: document.domain for document in library_documents(library)}
    assert labels["alphabet.py"] == "tables"
    assert labels["os.py"] == "code"
    assert labels["pydoc_data/topics.py:if"] == labels["pydoc_data/topics.py:for"] == "prose"
    assert "pydoc_data/topics.py" not in labels


def test_tests_packages_and_broken_files_are_left_out_and_coding_cookies_obeyed(library):
    texts = {document.origin: document.text for document in library_documents(library)}
    assert not {"test/test_clock.py", "site-packages/installed.py", "_sysconfigdata__linux.py", "broken.py"} & set(
        texts
    )
    assert "name = 'é'" in texts["latin.py"]


def test_a_python_without_sources_is_told_what_else_to_use(monkeypatch, tmp_path):
    monkeypatch.setattr(stdlib.sysconfig, "get_path", lambda name: str(tmp_path))
    with pytest.raises(InputError, match=r"data.source=stdlib.*data=text"):
        stdlib.signature(DataSettings(source="stdlib"))


@pytest.fixture(scope="module")
def part_of_this_python():
    """The real library's packages and the files a to d: a few hundred documents."""
    root = stdlib._library_root()
    with pytest.MonkeyPatch.context() as patch:
        chosen = [
            path
            for path in source_files(root)
            if re.match(r"[a-d]\w*\.py|json|encodings|pydoc_data", str(path.relative_to(root)))
        ]
        patch.setattr(stdlib, "source_files", lambda root: chosen)
        return list(library_documents(root))


def test_this_python_has_all_three_domains_on_both_sides_of_the_split(part_of_this_python):
    for split in hold_out(part_of_this_python, 0.05):
        assert set(Counter(document.domain for document in split)) == {"code", "prose", "tables"}


def test_no_long_docstring_of_a_validation_file_is_anywhere_in_training(part_of_this_python):
    train, val = hold_out(part_of_this_python, 0.05)
    training_text = "\0".join(document.text for document in train)
    root = stdlib._library_root()
    checked = 0
    for origin in {document.origin for document in val if document.origin.endswith(".py")}:
        for node in ast.walk(ast.parse((root / origin).read_bytes())):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                docstring = ast.get_docstring(node, clean=False) or ""
                if len(docstring) >= stdlib.MIN_PROSE_CHARS:
                    assert inspect.cleandoc(docstring) not in training_text
                    checked += 1
    assert checked > 0


def test_statements_are_those_of_ast_walk_in_its_order():
    containers = ast.Module | ast.stmt | ast.excepthandler | ast.match_case
    nested = """
match x:
    case 1:
        class A:
            def f(self):
                try:
                    pass
                except* ValueError:
                    async def g(): "g"
                else:
                    for i in y:
                        def h(): "h"
                    else:
                        with z:
                            def k(): "k"
                finally:
                    while True:
                        if a: b = lambda: 0
                        elif c:
                            def m(): "m"
"""
    root = stdlib._library_root()
    for source in (nested, (root / "typing.py").read_text(), (root / "subprocess.py").read_text()):
        tree = ast.parse(source)
        assert list(stdlib._statements(tree)) == [node for node in ast.walk(tree) if isinstance(node, containers)]
