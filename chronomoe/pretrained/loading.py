"""A model of the hub, or of a folder, under control: found, checked, loaded and wrapped.

Everything that can be known beforehand is checked before a weight is read: the class, the quantisation, the files.
Code that a checkpoint brings along is never run; a class of transformers itself is used, or nothing.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import torch

from chronomoe.data.hub import hub_access
from chronomoe.model.checks import check_finite
from chronomoe.pretrained.families import find_family
from chronomoe.pretrained.memory import LEFT_ALONE, check_quantised, foretell, measure, on_meta
from chronomoe.pretrained.steered import SteeredModel
from chronomoe.settings import InputError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
QUANTISATIONS = ("none", "int8", "nf4")
INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


def load_steered(
    source: str,
    *,
    revision: str | None = None,
    dtype: str = "auto",
    device_map: str | None = None,
    quantisation: str = "none",
    actuation: str = "selection",
    freeze: str = "all",
) -> SteeredModel:
    """Load `source`, a folder or a hub name, in the dtype of the checkpoint (`auto`) or in `bf16`, `fp16` or `fp32`.

    device_map: `auto` spreads layers over devices (needs accelerate); `cuda`, `cpu` … puts all on one; None leaves
    them on the processor.
    quantisation: `int8` or `nf4` by bitsandbytes, refused where it would not reach nine tenths of the parameters.
    Raises InputError, in one line, for whatever is wrong with the source.
    """
    if dtype != "auto" and dtype not in DTYPES:
        raise InputError(f"dtype={dtype}: use auto, {', '.join(DTYPES)}")
    if quantisation not in QUANTISATIONS:
        raise InputError(f"quantisation={quantisation}: use {', '.join(QUANTISATIONS)}")
    transformers = need_transformers()
    folder = Path(source).expanduser()
    with hub_access(needed=not folder.is_dir()):
        config = read_config(source, revision)
        family = find_family(named_class(config), f"model={source}")
        wanted = DTYPES.get(dtype) or getattr(config, "dtype", None) or torch.float32
        options: dict[str, Any] = {"dtype": "auto" if dtype == "auto" else wanted}
        if quantisation != "none":
            check_quantised(foretell(on_meta(family, config, wanted), quantisation), source, quantisation)
            options["quantization_config"] = quantiser(quantisation, wanted)
        if device_map is not None:
            need(f"device_map={device_map}", "accelerate")
            options["device_map"] = device_map
        if folder.is_dir():
            check_shards(folder)
        base = read_weights(getattr(transformers, family.model_class), source, config, revision, options)
    if quantisation != "none":
        check_quantised(measure(base), source, quantisation)
    return SteeredModel(base, actuation=actuation, freeze=freeze)


def need_transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise InputError('loading a pretrained model needs transformers: pip install -e ".[hf]"') from None
    return transformers


def need(setting: str, *packages: str) -> None:
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(f"{setting} needs {' and '.join(missing)}: pip install {' '.join(missing)}")


def read_config(source: str, revision: str | None = None) -> Any:
    """The configuration of a class that transformers has itself."""
    from transformers import AutoConfig

    folder = Path(source).expanduser()
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise InputError(f"model={source}: there is no config.json in this folder; give the folder of a checkpoint")
    try:
        return AutoConfig.from_pretrained(source, revision=revision, trust_remote_code=False)
    except ValueError as error:
        if "trust_remote_code" in str(error) or "custom code" in str(error):
            raise InputError(
                f"model={source} brings its own code, which is not run: take a model whose class transformers has"
            ) from None
        raise InputError(f"model={source}: config.json is of no model that can be steered ({first(error)})") from None
    except (OSError, KeyError, TypeError) as error:
        raise InputError(
            f"model={source} is no folder with a checkpoint, and not to be had from the hub ({first(error)}): give a "
            "folder, or a name such as mistralai/Mixtral-8x7B-v0.1"
        ) from None


def named_class(config: Any) -> str:
    """The class with a language-model head that a configuration is of."""
    if config.architectures:
        return str(config.architectures[0])
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as NAMES

    return str(NAMES.get(config.model_type, config.model_type))


def quantiser(quantisation: str, dtype: torch.dtype) -> Any:
    from transformers import BitsAndBytesConfig

    need(f"quantisation={quantisation}", "bitsandbytes", "accelerate")
    if quantisation == "int8":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=list(LEFT_ALONE))
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=list(LEFT_ALONE),
    )


def check_shards(folder: Path) -> None:
    """Every file of weights that the folder promises is there, and as long as its own header says."""
    from safetensors import SafetensorError, safe_open

    index = folder / INDEX
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.is_file() else [SINGLE]
    except (ValueError, KeyError, AttributeError):
        raise InputError(f"{index} is broken: fetch it again") from None
    for name in names:
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path}: there is no such file of weights; fetch it again (only safetensors are read)")
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise InputError(f"{path} is broken ({first(error)}): fetch it again") from None


def read_weights(model_class: Any, source: str, config: Any, revision: str | None, options: dict[str, Any]) -> Any:
    try:
        base, told = model_class.from_pretrained(
            source,
            config=config,
            revision=revision,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    except ImportError as error:
        raise InputError(f"model={source}: {first(error)}") from None
    except (OSError, RuntimeError, ValueError, KeyError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise InputError(f"model={source} does not fit: use device_map=auto, or a smaller dtype") from None
        raise InputError(f"model={source}: its weights cannot be loaded ({first(error)})") from None
    absent = sorted(told["missing_keys"]) + [str(key) for key in told.get("mismatched_keys", [])]
    if absent:
        raise InputError(
            f"model={source}: {len(absent)} weights are missing or of another shape, such as {absent[0]}: files and "
            "config.json are not of one model"
        )
    check_finite(base, f"model={source}")
    return base.eval()


def first(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def describe(model: SteeredModel) -> str:
    """One line for who loaded it."""
    settings = model.settings
    return (
        f"{model.family.name}: {settings.num_moe_layers} layers with routers, {settings.num_experts} experts, top "
        f"{model.router_settings.top_k}; {measure(model.base)}"
    )
