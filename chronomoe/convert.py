"""`python -m chronomoe.convert source=… target=…`: a run becomes a folder that transformers loads, and the other way.

What `source` is decides the direction: a run's directory, or a Hugging Face folder or hub name. docs/pretrained.md says
what travels.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from chronomoe.entry import guarded, read_arguments
from chronomoe.run import check_writable
from chronomoe.settings import InputError, setting
from chronomoe.whole_folder import check_vacant, whole_folder

OF_EXPORT = ("form", "layout", "max_shard_size", "checkpoint")


@dataclass(kw_only=True)
class ConvertSettings:
    source: str = setting()
    """A run's directory; or a folder or hub name of a Mixtral, or of a package that this command made."""
    target: str = setting()
    """The folder to make."""
    form: str | None = setting(None, choices=["auto", "mixtral", "package"])
    """Of a run: `mixtral`, which transformers knows and which has no place for the controller's field; `package`, any
    model with its code, loaded with trust_remote_code=True; null or auto: the first where the model is one."""
    layout: str | None = setting(None, choices=["v4", "v5"])
    """Of a Mixtral's weights on disk: experts one by one as transformers 4 and the hub have them (null), or fused."""
    max_shard_size: str | None = setting(None)
    """Of a file of weights, such as 500MB; null: 5GB."""
    checkpoint: str | None = setting(None, choices=["best", "last"])
    """Which of the run's checkpoints; null: best."""


def main() -> None:
    settings = read_arguments(ConvertSettings, sys.argv[1:])
    if find_spec("transformers") is None:
        raise InputError('convert needs transformers: pip install -e ".[hf]"')
    if settings.max_shard_size and not re.fullmatch(r"\d+(\.\d+)?[KMGT]B", settings.max_shard_size):
        raise InputError(f"max_shard_size={settings.max_shard_size} is no size: write 500MB or 5GB")
    check_writable(Path(settings.target), "target")
    is_run = (Path(settings.source) / "config.yaml").is_file()
    print(export_run(settings) if is_run else import_folder(settings))


def export_run(settings: ConvertSettings) -> str:
    """Returns what to print."""
    from chronomoe.pretrained.to_folder import choose_form, read_run, write_mixtral, write_package

    target, max_shard_size = Path(settings.target), settings.max_shard_size or "5GB"
    run = read_run(Path(settings.source), settings.checkpoint or "best")
    form = choose_form(run.config, settings.form or "auto")
    if form == "package" and settings.layout:
        raise InputError(f"layout={settings.layout} has no meaning for form=package: leave it out")
    check_vacant(target, run.num_bytes, "target")
    with whole_folder(target) as folder:
        if form == "mixtral":
            line = write_mixtral(run, folder, layout=settings.layout or "v4", max_shard_size=max_shard_size)
        else:
            line = write_package(run, folder, max_shard_size=max_shard_size)
    return f"{target}: {form}, {run.num_bytes / 1e6:.1f} MB\n{line}"


def import_folder(settings: ConvertSettings) -> str:
    """Returns what to print."""
    from chronomoe.pretrained.from_folder import find_folder, read_source, write_run

    for key in OF_EXPORT:
        if getattr(settings, key) is not None:
            raise InputError(f"{key} is for a run's directory, and source={settings.source} is none: leave it out")
    target = Path(settings.target)
    source = read_source(find_folder(settings.source), target)
    check_vacant(target, source.shards.num_bytes, "target")
    with whole_folder(target) as folder:
        write_run(source, folder)
    model = source.config.model
    return (
        f"{target}: a run of {model.num_layers} layers x {model.num_experts} experts\n"
        f"try it: python -m chronomoe.generate run={target} prompt=…"
    )


if __name__ == "__main__":
    guarded(main)
