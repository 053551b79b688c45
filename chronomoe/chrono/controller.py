"""The Chronovisor: holds a law's state, counts ticks, turns observations into fields.

It is deterministic: the same observations give the same fields, on every rank and after every resume.
"""

from __future__ import annotations

from typing import Any

import torch

from chronomoe.chrono.clocks import ClockSettings, strike
from chronomoe.chrono.laws import LAWS
from chronomoe.chrono.laws.law import ChronoSettings, ControlSettings, Field, Signals, State
from chronomoe.chrono.observation import Observation
from chronomoe.chrono.phi import phi_probe
from chronomoe.chrono.probes import preference
from chronomoe.model.router import Balancer
from chronomoe.model.sensor import Probe
from chronomoe.settings import InputError

EVERY_STEP = ClockSettings(micro_period=1, macro_period=1)


class Chronovisor:
    def __init__(self, settings: ChronoSettings, num_layers: int, num_experts: int, seed: int = 0) -> None:
        self.settings = settings
        self.law = LAWS[settings.law]
        self.clocks = settings.clocks if isinstance(settings, ControlSettings) else EVERY_STEP
        self.step_count = 0
        generator = torch.Generator().manual_seed(seed)
        self.state: State = self.law.start(num_layers, num_experts, settings, generator)
        self.signals: Signals = {}

    @property
    def measures_phi(self) -> bool:
        """Whether experts' outputs are compared: asked for, or needed by the law."""
        return self.settings.phi or getattr(self.settings, "coherence", None) == "phi"

    def probes(self, top_k: int, dim: int) -> list[Probe]:
        """What the model's sensor must read besides counts: for the law, and to see what its field does."""
        watching = [] if self.settings.law == "off" else [preference(top_k)]
        watching += [phi_probe(dim)] if self.measures_phi else []
        return [*watching, *self.law.probes(self.settings, top_k)]

    def balancer(self) -> Balancer | None:
        """What solves each training batch's assignment, for the laws that do."""
        return self.law.balancer(self.settings)

    @property
    def needs_loss(self) -> bool:
        """Whether observations must carry the step's loss."""
        return isinstance(self.settings, ControlSettings) and self.settings.knob.kind == "rule"

    @property
    def solves_evaluation(self) -> bool:
        """Whether that solver works in evaluation too."""
        return getattr(self.settings, "evaluation", "frozen") == "batch"

    def tick(self, observation: Observation) -> Field:
        """One optimizer step has been observed; returns the field for the next. Nothing here waits for a device."""
        self.step_count += 1
        ticks = strike(self.step_count, self.clocks)
        self.state, field, signals = self.law.step(self.state, observation, ticks, self.settings)
        self.signals |= signals  # what a slow clock last said stays readable between its strikes
        return field

    def to(self, device: torch.device) -> None:
        self.state = {name: tensor.to(device) for name, tensor in self.state.items()}
        self.signals = {name: tensor.to(device) for name, tensor in self.signals.items()}

    def state_dict(self) -> dict[str, Any]:
        own = {"law": self.settings.law, "step_count": self.step_count}
        return own | {"state": dict(self.state), "signals": dict(self.signals)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Raises InputError if the saved state is another law's, or that of another temperature or coherence."""
        if saved["law"] != self.settings.law:
            raise InputError(
                f"chrono.law={self.settings.law} cannot take over from chrono={saved['law']}: use the latter"
            )
        if saved["state"].keys() != self.state.keys():
            different = ", ".join(sorted(saved["state"].keys() ^ self.state.keys()))
            raise InputError(
                f"chrono.temperature or chrono.coherence differ from the saved controller's ({different}): use the same"
            )
        self.step_count = saved["step_count"]
        self.state = {name: saved["state"][name].to(tensor) for name, tensor in self.state.items()}
        self.signals = dict(saved["signals"])
