"""The schema of every config group, registered once, and the checks no single field can make.

The table of contents of the project: one line of `TrainConfig` per room. Values live in `configs/`, one folder a group.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from yaml import YAMLError

from chronomoe.chrono.checks import check_chrono
from chronomoe.chrono.clocks import ClockSettings
from chronomoe.chrono.knob import KnobSettings
from chronomoe.chrono.laws import LAWS
from chronomoe.chrono.laws.law import ChronoSettings
from chronomoe.chrono.temperature import TemperatureSettings
from chronomoe.data.settings import DataSettings
from chronomoe.model.checks import check_model, check_router
from chronomoe.model.settings import ModelSettings, RouterSettings
from chronomoe.settings import InputError, setting
from chronomoe.sweep.settings import LauncherSettings, SweepSettings
from chronomoe.training.settings import LoggerSettings, OptimSettings, TrainerSettings


@dataclass(kw_only=True)
class TrainConfig:
    model: ModelSettings = MISSING
    router: RouterSettings = MISSING
    chrono: ChronoSettings = MISSING
    data: DataSettings = MISSING
    optim: OptimSettings = MISSING
    trainer: TrainerSettings = MISSING
    logger: LoggerSettings = MISSING
    sweep: SweepSettings = dataclasses.field(default_factory=SweepSettings)
    seed: int = setting(0, low=0)
    """Of the initial weights and the data order; same seed, same run."""
    ckpt_path: str | None = setting(None)
    """A checkpoint to start from, or `last` to go on where this run (or the newest run of this config) stopped."""


SCHEMAS: dict[str, type] = {
    "model": ModelSettings,
    "router": RouterSettings,
    "chrono/clocks": ClockSettings,
    "chrono/temperature": TemperatureSettings,
    "chrono/knob": KnobSettings,
    "data": DataSettings,
    "optim": OptimSettings,
    "trainer": TrainerSettings,
    "logger": LoggerSettings,
    "sweep": SweepSettings,
}
"""group -> schema, registered as `base_<group>`; each law registers its own as `chrono/base_<law>`."""


WATCHING = (
    "ckpt_path",
    "sweep.",
    "logger.",
    "data.cache_dir",
    "data.num_workers",
    "trainer.autotune",
    "trainer.log_",
    "trainer.checkpoint_",
    "trainer.keep_",
)
"""Settings that leave a run's numbers as they are."""


def register() -> None:
    """Make the schemas known to Hydra; the YAML files in `configs/` start from them."""
    store = ConfigStore.instance()
    store.store(name="base_train", node=TrainConfig)
    for group, schema in SCHEMAS.items():
        store.store(group=group, name=f"base_{group.split('/')[-1]}", node=schema)
    for name, law in LAWS.items():
        store.store(group="chrono", name=f"base_{name}", node=law.settings)
    store.store(group="launcher", name="base_launcher", node=LauncherSettings)  # for sweep.py alone: no part of a run
    store.store(name="launch", node={"defaults": [{"launcher": "local"}]})


def parse(cfg: DictConfig) -> TrainConfig:
    """Check a composed config completely and return it as plain dataclasses. Raises InputError, naming the key."""
    config = settle(cfg)
    assert isinstance(config, TrainConfig)
    check_together(config)
    return config


def settle(cfg: DictConfig, prefix: str = "") -> Any:
    """The dataclass a typed config stands for, once every key is known, set, of its type and in its range. `prefix` of
    its keys, such as `launcher.`, is for the messages."""
    check_keys(cfg, prefix)
    try:
        settings = OmegaConf.to_object(cfg)
    except MissingMandatoryValue:
        missing = prefix + sorted(OmegaConf.missing_keys(cfg))[0]
        raise InputError(f"{missing} must be given: add {missing}=… to the command") from None
    except OmegaConfBaseException as error:
        raise InputError(f"{error.full_key!s}: {str(error).splitlines()[0]}") from None
    for key, value, field in walk(settings, prefix):
        check_range(key, value, field)
    return settings


