"""The documentation says what is so: its commands parse, its files exist, its tree is the tree."""

from __future__ import annotations

import importlib
import re
import shlex
from pathlib import Path

import pytest

from chronomoe.config import compose_config, register
from chronomoe.sweep.command import compose_launcher, grid_points, read_sweep
from chronomoe.sweep.points import Composer

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
READ_ONLY_FLAGS = {"--help", "--cfg", "job", "--resolve", "-m"}


def commands() -> list[tuple[str, str]]:
    """(page, command line) of every `python …` line in a code block, continued lines joined."""
    found = []
    for page in PAGES:
        for block in re.findall(r"```bash\n(.*?)```", page.read_text(), flags=re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                for part in line.split("&&"):
                    if part.strip().startswith("python "):
                        found.append((page.name, part.split("#")[0].strip()))
    return found


def test_the_documentation_has_commands() -> None:
    assert len(commands()) >= 8


@pytest.mark.parametrize(("page", "command"), commands(), ids=lambda value: value)
def test_command_in_the_documentation_is_valid(page: str, command: str) -> None:
    words = shlex.split(command)
    if words[1] == "-m":
        module = importlib.import_module(words[2])
        if not hasattr(module, "main"):
            module = importlib.import_module(f"{words[2]}.__main__")
        assert callable(module.main)
        known = {name for name in vars(module) if name.endswith("Settings")}
        keys = {key for name in known for key in getattr(getattr(module, name), "__dataclass_fields__", {})} | {"run"}
        others = [word for word in words[3:] if "=" in word and word.split("=")[0] not in keys]
        if others:
            assert hasattr(module, "compose_config"), f"{words[2]} has no {others}"
            compose_config(others)
        return
    if words[1] == "sweep.py":
        check_sweep_command([word for word in words[2:] if word not in READ_ONLY_FLAGS])
        return
    if words[1].startswith("scripts/"):
        compile((ROOT / words[1]).read_text(), words[1], "exec")
        return
    assert words[1] == "train.py"
    overrides = [word for word in words[2:] if word not in READ_ONLY_FLAGS]
    axes = [override.split("=", 1)[1].split(",") if "-m" in words else [] for override in overrides]
    for index in range(max([1, *map(len, axes)])):
        point = [
            f"{override.split('=')[0]}={axis[min(index, len(axis) - 1)]}" if len(axis) > 1 else override
            for override, axis in zip(overrides, axes, strict=True)
        ]
        compose_config(
            [override for override in point if not override.startswith(("hydra.", "data.path", "ckpt_path"))]
        )


def check_sweep_command(arguments: list[str]) -> None:
    """Its sweep, its axes and its first and last point are what there is."""
    launching = [argument for argument in arguments if argument.startswith("launcher")]
    overrides = [argument for argument in arguments if argument not in launching]
    register()
    with Composer() as composer:
        compose_launcher(launching)
        if not overrides:
            return
        shared, axes, fixed = read_sweep(composer, overrides)
        if shared.sweep.sampler == "grid":
            assert grid_points(composer, fixed, axes, shared.sweep, ROOT)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_exist(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), f"{page.name} points at {target}"


def test_file_tree_of_the_readme_is_the_tree() -> None:
    readme = (ROOT / "README.md").read_text()
    tree = re.search(r"```text\n(train\.py.*?)```", readme, flags=re.DOTALL)
    assert tree is not None
    listed = set(re.findall(r"^\s*([\w/]+\.py)\b", tree.group(1), flags=re.MULTILINE))
    actual = {path.name for path in (ROOT / "chronomoe").rglob("*.py") if path.name != "__init__.py"}
    actual |= {"train.py", "sweep.py"}
    assert {Path(name).name for name in listed} == actual
