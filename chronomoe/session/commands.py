"""What may be said to a session at a pause. Exact words are commands; everything else is a text for the model."""

from __future__ import annotations

from enum import Enum


class Command(Enum):
    CONTINUE = "continue"
    """Go on; appends nothing."""
    MULTISTEP_ON = "multistep on"
    """Pause after every chunk."""
    MULTISTEP_OFF = "multistep off"
    """Pause only where pressure says so."""
    END = "end loop"
    """No more chunks; residual intent is 0."""
    RESET = "reset"
    """Residual intent is 0 and the history is empty; the text, its state and the clocks stay."""
    PERTURBATION = "perturbation"
    """No command: a text, which perturbs the session when it is inserted."""


WORDS: dict[Command, tuple[str, ...]] = {
    Command.CONTINUE: ("continue",),
    Command.MULTISTEP_ON: ("multistep on", "multistep", "/multistep"),
    Command.MULTISTEP_OFF: ("multistep off", "single", "/single"),
    Command.END: ("end loop", "end", "stop"),
    Command.RESET: ("reset",),
}


def parse(text: str) -> Command:
    """Exact after trimming and lower-casing: `continue.` is a text."""
    said = text.strip().lower()
    return next((command for command, words in WORDS.items() if said in words), Command.PERTURBATION)