def compose_config(overrides: list[str]) -> TrainConfig:
    """The config `python train.py <overrides>` would run, from the project's own `configs/`."""
    register()
    with initialize_config_dir(str(Path(__file__).parents[1] / "configs"), version_base="1.3"):
        return parse(compose("train", overrides))


def load_config(path: Path) -> TrainConfig:
    """Read back a run's `config.yaml`. Raises InputError if it is missing or fits no schema."""
    if not path.is_file():
        raise InputError(f"{path}: there is no such file; give the folder of a run")
    try:
        return restore(path.read_text(encoding="utf-8"))
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError, KeyError, AttributeError) as error:
        raise InputError(f"{path} is no config of this version: {str(error).splitlines()[0]}") from None


def restore(resolved: str) -> TrainConfig:
    """The config that this YAML text, such as a run's `config.yaml`, was written from."""
    saved = OmegaConf.create(resolved)
    groups = {name: schema for name, schema in SCHEMAS.items() if "/" not in name}
    groups["chrono"] = LAWS[saved.chrono.law].settings
    merged = OmegaConf.merge(OmegaConf.structured(TrainConfig), groups, saved)
    assert isinstance(merged, DictConfig)
    return parse(merged)


def write_yaml(config: TrainConfig) -> str:
    """The text that `restore` reads."""
    return OmegaConf.to_yaml(OmegaConf.structured(config))


def config_hash(config: TrainConfig) -> str:
    """Twelve hex digits that identify a run: everything that shapes it, not where it resumes from or what watches
    it."""
    shaping = {key: value for key, value, _ in walk(config) if not key.startswith(WATCHING)}
    return hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()[:12]


def walk(node: Any, prefix: str = "") -> Iterator[tuple[str, Any, dataclasses.Field[Any]]]:
    """(dotted key, value, field) of every leaf setting."""
    for field in dataclasses.fields(node):
        value, key = getattr(node, field.name), prefix + field.name
        if dataclasses.is_dataclass(value):
            yield from walk(value, key + ".")
        else:
            yield key, value, field


def known_keys(cfg: DictConfig, prefix: str = "") -> Iterator[str]:
    """Every dotted key the schemas of this composed config have, leaves and branches."""
    for field in dataclasses.fields(OmegaConf.get_type(cfg) or object):  # type: ignore[arg-type]
        yield prefix + field.name
        child = cfg._get_node(field.name)
        if isinstance(child, DictConfig) and not child._is_missing() and not child._is_none():
            yield from known_keys(child, f"{prefix}{field.name}.")


def all_keys() -> list[str]:
    """Every dotted key of every schema and every law."""
    keys = {field.name for field in dataclasses.fields(TrainConfig)}
    branches = [(group.replace("/", ".") + ".", schema) for group, schema in SCHEMAS.items()]
    branches += [("chrono.", law.settings) for law in LAWS.values()]
    branches += [("launcher.", LauncherSettings)]
    for prefix, schema in branches:
        keys |= {prefix + field.name for field in dataclasses.fields(schema)}
    return sorted(keys)


def check_keys(cfg: DictConfig, prefix: str = "", root: DictConfig | None = None) -> None:
    """Refuse keys no schema has. Hydra itself lets them in after `+` and `++`."""
    root = cfg if root is None else root
    names = {field.name for field in dataclasses.fields(OmegaConf.get_type(cfg))}  # type: ignore[arg-type]
    for name in cfg:
        if name not in names:
            raise InputError(unknown_key(f"{prefix}{name}", all_keys() if prefix else list(known_keys(root))))
        child = cfg._get_node(name)
        if isinstance(child, DictConfig) and not child._is_missing() and not child._is_none():
            check_keys(child, f"{prefix}{name}.", root)


