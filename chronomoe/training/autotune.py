"""Which kernels are fastest for a model's shapes on this machine: measured once, then remembered.

| choice | candidates | where |
|---|---|---|
| library of fp32 products | torch (MKL), oneDNN | processors |
| attention | products, sdpa | processors, for sequences that products take |
| experts | grouped, looped | GPUs |
| element-wise parts | eager, compiled | GPUs |
Each candidate runs a layer's own module forward and backward on made-up tokens of the run's shapes, balanced over
experts; another than the default must be MARGIN faster, so that noise does not choose. Kernels round differently, so
the choice belongs to a run: it is kept in a file beside the packed corpora, which all runs of a machine read, and in
every checkpoint.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor, nn

from chronomoe.data.cache import fingerprint
from chronomoe.model.attention import Attention, rotary_angles
from chronomoe.model.causal_attention import LONGEST
from chronomoe.model.experts import ExpertBank
from chronomoe.model.lm import LanguageModel
from chronomoe.model.products import Linear, onednn_multiplies
from chronomoe.model.settings import ModelSettings, RouterSettings

MARGIN = 1.1
WARM_UP, REPEATS = 2, 7


@dataclass(kw_only=True)
class Kernels:
    """The defaults are the ways that work everywhere."""

    library: str = "torch"
    attention: str = "auto"
    experts: str = "auto"
    elementwise: str = "eager"

    def __str__(self) -> str:
        return "kernels: " + ", ".join(f"{name} {choice}" for name, choice in asdict(self).items())


def use(model: LanguageModel, kernels: Kernels) -> None:
    for module in model.modules():
        if isinstance(module, Linear | ExpertBank):
            module.library = kernels.library
        if isinstance(module, ExpertBank):
            module.kernel = kernels.experts
        if isinstance(module, Attention):
            module.kernel = kernels.attention
        if isinstance(module, ExpertBank | Attention):
            module.elementwise = kernels.elementwise


@dataclass(kw_only=True)
class Workload:
    """What kernels are chosen for: the shapes of one micro-batch, and where it runs."""

    batch: int
    length: int
    dtype: torch.dtype
    device: torch.device

    @property
    def tokens(self) -> int:
        return self.batch * self.length

    def random(self, *shape: int) -> Tensor:
        return torch.randn(*shape, dtype=self.dtype, device=self.device)


def choose_kernels(model: ModelSettings, router: RouterSettings, work: Workload, cache: Path) -> Kernels:
    """The remembered choice for this machine and these shapes, or one measured now. A cache that cannot be written
    costs the measurement again at the next start."""
    shapes = [model.dim, model.hidden_dim, model.num_experts, model.num_heads, model.num_kv_heads, model.activation]
    key = fingerprint(
        [machine(work.device), shapes, model.dense, router.experts_per_token, work.batch, work.length, str(work.dtype)]
    )
    path = cache / "kernels.json"
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(str(path) + ".lock"):
            known = read_known(path)
            if key not in known:
                known[key] = asdict(measure(model, router, work))
                part = path.with_suffix(".part")
                part.write_text(json.dumps(known, indent=1) + "\n", encoding="utf-8")
                part.replace(path)
            return Kernels(**known[key])
    except OSError:
        return measure(model, router, work)


def read_known(path: Path) -> dict[str, dict[str, str]]:
    """What the file holds of choices this version understands."""
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(known, dict):
        return {}
    fields = asdict(Kernels()).keys()
    return {key: choice for key, choice in known.items() if isinstance(choice, dict) and choice.keys() == fields}


def machine(device: torch.device) -> list[object]:
    """Whatever may change which kernel is fastest."""
    if device.type == "cuda":
        return [torch.cuda.get_device_name(device), torch.__version__]
    return [processor_name(), torch.get_num_threads(), torch.backends.cpu.get_cpu_capability(), torch.__version__]


def processor_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def measure(model: ModelSettings, router: RouterSettings, work: Workload) -> Kernels:
    found = Kernels()
    rows = max(1, round(work.tokens * router.experts_per_token) // model.num_experts)
    with torch.random.fork_rng(), torch.enable_grad():
        if onednn_multiplies(work.device.type, work.dtype):
            projection = Linear(model.dim, model.hidden_dim)
            found.library = fastest(projection, "library", ("torch", "onednn"), work.random(rows, model.dim))
        if work.device.type == "cpu" and work.length <= LONGEST:
            attention = Attention(model.dim, model.num_heads, model.num_kv_heads).to(work.dtype)
            rotation = rotary_angles(torch.arange(work.length), attention.head_dim, model.rope_theta)
            x_BSD = work.random(work.batch, work.length, model.dim)
            found.attention = fastest(attention, "kernel", ("products", "sdpa"), x_BSD, rotation, None, None)
        if work.device.type == "cuda" and not model.dense:
            experts = ExpertBank(model.num_experts, model.dim, model.hidden_dim, model.activation)
            for weight in experts.parameters():
                torch.nn.init.normal_(weight, std=model.init_std)
            x_PD, rows_E = work.random(rows * model.num_experts, model.dim), torch.full((model.num_experts,), rows)
            experts.to(work.device, work.dtype)
            rows_E = rows_E.to(work.device)
            found.experts = fastest(experts, "kernel", ("grouped", "looped"), x_PD, rows_E)
            if can_compile():
                experts.kernel = found.experts
                found.elementwise = fastest(experts, "elementwise", ("eager", "compiled"), x_PD, rows_E)
    return found


def fastest(module: nn.Module, attribute: str, values: tuple[str, ...], x: Tensor, *others: object) -> str:
    """The first of `values` unless `module(x, …)` with another runs forward and backward MARGIN faster (median, in
    turns)."""
    x.requires_grad_()
    seconds: dict[str, list[float]] = {value: [] for value in values}
    for repeat in range(WARM_UP + REPEATS):
        for value in values:
            setattr(module, attribute, value)
            wait(x.device)
            started = time.perf_counter()
            y = module(x, *others)
            y.backward(torch.ones_like(y))
            wait(x.device)
            if repeat >= WARM_UP:
                seconds[value].append(time.perf_counter() - started)
    medians = {value: statistics.median(times) for value, times in seconds.items()}
    best = min(values, key=medians.__getitem__)
    return best if medians[best] * MARGIN < medians[values[0]] else values[0]


def can_compile() -> bool:
    """torch.compile writes GPU kernels with Triton, which is not on every machine."""
    return find_spec("triton") is not None


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
