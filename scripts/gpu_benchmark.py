"""What one GPU does with our training, inference and control; on a processor the same in miniature.

    python scripts/gpu_benchmark.py [parts=S1,S2] [limit_s=480] [output=outputs/gpu] [repeats=5] [tiny=true]

| part | what |
|---|---|
| S1, S2, S3, fine, switch, cdrmix | training steps beside transformers (chronomoe/benchmark/gpu_training.py) |
| mixtral_8x7b | full size, random weights: prompt, decoding, memory, telemetry (gpu_inference.py) |
| imbalance | speed against MaxVio, recovery of every law (gpu_imbalance.py) |
| lengths | time per token to 64k (gpu_lengths.py) |
Parts run in the order given, each in a process of its own that is ended when the time is up; the file of a part is
rewritten whenever it knows more, so what was measured until then stays. A part that fails leaves its error and the
others go on. Writes <output>/<part>.json, gpu.json with all of them, and figures. Exit code 1 if a part failed.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from chronomoe.benchmark import gpu_imbalance, gpu_inference, gpu_lengths, gpu_training
from chronomoe.benchmark.gpu_figures import draw
from chronomoe.benchmark.job import default_device
from chronomoe.benchmark.machine import describe
from chronomoe.entry import guarded, read_arguments
from chronomoe.settings import InputError, RunFailed, setting
from chronomoe.whole_file import write_json

BY_WORTH = ["S1", "mixtral_8x7b", "S3", "S2", "imbalance", "lengths", "cdrmix", "fine", "switch"]
"""All parts, so that a time limit takes the least."""


@dataclass(kw_only=True)
class GpuSettings:
    parts: list[str] = setting(BY_WORTH)
    """What to measure, in this order."""
    limit_s: int = setting(480, low=1)
    """Seconds for all parts together."""
    part_limit_s: int = setting(240, low=1)
    """Seconds for one part."""
    repeats: int = setting(5, low=1)
    """Interleaved repeats; fewer than five say little."""
    tiny: bool = setting(False)
    """Miniature shapes: whether everything runs, not how fast."""
    output: str = setting("outputs/gpu")
    """Folder of gpu.json and the figures."""


def main() -> None:
    settings = read_arguments(GpuSettings, sys.argv[1:])
    unknown = set(settings.parts) - set(BY_WORTH)
    if unknown:
        raise InputError(f"parts={','.join(sorted(unknown))} does not exist: there are {', '.join(BY_WORTH)}")
    if default_device() == "cpu" and not settings.tiny:
        raise InputError("there is no GPU here, and on a processor these shapes take hours: add tiny=true")
    folder = Path(settings.output)
    folder.mkdir(parents=True, exist_ok=True)
    ends = time.monotonic() + settings.limit_s
    parts: dict[str, Any] = {}
    for name in tqdm(settings.parts, unit="part"):
        parts[name] = take(name, settings, folder, min(settings.part_limit_s, ends - time.monotonic()))
        machine = describe(torch.get_num_threads(), default_device())
        path = write_json(folder / "gpu.json", {"machine": machine, "settings": vars(settings), "parts": parts})
        tqdm.write(f"{name}: {parts[name]['status']}, {parts[name]['seconds']:.0f} s {parts[name].get('error', '')}")
    print(path, *draw(parts, folder), sep="\n")
    failed = [name for name, part in parts.items() if part["status"] != "done"]
    if failed:
        raise RunFailed(f"{', '.join(failed)} did not come through; {path} says why")


def take(name: str, settings: GpuSettings, folder: Path, limit_s: float) -> dict[str, Any]:
    """What a part measured, its status, its seconds, and its error where there is one."""
    path, started = folder / f"{name}.json", time.monotonic()
    path.unlink(missing_ok=True)
    if limit_s < 1:
        return {"status": "not begun", "error": "no time was left", "seconds": 0.0}
    process = multiprocessing.get_context("spawn").Process(
        target=measure_part, args=(name, settings.tiny, settings.repeats, path)
    )
    process.start()
    process.join(limit_s)
    outcome: dict[str, Any] = {"status": "done"}
    if process.is_alive():
        outcome = {"status": "out of time", "error": f"stopped after {limit_s:.0f} s; what it knew by then stands"}
    elif process.exitcode:
        outcome = {"status": "failed", "error": f"the process ended with exit code {process.exitcode}"}
    end_all_of(process)
    known = json.loads(path.read_text()) if path.is_file() else {}
    return outcome | known | {"seconds": time.monotonic() - started}


def end_all_of(process: multiprocessing.process.BaseProcess) -> None:
    """Its own workers too, which hold memory of the device."""
    assert process.pid is not None
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # all ended already, or it has not begun a group of its own yet
        process.kill()
    process.join()


def measure_part(name: str, tiny: bool, repeats: int, path: Path) -> None:
    """In a process and a group of its own."""
    os.setsid()
    if default_device() == "cpu":
        torch.set_num_threads(1)

    def save(result: dict[str, Any]) -> None:
        write_json(path, result)

    try:
        if name == "mixtral_8x7b":
            result = gpu_inference.run(tiny, repeats, save)
        elif name == "imbalance":
            result = gpu_imbalance.run(tiny, save)
        elif name == "lengths":
            result = gpu_lengths.run(tiny, repeats, save)
        else:
            result = gpu_training.run(name, tiny, repeats, save)
    except Exception as error:
        traceback.print_exc()
        known = json.loads(path.read_text()) if path.is_file() else {}
        first_line = next(iter(str(error).splitlines()), "")
        save(known | {"status": "failed", "error": f"{type(error).__name__}: {first_line}"})
        return
    rows = result["rows"]
    broken = [row for row in rows if row.get("status") == "failed"]
    save(result | ({"status": "failed", "error": broken[0]["error"]} if broken else {}))


if __name__ == "__main__":
    guarded(main)