def unknown_key(key: str, known: list[str]) -> str:
    """The message for a key that does not exist: the nearest right one, or the siblings there are."""
    if key in known:
        laws = [
            name
            for name, law in LAWS.items()
            if key.split(".")[-1] in {f.name for f in dataclasses.fields(law.settings)}
        ]
        return f"'{key}' is no setting of the chosen law; these laws have it: {', '.join(laws)}"
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
    same_name = [other for other in known if other.split(".")[-1] == key.split(".")[-1]]
    if near or same_name:
        return f"unknown key '{key}': did you mean '{(same_name or near)[0]}'?"
    parent = key.rpartition(".")[0]
    siblings = [other for other in known if other.rpartition(".")[0] == parent]
    return f"unknown key '{key}': there are {', '.join(siblings or known)}"


def check_range(key: str, value: Any, field: dataclasses.Field[Any]) -> None:
    low, high, choices = (field.metadata.get(name) for name in ("low", "high", "choices"))
    if value is None:
        return
    if choices and value not in choices:
        near = difflib.get_close_matches(str(value), choices, n=1)
        hint = f"; did you mean {key}={near[0]}?" if near else ""
        raise InputError(f"{key}={value} is not one of {', '.join(choices)}{hint}")
    if low is not None and not value >= low:
        raise InputError(f"{key}={value} is too small: the least is {low:g}")
    if high is not None and not value <= high:
        raise InputError(f"{key}={value} is too large: the most is {high:g}")


def check_together(config: TrainConfig) -> None:
    """Values that contradict each other. Each message names the key to change and a value that fits."""
    check_model(config.model)
    check_router(config.model, config.router, config.chrono.law)
    check_chrono(config.chrono, config.model, config.router, micro_batch_tokens(config), config.trainer.max_steps)
    check_source(config.data)
    model, data, trainer, optim = config.model, config.data, config.trainer, config.optim
    if data.seq_len > model.max_seq_len:
        raise InputError(f"data.seq_len={data.seq_len} exceeds model.max_seq_len={model.max_seq_len}: lower the first")
    processes = trainer.devices * trainer.num_nodes
    parts = processes * trainer.accumulate_grad_batches
    if data.batch_size % parts:
        nearest = max(1, round(data.batch_size / parts)) * parts
        raise InputError(
            f"data.batch_size={data.batch_size} does not divide among {processes} device(s) x "
            f"{trainer.accumulate_grad_batches} micro-batch(es): the nearest that does is {nearest}"
        )
    if data.val_sequences % processes:
        nearest = -(-data.val_sequences // processes) * processes
        raise InputError(
            f"data.val_sequences={data.val_sequences} must divide among {processes} devices: try {nearest}"
        )
    if processes > 1 and trainer.strategy == "single":
        raise InputError(f"trainer.devices={processes} needs trainer=ddp or trainer=fsdp")
    if len(optim.betas) != 2 or not all(0 <= beta < 1 for beta in optim.betas):
        raise InputError(f"optim.betas={optim.betas} must be two numbers in [0, 1), such as [0.9,0.95]")
    if optim.warmup_frac + optim.decay_frac > 1 and optim.schedule == "wsd":
        raise InputError(f"optim.warmup_frac + optim.decay_frac exceed 1: lower optim.decay_frac={optim.decay_frac}")


def micro_batch_tokens(config: TrainConfig) -> int:
    """Tokens one process routes at once."""
    trainer = config.trainer
    parts = trainer.devices * trainer.num_nodes * trainer.accumulate_grad_batches
    return config.data.batch_size * config.data.seq_len // parts


SOURCE_OF_KEY = {"path": "text", "name": "huggingface", "subset": "huggingface"} | dict.fromkeys(
    ("num_domains", "separability", "private_words", "num_words", "document_words", "domains_seed"), "domains"
)
"""Settings of the data group that one source alone reads."""


def check_source(data: DataSettings) -> None:
    """A setting of another source would be ignored in silence."""
    unset = DataSettings(source=data.source)
    for key, source in SOURCE_OF_KEY.items():
        if getattr(data, key) != getattr(unset, key) and data.source != source:
            raise InputError(f"data.{key} has no meaning for data.source={data.source}: add data={source}")
