"""Settings of a session."""

from __future__ import annotations

from dataclasses import dataclass

from chronomoe.session.constraints import CONSTRAINTS, chosen
from chronomoe.session.pressures import ENTROPY_SCALES, RHO_RULES
from chronomoe.settings import InputError, setting


@dataclass(kw_only=True)
class SessionSettings:
    chunk_tokens: int = setting(20, low=2)
    """Tokens of a chunk; one that ends early is kept if it has at least half of them."""
    mode: str = setting("multistep", choices=["multistep", "single_turn"])
    """Pause after every chunk; or only where pressure says so, which ends the session."""
    temperature: float = setting(0.0, low=0.0)
    """0 always takes the likeliest token. Signals are those of temperature 1 in any case."""
    top_p: float = setting(0.95, low=0.0, high=1.0)
    """Sample from the smallest set of tokens with this much probability; without meaning at temperature 0."""
    seed: int = setting(42, low=0)
    """Of the session's own random numbers."""
    eos_id: int | None = setting(None, low=0)
    """The token that ends a document; null: the model has none."""
    eos: str = setting("stop", choices=["stop", "ban"])
    """It ends the session, and is not appended; or it is never drawn. The two are never pooled."""
    signals: str = setting("measured", choices=["measured", "documented"])
    """What the pressures are fed: what is measured, or what the first prototype put there (documented.py)."""
    constraints: list[str] = setting(list(CONSTRAINTS))
    """Terms of the penalty v; `none` deletes it from the pressure and lists it as absent."""
    q_source: str = setting("basin", choices=["basin", "routing"])
    """Transition probability of the codebook's codes, or persistence of the visited experts. Both are recorded."""
    entropy_scale: str | None = setting(None, choices=list(ENTROPY_SCALES))
    """Unit of the entropy in P_fast; null: `norm`, and `norm_half` for documented signals."""
    aggregate: str | None = setting(None, choices=["chunk_mean", "last_token"])
    """What of a chunk the pressures are of; null: `chunk_mean`, and `last_token` for documented signals."""
    rho_rule: str = setting("documented", choices=list(RHO_RULES))
    """How residual intent follows; as documented it stays at 0 in multistep."""

    @property
    def scale(self) -> str:
        return self.entropy_scale or ("norm" if self.signals == "measured" else "norm_half")

    @property
    def aggregation(self) -> str:
        return self.aggregate or ("chunk_mean" if self.signals == "measured" else "last_token")


def check_session(settings: SessionSettings, vocab_size: int) -> None:
    """Settings that contradict each other or the model. Raises InputError."""
    chosen(settings.constraints)
    if settings.eos == "ban" and settings.eos_id is None:
        raise InputError("eos=ban needs to know which token ends a document: add eos_id=<id>")
    if settings.eos_id is not None and settings.eos_id >= vocab_size:
        raise InputError(f"eos_id={settings.eos_id} is no token of a vocabulary of {vocab_size}: use the tokenizer's")
    if settings.signals == "documented" and settings.aggregation == "chunk_mean":
        raise InputError(
            "aggregate=chunk_mean: documented signals exist at a chunk's last token only; leave aggregate out"
        )
