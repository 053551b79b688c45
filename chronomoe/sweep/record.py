"""`sweep.yaml`: what a sweep is, in its folder, for whoever reads it later; and the check that a folder or storage that
is used again holds the same sweep.

A grid may gain and lose values: what is finished stays finished. What all points share, and which axes there are, may
not change, because points of two sweeps in one folder would be compared with each other.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from chronomoe.config import WATCHING, TrainConfig, walk
from chronomoe.settings import InputError
from chronomoe.sweep.axes import Axis
from chronomoe.whole_file import write_whole

FILE = "sweep.yaml"


def record_of(shared: TrainConfig, axes: Sequence[Axis], varies: Sequence[str]) -> dict[str, Any]:
    """Plain containers. `varies`: dotted keys of the settings in which points differ; empty for a search, where the
    axes say it."""
    sweep = shared.sweep
    return {
        "name": sweep.name,
        "axes": {axis.key: axis.values or [axis.written] for axis in axes},
        "arms": list(sweep.arms),
        "baseline": sweep.baseline,
        "within": list(sweep.within),
        "objectives": list(sweep.objectives),
        "sampler": sweep.sampler,
        "varies": list(varies) or [axis.key.replace("/", ".") for axis in axes],
        "shared": {key: value for key, value, _ in walk(shared) if not key.startswith(WATCHING)},
    }


def check_same(recorded: Mapping[str, Any], now: Mapping[str, Any], where: str) -> None:
    """Raise InputError, saying what differs, if `where` belongs to another sweep."""
    differences = [
        f"{key} was {recorded['shared'].get(key, 'absent')} and is {now['shared'].get(key, 'absent')}"
        for key in {**recorded["shared"], **now["shared"]}
        if recorded["shared"].get(key) != now["shared"].get(key)
    ]
    if list(recorded["axes"]) != list(now["axes"]):
        differences.append(f"its axes are {', '.join(recorded['axes'])} and not {', '.join(now['axes'])}")
    searches = {recorded["sampler"], now["sampler"]} != {"grid"}
    same = ("sampler", "objectives", *(["axes"] if searches and not differences else []))
    differences += [f"{key} was {recorded[key]} and is {now[key]}" for key in same if recorded[key] != now[key]]
    if differences:
        more = f" (and {len(differences) - 1} more)" if len(differences) > 1 else ""
        raise InputError(
            f"{where} holds another sweep: {differences[0]}{more}; choose another folder with sweep.dir=… or another "
            f"name with sweep.name=…"
        )


def check_folder(folder: Path, record: Mapping[str, Any]) -> None:
    """Raises InputError if the folder holds another sweep."""
    if (folder / FILE).is_file():
        check_same(read_record(folder), record, str(folder))


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """What varied before stays among what varies: the runs are still there, and are compared with the others."""
    if (folder / FILE).is_file():
        varied = read_record(folder).get("varies") or []
        record = {**record, "varies": list(dict.fromkeys([*varied, *record["varies"]]))}
    write_whole(folder / FILE, OmegaConf.to_yaml(OmegaConf.create(dict(record))))


def read_record(folder: Path) -> dict[str, Any]:
    """Raises InputError for a file that is no record."""
    path = folder / FILE
    try:
        found = OmegaConf.to_container(OmegaConf.load(path))
    except Exception as error:  # OmegaConf's errors and those of the YAML parser share no other base class
        raise InputError(f"{path}: cannot be read ({str(error).splitlines()[0]}); delete it to write it anew") from None
    if not isinstance(found, dict) or not {"axes", "shared", "sampler", "objectives"} <= found.keys():
        raise InputError(f"{path}: is no record of a sweep; delete it to write it anew")
    return {str(key): value for key, value in found.items()}
