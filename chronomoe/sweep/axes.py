"""The axes of a sweep, in Hydra's override grammar: `0,0.1`, `choice(a,b)`, `range(1,5)`, `interval(0.01,1)`.

They stand under `hydra.sweeper.params` of a file in `configs/sweep/`, where a plain multirun finds them too, and on the
command line, which replaces an axis of the same key. A grid is the product of its axes; a search draws from them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, Override, QuotedString

from chronomoe.settings import InputError

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution


class Axis(NamedTuple):
    key: str
    """As an override names it: `chrono.pressure_scale`, `chrono/clocks`, `seed`."""
    values: list[str]
    """As an override writes them; empty for an interval."""
    override: Override

    @property
    def written(self) -> str:
        """What the axis is, in the grammar."""
        return ",".join(self.values) or str(self.override.input_line).partition("=")[2]


def read_axes(params: Mapping[str, Any], command_line: Sequence[str]) -> tuple[list[Axis], list[str]]:
    """The axes, and the overrides that all points share.

    Raises InputError for an axis that is empty, holds a value twice, is no text, or has a key that another axis of the
    same place has; Hydra's OverrideParseException for text outside the grammar.
    """
    file_axes = read_params(params)
    typed = read_overrides(command_line)
    typed_axes = [axis_of(override) for override in typed if is_axis(override)]
    refuse_twice(file_axes)
    refuse_twice(typed_axes)
    axes = {plain(axis.key): axis for axis in file_axes}
    fixed = [override for override in typed if not is_axis(override)]
    for override in fixed:
        if plain(override.key_or_group) in axes:  # an axis of one value keeps its place in the points' names
            if override.value() == "":
                raise InputError(f"{override.input_line} leaves the axis empty; give it values, or leave it out")
            axes[plain(override.key_or_group)] = axis_of(override)
    axes |= {plain(axis.key): axis for axis in typed_axes}
    return list(axes.values()), [
        str(override.input_line) for override in fixed if plain(override.key_or_group) not in axes
    ]


def read_params(params: Mapping[str, Any]) -> list[Axis]:
    for key, value in params.items():
        if value is None or not str(value).strip():
            raise InputError(f"{key}: the axis is empty; give it values, such as {key}: 1,2,3")
        if not isinstance(value, str | int | float | bool):
            raise InputError(f"{key}: the axis is a list of YAML; write it as text, such as {key}: 1,2,3")
    return [axis_of(override) for override in read_overrides([f"{key}={value}" for key, value in params.items()])]


def read_overrides(overrides: Sequence[str]) -> list[Override]:
    """Hydra's configs, where they are known, say what `glob(…)` stands for."""
    known = GlobalHydra.instance()
    parser = OverridesParser.create(config_loader=known.config_loader() if known.is_initialized() else None)
    return list(parser.parse_overrides(list(overrides)))


def is_axis(override: Override) -> bool:
    return bool(override.is_sweep_override())


def axis_of(override: Override) -> Axis:
    key = override.get_key_element()
    if not override.is_sweep_override():
        return Axis(key, [override.get_value_element_as_str()], override)
    if isinstance(override.value(), IntervalSweep):
        return Axis(key, [], override)
    values = [str(value) for value in override.sweep_string_iterator()]
    if not values:
        raise InputError(f"{override.input_line}: the axis is empty; give it values, such as {key}=1,2,3")
    twice = next((value for value in values if values.count(value) > 1), None)
    if twice is not None:
        raise InputError(f"{override.input_line}: {twice} stands twice on the axis; remove one")
    return Axis(key, values, override)


def refuse_twice(axes: Sequence[Axis]) -> None:
    keys = [plain(axis.key) for axis in axes]
    for axis, key in zip(axes, keys, strict=True):
        if keys.count(key) > 1:
            raise InputError(f"{axis.key}: two axes have this key; join their values in one")


def plain(key: str) -> str:
    """One spelling of a key: without Hydra's `+` or `~`, groups with dots."""
    return key.lstrip("+~").replace("/", ".")


def grid(axes: Sequence[Axis]) -> Iterator[list[str]]:
    """The overrides of every point: the product of the axes, the last running fastest, as a plain multirun forms it.

    Raises InputError for an interval, of which no grid can hold every value.
    """
    for axis in axes:
        if not axis.values:
            raise InputError(
                f"{axis.override.input_line}: a grid needs single values; list them, or search with sweep.sampler=tpe "
                f"sweep.trials=…"
            )
    yield from map(list, itertools.product(*([f"{axis.key}={value}" for value in axis.values] for axis in axes)))


def distribution(axis: Axis) -> BaseDistribution:
    """What a search draws an axis from."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep = axis.override.value()
    if isinstance(sweep, IntervalSweep):
        assert sweep.start is not None
        assert sweep.end is not None
        log = "log" in sweep.tags
        if not sweep.start < sweep.end or (log and sweep.start <= 0):
            raise InputError(f"{axis.override.input_line}: an interval runs upwards, and from above 0 if it is `log`")
        if isinstance(sweep.start, int) and isinstance(sweep.end, int):
            return IntDistribution(sweep.start, sweep.end, log=log)
        return FloatDistribution(float(sweep.start), float(sweep.end), log=log)
    return CategoricalDistribution(choices_of(axis))


def choices_of(axis: Axis) -> list[Any]:
    """The values as numbers where they are numbers, so that plots can order them; else as they are written."""
    return [simple(read_overrides([f"{axis.key}={text}"])[0]._value, text) for text in axis.values]


def simple(value: Any, text: str) -> Any:
    if isinstance(value, QuotedString):
        return value.text
    return value if isinstance(value, int | float | bool) else text
