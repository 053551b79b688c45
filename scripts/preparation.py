"""What happens before the first step: text prepared in MB/s, and the seconds of a start whose corpus is ready.

    python scripts/preparation.py [a file or folder of text] [--trees . ../before] [--json numbers.json]
                                  [--texts 5] [--starts 5]     repeats of each kind of measurement; 0 leaves it out

Every measurement is a process of its own; each repeat measures every tree (checkouts of this project) once, one after
the other, so that a machine that slows down slows them all. Medians, with ranges. A megabyte is 10^6 bytes of UTF-8.
The page cache is warm: the first repeat, which warms it, is thrown away.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import re
import runpy
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

Numbers = dict[str, float]
STAGES = ("interpreter, torch", "config", "preflight", "lightning, corpus, model", "assembly", "first step")
SECONDS = (*STAGES, "process start to first step", "--help", "a typo")


# In the measured process: `chronomoe` is the tree's.


def text_rates(source: str) -> Numbers:
    """MB/s of each part of preparing `source`: `stdlib`, or a file or folder."""
    from chronomoe.data import packing
    from chronomoe.data.corpus import hold_out, read_documents
    from chronomoe.data.settings import DataSettings
    from chronomoe.data.tokenizer import save_tokenizer, train_tokenizer

    with tempfile.TemporaryDirectory() as folder:
        where: Any = {"source": "stdlib"} if source == "stdlib" else {"source": "text", "path": source}
        settings = DataSettings(**where, cache_dir=f"{folder}/cache", tokenizer=f"{folder}/tokenizer")
        seconds: Numbers = {}
        documents = timed("reading", seconds, lambda: read_documents(settings))
        train, val = hold_out(documents, settings.val_fraction)
        texts = [document.text for document in train]
        language = timed("training the BPE", seconds, lambda: train_tokenizer(texts, settings.vocab_size))
        save_tokenizer(language, Path(folder, "tokenizer"))
        Path(folder, "packed").mkdir()
        processor = time.process_time()
        splits = {"train": train, "val": val}
        packed = Path(folder, "packed")
        timed("tokenising, packing", seconds, lambda: packing.write_corpus(packed, splits, language, "measured"))
        processor = time.process_time() - processor
        prepare = packing.prepare_corpus
        timed("all but the BPE", seconds, lambda: prepare(settings, model_vocab_size=settings.vocab_size, quiet=True))
        megabytes = sum(len(document.text.encode()) for document in documents) / 1e6
    rates = {name: megabytes / spent for name, spent in seconds.items()}
    return {"MB": megabytes, **rates, "packing, per core-second": megabytes / processor}


def timed(name: str, seconds: Numbers, function: Callable[[], Any]) -> Any:
    started = time.perf_counter()
    result = function()
    seconds[name] = time.perf_counter() - started
    return result


def run_until_first_step(tree: str, overrides: list[str]) -> None:
    """`train.py`, which prints when each stage ended (monotonic clock) and leaves after its first optimizer step."""
    ends: list[float] = []

    def mark() -> None:
        ends.append(time.monotonic())

    def leave(*arguments: Any) -> None:
        mark()
        print(json.dumps(ends), flush=True)
        os._exit(0)

    def marked(function: Callable) -> Callable:
        def call(*arguments: Any, **options: Any) -> Any:
            mark()
            try:
                return function(*arguments, **options)
            finally:
                mark()

        return call

    def before_run(module: Any) -> None:
        module.preflight = marked(module.preflight)

    def assembly(module: Any) -> None:
        from torch.optim.optimizer import register_optimizer_step_post_hook

        module.assemble = marked(module.assemble)
        register_optimizer_step_post_hook(leave)

    after_import("chronomoe.entry", lambda module: mark())
    after_import("chronomoe.before_run", before_run)
    after_import("chronomoe.assembly", assembly)
    sys.argv = ["train.py", *overrides]
    runpy.run_path(f"{tree}/train.py", run_name="__main__")


def after_import(name: str, act: Callable[[Any], None]) -> None:
    """Call `act` with the module `name` once it has been imported, by whomever."""

    class Finder:
        def find_spec(self, wanted: str, path: Any, target: Any = None) -> Any:
            if wanted != name:
                return None
            sys.meta_path.remove(self)
            spec = importlib.util.find_spec(name)
            assert spec is not None
            assert spec.loader is not None
            execute = spec.loader.exec_module

            def execute_and_act(module: Any) -> None:
                execute(module)
                act(module)

            spec.loader.exec_module = execute_and_act  # type: ignore[method-assign]
            return spec

    sys.meta_path.insert(0, Finder())


# In the measuring process.


def process(tree: Path, *command: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(tree), "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [sys.executable, *command], cwd=tree, env=environment, capture_output=True, text=True, check=True
    )


def start(tree: Path, folder: str, *, traced: bool = False) -> tuple[Numbers, str]:
    """Seconds of each stage of a start, and what `-X importtime` wrote if it was asked to."""
    flags = ("-X", "importtime") if traced else ()
    overrides = (f"data.cache_dir={folder}/cache", f"hydra.run.dir={tempfile.mkdtemp(dir=folder)}")
    began = time.monotonic()
    done = process(tree, *flags, __file__, "--start", str(tree), *overrides)
    ends = json.loads(done.stdout.splitlines()[-1])
    seconds = [end - begin for begin, end in zip([began, *ends], ends, strict=False)]
    return dict(zip(STAGES, seconds, strict=True)) | {"process start to first step": ends[-1] - began}, done.stderr


def refusal(tree: Path, *arguments: str) -> float:
    """Seconds from a command line that trains nothing to its answer."""
    began = time.monotonic()
    subprocess.run([sys.executable, "train.py", *arguments], cwd=tree, capture_output=True, check=False)
    return time.monotonic() - began


def imports(trace: str) -> Iterator[tuple[str, float]]:
    """Top-level packages and the seconds their modules took to import themselves, without what they import."""
    spent: Numbers = defaultdict(float)
    for microseconds, module in re.findall(r"import time:\s+(\d+) \|\s+\d+ \| +([\w.]+)", trace):
        spent[module.split(".")[0]] += int(microseconds) / 1e6
    yield from sorted(spent.items(), key=lambda pair: -pair[1])


def measure(trees: list[Path], source: str, texts: int, starts: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """tree -> quantity -> values over the repeats; and tree -> package -> seconds of its imports."""
    found: dict[str, Any] = {str(tree): defaultdict(list) for tree in trees}
    packages: dict[str, Any] = {}
    for repeat in tqdm(range(texts + 1 if texts else 0), desc="texts"):
        for tree in trees:
            numbers = json.loads(process(tree, __file__, "--text", source).stdout.splitlines()[-1])
            for name, value in numbers.items() if repeat else ():
                found[str(tree)][name].append(value)
    with tempfile.TemporaryDirectory() as folder:
        for repeat in tqdm(range(starts + 1 if starts else 0), desc="starts"):
            for tree in trees:
                numbers, _ = start(tree, folder)
                numbers |= {"--help": refusal(tree, "--help"), "a typo": refusal(tree, "model.dmi=8")}
                for name, value in numbers.items() if repeat else ():
                    found[str(tree)][name].append(value)
        for tree in trees if starts else ():
            packages[str(tree)] = dict(imports(start(tree, folder, traced=True)[1]))
    return found, packages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("text", nargs="?", default="stdlib", help="a file or folder; left out: the standard library")
    parser.add_argument("--texts", type=int, default=5, help="repeats of preparing text")
    parser.add_argument("--starts", type=int, default=5, help="repeats of starting a run")
    parser.add_argument("--trees", nargs="+", default=["."], help="checkouts of this project to compare")
    parser.add_argument("--json", help="where to write every number")
    options = parser.parse_args()
    source = options.text if options.text == "stdlib" else str(Path(options.text).resolve())
    trees = [Path(tree).resolve() for tree in options.trees]
    found, packages = measure(trees, source, options.texts, options.starts)
    print("| | unit |" + "".join(f" {tree} |" for tree in options.trees) + "\n|---|---|" + "---|" * len(trees))
    columns = [found[str(tree)] for tree in trees]
    for name in columns[0]:
        unit = "MB" if name == "MB" else "s" if name in SECONDS else "MB/s"
        cells = (
            f" {statistics.median(own[name]):.2f} ({min(own[name]):.2f}–{max(own[name]):.2f}) |" for own in columns
        )
        print(f"| {name} | {unit} |" + "".join(cells))
    for tree in trees if packages else ():
        costly = list(packages[str(tree)].items())[:8]
        print(f"imports of {tree}: {sum(packages[str(tree)].values()):.2f} s;", end=" ")
        print(", ".join(f"{name} {seconds:.2f}" for name, seconds in costly))
    if options.json:
        Path(options.json).write_text(json.dumps({"numbers": found, "imports": packages}, indent=2) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--start"]:
        run_until_first_step(sys.argv[2], sys.argv[3:])
    elif sys.argv[1:2] == ["--text"]:
        print(json.dumps(text_rates(sys.argv[2])))
    else:
        main()
