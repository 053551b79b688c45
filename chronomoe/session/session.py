"""A session: a model that goes on, chunk by chunk, until pressure or somebody says otherwise.

    session = Session(model, calibration, settings)
    session.begin(prompt_ids)
    while chunk := session.next_chunk():
        session.command("continue")

After each chunk: signals -> pressures -> pause -> residual intent -> a row. A session observes: it never writes to the
model's weights or its controller (only `restore` puts back the field a snapshot was taken under). One forward per token
and none twice: the logits of the token to come are kept. A drawn token is read at once, so that a chunk's last token is
measured like every other.

One sequence at a time. The model must be in eval mode.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from chronomoe.model.generation import sample
from chronomoe.session.calibration import Calibration
from chronomoe.session.chunk import Aggregate, Chunk, aggregate, describe, inputs_of, with_derived
from chronomoe.session.clock_heads import LEAST_UPDATES
from chronomoe.session.commands import Command, parse
from chronomoe.session.constraints import chosen
from chronomoe.session.meter import Look, Meter, look
from chronomoe.session.pressures import next_rho, pause_reason, press
from chronomoe.session.reading import Readable, check_readable, read
from chronomoe.session.settings import SessionSettings, check_session
from chronomoe.session.state import SessionState, load_state
from chronomoe.session.telemetry import Telemetry
from chronomoe.session.token_record import GENERATED, INSERTED, NO_CHUNK, PROMPT, TokenRecord, columns_of
from chronomoe.settings import InputError

COMPLETED, BY_COMMAND = "completed", "end"
USUAL_CHUNKS = 50
"""Chunks that room is reserved for at the start; more may follow."""


class Session:
    def __init__(self, model: Readable, calibration: Calibration, settings: SessionSettings) -> None:
        """Raises InputError where something could not be measured: a router without a distribution of a token's own,
        a calibration of another model, a signal that is constant by construction."""
        check_readable(model)
        check_session(settings, model.settings.vocab_size)
        calibration.check_model(model)
        self.model, self.calibration, self.settings = model, calibration, settings
        self.thresholds = calibration.thresholds_of(chosen(settings.constraints))
        if settings.signals == "measured":
            source = {"basin": "q", "routing": "J"}[settings.q_source]
            calibration.check_signals(["Hn", "m_r", "m", source, "d_meso", "d_macro", "c_s"])
        self._state: SessionState | None = None

    @property
    def state(self) -> SessionState:
        if self._state is None:
            raise InputError("the session has no text yet: begin it with a prompt")
        return self._state

    @property
    def signals_absent(self) -> list[str]:
        """Signals whose term the configuration deletes."""
        return [] if self.thresholds or self.settings.signals == "documented" else ["v"]

    @property
    def room(self) -> float:
        """Tokens that still fit into the model's longest text."""
        room: float = self.model.settings.longest_text - len(self.state.ids)
        return room

    def begin(self, prompt_ids: Sequence[int]) -> None:
        """Read a prompt, from nothing; whatever the session held before is gone.

        Raises InputError for a prompt too short for the clocks or too long for a chunk to follow.
        """
        ids = self.checked(prompt_ids)
        longest = self.model.settings.longest_text
        if len(ids) < LEAST_UPDATES:
            raise InputError(
                f"the prompt has {len(ids)} tokens and the clocks need {LEAST_UPDATES}: use a longer prompt"
            )
        if len(ids) + self.settings.chunk_tokens > longest:
            raise InputError(
                f"the prompt's {len(ids)} tokens and a chunk of {self.settings.chunk_tokens} exceed the model's "
                f"longest text of {longest}: shorten the prompt"
            )
        stream = self.model.new_state(1, int(min(longest, len(ids) + USUAL_CHUNKS * self.settings.chunk_tokens)))
        reading = read(self.model, ids, stream)
        meter = Meter(self.calibration.frame, self.model.settings.num_experts)
        tokens = meter.follow(look(reading, reading.logits_SV[:-1], ids), PROMPT, NO_CHUNK)
        self._state = SessionState(
            ids=ids,
            stream=stream,
            next_logits_V=reading.logits_SV[-1].clone(),
            meter=meter,
            generator=torch.Generator().manual_seed(self.settings.seed),
            field=self.field(),
            rho=0.0,
            mode=self.settings.mode,
            paused=False,
            ended=None,
            history_from=0,
            C_before=float(np.mean([1.0 - record.Hn for record in tokens])),
            tokens=tokens,
            chunks=[],
        )

    def next_chunk(self, given: Sequence[int] | None = None) -> Chunk | None:
        """Generate and measure a chunk; None where the text ended before half of one.

        given: a chunk of somebody else's text in its place (teacher forcing), measured exactly as generated tokens are:
        what a position in a text does by itself shows there.
        Raises InputError at a pause that nobody answered, after the session's end, and where no whole chunk fits into
        the model's longest text any more.
        """
        state, settings = self.state, self.settings
        forced = None if given is None else self.checked(given)
        if forced is not None and len(forced) != settings.chunk_tokens:
            raise InputError(f"{len(forced)} tokens were given for a chunk of chunk_tokens={settings.chunk_tokens}")
        if state.ended is not None:
            raise InputError(f"the session has ended ({state.ended}): restore a snapshot, or begin another text")
        if state.paused:
            raise InputError("the session waits at a pause: give the command continue, or insert a text")
        if self.room < settings.chunk_tokens:
            raise InputError(
                f"{self.room} tokens fit into the model's longest text and chunk_tokens={settings.chunk_tokens}: "
                "end the session here, or begin with fewer or shorter chunks"
            )
        index, first = len(state.chunks), len(state.tokens)
        looks: list[Look] = []
        for place in range(settings.chunk_tokens):
            token = self.draw() if forced is None else forced[place]
            if forced is None and token == settings.eos_id and settings.eos == "stop":
                state.ended = COMPLETED
                break
            looks.append(self.take([token], GENERATED, index))
        if len(looks) < settings.chunk_tokens / 2:
            state.tokens[first:] = [record._replace(chunk=NO_CHUNK) for record in state.tokens[first:]]
            return None
        return self.close(index, first, looks, forced=forced is not None)

    def draw(self) -> int:
        """The next token, from the kept logits."""
        logits_V, settings = self.state.next_logits_V, self.settings
        if settings.eos == "ban":
            logits_V = logits_V.clone()
            logits_V[settings.eos_id] = float("-inf")
        return int(sample(logits_V[None], settings.temperature, settings.top_p, self.state.generator))

    def take(self, ids: list[int], kind: int, chunk: int) -> Look:
        """Read tokens in one forward, and record them."""
        state = self.state
        reading = read(self.model, ids, state.stream)
        seen = look(reading, torch.cat((state.next_logits_V[None], reading.logits_SV[:-1])), ids)
        state.tokens += state.meter.follow(seen, kind, chunk)
        state.next_logits_V = reading.logits_SV[-1].clone()
        state.ids += ids
        return seen

    def close(self, index: int, first: int, looks: list[Look], *, forced: bool) -> Chunk:
        """A chunk of the records from `first` on: signals, pressures, pause, residual intent."""
        state, settings = self.state, self.settings
        columns = with_derived(columns_of(state.tokens[first:]), self.thresholds)
        inputs = inputs_of(columns, state.C_before, 1.0 - state.tokens[-2].Hn, settings)
        pressures = press(
            inputs, rho=state.rho, entropy_scale=settings.scale, num_experts=self.model.settings.num_experts
        )
        reason = pause_reason(pressures.P_fast, pressures.P_net, state.mode)
        share = len(looks) / settings.chunk_tokens
        inserted = self.inserted_since(first)
        generated = [record.token for record in state.tokens if record.kind == GENERATED]
        shown = describe(columns, np.concatenate([seen.probabilities_SLE for seen in looks]), generated)
        chunk = Chunk(
            index=index,
            mode=state.mode,
            forced=forced,
            inserted=len(inserted),
            work=sum(record.surprisal for record in inserted),
            inputs=inputs._asdict(),
            rho_before=state.rho,
            rho=next_rho(state.rho, pressures, reason, settings.rho_rule, inputs, share),
            pause_reason=reason,
            dC=shown["mean"]["C"] - state.C_before,
            **pressures._asdict(),
            **shown,
        )
        state.chunks.append(chunk)
        state.rho, state.C_before = chunk.rho, chunk.mean["C"]
        if reason is not None and state.mode == "single_turn":
            state.ended = state.ended or reason
        state.paused = reason is not None and state.ended is None
        return chunk

    def inserted_since(self, first: int) -> list[TokenRecord]:
        """The inserted tokens right before the record `first`."""
        tokens, start = self.state.tokens, first
        while start and tokens[start - 1].kind == INSERTED:
            start -= 1
        return tokens[start:first]

    def command(self, text: str) -> Command:
        """Obey an exact command, and say which it was. Any other text is a `PERTURBATION`, about which nothing is done:
        encode it and `insert` its tokens."""
        state, said = self.state, parse(text)
        if said in (Command.END, Command.RESET):
            state.rho = 0.0
        if said is Command.CONTINUE:
            state.paused = False
        elif said is Command.MULTISTEP_ON:
            state.mode = "multistep"
        elif said is Command.MULTISTEP_OFF:
            state.mode = "single_turn"
        elif said is Command.END:
            state.ended, state.paused = BY_COMMAND, False
        elif said is Command.RESET:
            state.history_from = len(state.chunks)
        return said

    def insert(self, ids: Sequence[int]) -> float:
        """Answer a pause, or an end that nobody asked for, with tokens of one's own, none being the same as `continue`.

        They update the model's state and the clocks and are no part of any chunk. Returns the work W they cost: the sum
        of their surprisal, in nats. Raises InputError after the command to end, and where they do not fit into the
        model's longest text.
        """
        inserted = self.checked(ids)
        if self.state.ended == BY_COMMAND:
            raise InputError("the session was ended: restore a snapshot, or begin another text")
        if len(inserted) + self.settings.chunk_tokens > self.room:
            raise InputError(
                f"{len(inserted)} tokens to insert leave no room for a chunk: insert fewer, or begin shorter"
            )
        self.state.paused, self.state.ended = False, None
        if not inserted:
            return 0.0
        first = len(self.state.tokens)
        self.take(inserted, INSERTED, len(self.state.chunks))
        return sum(record.surprisal for record in self.state.tokens[first:])

    def snapshot(self) -> SessionState:
        """A state to come back to, as often as one likes. Take it between chunks."""
        copy = self.state.clone()
        copy.field = self.field()
        return copy

    def restore(self, snapshot: SessionState) -> None:
        """Go on from a snapshot, under the field it was taken under."""
        self._state = snapshot.clone()
        with torch.no_grad():
            for current, kept in zip(
                (self.model.expert_bias_LE, self.model.log_temperature_LE), snapshot.field, strict=True
            ):
                current.copy_(kept)

    def save(self, path: Path) -> None:
        """A snapshot on disk. Raises RunFailed if the disk refuses."""
        self.snapshot().save(path, self.calibration, asdict(self.settings))

    def load(self, path: Path) -> None:
        """Go on from such a file. Raises InputError where it is not of this model, calibration and settings."""
        self.restore(load_state(path, self.model, self.calibration, asdict(self.settings)))

    def field(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A copy of the field that the model's controller left."""
        return self.model.expert_bias_LE.detach().clone(), self.model.log_temperature_LE.detach().clone()

    def telemetry(self) -> Telemetry:
        """Everything recorded so far."""
        return Telemetry(
            about=self.about(),
            tokens=with_derived(columns_of(self.state.tokens), self.thresholds),
            chunks=list(self.state.chunks),
        )

    def about(self) -> dict[str, Any]:
        """What the numbers were measured with, in plain values."""
        settings, router = self.model.settings, self.model.router_settings
        return {
            "settings": asdict(self.settings),
            "num_experts": settings.num_experts,
            "top_k": router.top_k,
            "num_moe_layers": settings.num_moe_layers,
            "gate": router.gate,
            "calibration": self.calibration.digest,
            "calibration_text": self.calibration.text,
            "signals_absent": self.signals_absent,
            "ended": self.state.ended,
        }

    def aggregate(self) -> Aggregate | None:
        """Of the history; None while it is empty."""
        history = self.state.chunks[self.state.history_from :]
        return aggregate(history) if history else None

    def checked(self, ids: Sequence[int]) -> list[int]:
        """Raises InputError for what is no token of the model."""
        ids, size = [int(token) for token in ids], self.model.settings.vocab_size
        wrong = next((token for token in ids if not 0 <= token < size), None)
        if wrong is not None:
            raise InputError(
                f"{wrong} is no token of a vocabulary of {size}: encode the text with the model's tokenizer"
            )
        return ids
