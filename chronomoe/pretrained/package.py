"""The source files that an exported model needs, so that it loads where chronomoe is not installed.

transformers runs the code in a model's folder if the user allows it (`trust_remote_code=True`), and follows relative
imports within that one folder. So the export holds this project's own files, flattened, with their imports turned:
    from chronomoe.model.lm import LanguageModel   ->   from .model_lm import LanguageModel
"""

from __future__ import annotations

import re
from pathlib import Path

import chronomoe

ENTRY = "chronomoe.pretrained.modeling_chronomoe"
AUTO_MAP = {
    "AutoConfig": "configuration_chronomoe.ChronomoeConfig",
    "AutoModelForCausalLM": "modeling_chronomoe.ChronomoeForCausalLM",
}
"""What `config.json` must say for transformers to find the classes."""
NAME_ALL = """

if False:  # transformers 5.0 fetches the files that this one names, and none that those name
"""
IMPORT = re.compile(r"^(\s*from )(chronomoe\.[\w.]+)( import )", re.MULTILINE)


def flat_name(module: str) -> str:
    """`chronomoe.model.lm` is `model_lm`, and `chronomoe.pretrained.x` is `x`."""
    return module.removeprefix("chronomoe.").removeprefix("pretrained.").replace(".", "_")


def turn_imports(source: str) -> str:
    """The same source for a flat folder."""
    return IMPORT.sub(lambda found: f"{found[1]}.{flat_name(found[2])}{found[3]}", source)


def sources(entry: str = ENTRY) -> dict[str, str]:
    """File name -> text of the entry and of everything of this project that it imports, directly or not."""
    waiting, found = [entry], dict[str, str]()
    while waiting:
        module = waiting.pop()
        name = f"{flat_name(module)}.py"
        if name in found:
            continue
        text = Path(chronomoe.__file__).parent.joinpath(*module.split(".")[1:]).with_suffix(".py").read_text("utf-8")
        found[name] = turn_imports(text)
        waiting += [imported[2] for imported in IMPORT.finditer(text)]
    entered = f"{flat_name(entry)}.py"
    others = sorted(name.removesuffix(".py") for name in found.keys() - {entered})
    found[entered] += NAME_ALL + "".join(f"    from .{name} import *\n" for name in others)
    return found


def write_sources(folder: Path) -> None:
    for name, text in sources().items():
        (folder / name).write_text(text, encoding="utf-8")
