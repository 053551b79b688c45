"""The loop of a sweep: start points while there is room, watch them, write down how they end.

The run directories are the truth: a sweep that is started again finds there what is done, retries what failed and goes
on with what was interrupted. One point's end never touches another's.
"""

from __future__ import annotations

import time
from collections import deque
from pathlib import Path

from chronomoe.config import write_yaml
from chronomoe.sweep.board import ENDED, Board, Entry, write_results
from chronomoe.sweep.launcher import Launcher
from chronomoe.sweep.progress import losses_so_far, steps_so_far
from chronomoe.sweep.screen import Screen
from chronomoe.sweep.settings import SweepSettings
from chronomoe.sweep.source import Source
from chronomoe.sweep.state import DONE, FAILED, PRUNED, RUNNING, STOPPED, WAITING, is_locked, read_state
from chronomoe.sweep.trials import Trials
from chronomoe.sweep.worker import Work

POLL_SECONDS = 0.1
WATCH_SECONDS = 1.0
"""Between looks at how far running points are."""


class Engine:
    def __init__(
        self,
        settings: SweepSettings,
        folder: Path,
        source: Source,
        trials: Trials,
        launcher: Launcher,
        board: Board,
        screen: Screen,
    ) -> None:
        self.settings, self.folder, self.source, self.trials = settings, folder, source, trials
        self.launcher, self.board, self.screen = launcher, board, screen
        self._queue: deque[Entry] = deque()
        self._looked = 0.0

    def run(self) -> None:
        """Until every point has ended. Ctrl-C or an error (a full disk) first stops what runs, with its state saved."""
        try:
            self._recall()
            while self._advance():
                time.sleep(POLL_SECONDS)
        except BaseException:
            self._stop_all()
            raise
        finally:
            self._write()

    def _recall(self) -> None:
        """What earlier sweeps left of the points there are already."""
        told = self.trials.results()
        for entry in self.source.known():
            self.board.entries.append(entry)
            state = read_state(entry.point.run_dir)
            entry.summary = state.summary
            if state.status == DONE or told.get(entry.point.hash) == PRUNED:
                entry.status = DONE if state.status == DONE else PRUNED
                if entry.trial is not None or entry.point.hash not in told:
                    self._tell(entry)
            else:
                entry.error = state.error if state.status == FAILED else None  # until it is tried again
                self._queue.append(entry)
        before = self.board.count(DONE, PRUNED)
        if before:
            self.screen.say(f"{before} of {self.board.total} points had ended before")
        self._write()

    def _advance(self) -> bool:
        """One look at everything; False when all is over."""
        ended = self.board.count(*ENDED)
        for entry in list(self.board.with_status(RUNNING)):
            if entry.job is not None and entry.job.is_over():
                self._settle(entry)
            elif entry.job is None and not is_locked(entry.point.run_dir):
                self._take_over(entry)
        while self._has_room() and (waiting := self._next()) is not None:
            self._start(waiting)
        if not self._queue and not self.board.count(RUNNING):
            self._look_for_lost_folders()
        if self.board.count(*ENDED) != ended:
            self._write()
        if time.monotonic() - self._looked > WATCH_SECONDS:
            self._watch()
        return bool(self._queue) or self.board.count(RUNNING) > 0

    def _has_room(self) -> bool:
        return sum(entry.job is not None for entry in self.board.with_status(RUNNING)) < self.launcher.settings.jobs

    def _next(self) -> Entry | None:
        """A point to start: one that waits, or the source's next; neither if another process is at it or had ended
        it."""
        while True:
            if self._queue:
                entry = self._queue.popleft()
            elif (proposed := self.source.next()) is not None:
                entry = proposed
                entry.summary = read_state(entry.point.run_dir).summary
                self.board.entries.append(entry)
            else:
                return None
            state = read_state(entry.point.run_dir)
            if entry.point.refusal is not None:
                self._end(entry, FAILED, entry.point.refusal)
            elif state.status == DONE:
                entry.summary = state.summary
                self._end(entry, DONE)
            elif state.status == FAILED and state.summary != entry.summary:
                entry.summary = state.summary
                self._end(entry, FAILED, state.error)  # in the hands of another sweep
            elif state.status == RUNNING:
                entry.status, entry.error = RUNNING, None
            elif self._was_pruned(entry):
                self._end(entry, PRUNED)
            else:
                return entry

    def _start(self, entry: Entry) -> None:
        point = entry.point
        if entry.trial is None:
            entry.trial = self.trials.begin(point)
        work = Work(
            run_dir=str(point.run_dir),
            config=write_yaml(point.config),
            threads=self.launcher.threads,
            own_process=self.launcher.settings.kind != "debug",
        )
        entry.job = self.launcher.submit(work)
        entry.status, entry.error, entry.started, entry.steps = RUNNING, None, time.monotonic(), 0

    def _settle(self, entry: Entry) -> None:
        """This sweep's job for a point is over: find out how."""
        assert entry.job is not None
        job, entry.job = entry.job, None
        self.launcher.release(job)
        ending = job.ending()
        if ending == RUNNING:
            return  # another sweep was faster; it is watched from now on
        state = read_state(entry.point.run_dir)
        if state.status == RUNNING:
            return  # its worker outlived what started it
        entry.summary = state.summary
        if state.status == DONE:
            self._end(entry, DONE)
        elif ending == FAILED and state.status == FAILED:
            self._end(entry, FAILED, state.error)
        elif ending == STOPPED and entry.is_behind:
            self._end(entry, PRUNED)
        else:
            what = f"its process died ({job.last_words() or 'it said nothing'})"
            if ending is not None and state.status == WAITING:
                what = "its folder was deleted"
            elif ending == FAILED:
                what = f"it failed and could not write down how ({job.last_words() or 'it said nothing'})"
            elif ending is not None:
                what = "its process was stopped"
            self._restart(entry, what)

    def _restart(self, entry: Entry, what: str) -> None:
        entry.restarts += 1
        if entry.restarts > self.settings.restarts:
            self._end(entry, FAILED, f"{what}, after {self.settings.restarts} restart(s); see {self.folder / 'jobs'}")
            return
        checkpoint = entry.point.run_dir / "checkpoints" / "last.ckpt"
        how = "goes on from its checkpoint" if checkpoint.is_file() else "starts again"
        self.screen.say(f"{entry.point.name}: {what}; it {how}")
        entry.status = WAITING
        self._queue.append(entry)

    def _take_over(self, entry: Entry) -> None:
        """Nobody works any longer on a point that was at work elsewhere."""
        state = read_state(entry.point.run_dir)
        entry.summary = state.summary
        if state.status in (DONE, FAILED):
            self._end(entry, state.status, state.error)
        elif self._was_pruned(entry):
            self._end(entry, PRUNED)
        else:
            entry.status = WAITING
            self._queue.append(entry)

    def _was_pruned(self, entry: Entry) -> bool:
        """Whether another sweep has pruned it."""
        return self.settings.pruner != "none" and self.trials.results().get(entry.point.hash) == PRUNED

    def _end(self, entry: Entry, status: str, error: str | None = None) -> None:
        entry.status, entry.error = status, error
        self._tell(entry)
        self.screen.ended(entry)

    def _tell(self, entry: Entry) -> None:
        trial = entry.trial or self.trials.begin(entry.point)
        self.trials.tell(trial, entry.status, entry.summary)
        entry.trial = None

    def _watch(self) -> None:
        """How far the running points are, and whether the pruner lets them go on."""
        self._looked = time.monotonic()
        for entry in self.board.with_status(RUNNING):
            entry.steps = steps_so_far(entry.point.run_dir)
            if self.settings.pruner != "none" and entry.job is not None and not entry.is_behind:
                self._prune(entry)
        self.screen.refresh()

    def _prune(self, entry: Entry) -> None:
        assert entry.trial is not None
        assert entry.job is not None
        if self.trials.is_behind(entry.trial, losses_so_far(entry.point.run_dir)):
            entry.is_behind = True
            entry.job.stop()

    def _look_for_lost_folders(self) -> None:
        """A point whose folder was deleted after it ended is trained again: its numbers alone cannot be compared."""
        for entry in list(self.board.with_status(DONE)):
            if read_state(entry.point.run_dir).status != DONE:
                self._restart(entry, "its folder was deleted")

    def _stop_all(self) -> None:
        """Ask everything that runs here to save its state, and wait for it."""
        running = [(entry, entry.job) for entry in self.board.with_status(RUNNING) if entry.job is not None]
        if running:
            self.screen.say(f"stopping {len(running)} point(s): each saves its state after its step")
        for _, job in running:
            job.stop()
        while not all(job.is_over() for _, job in running):
            time.sleep(POLL_SECONDS)
        for entry, _ in running:
            state = read_state(entry.point.run_dir)
            entry.status, entry.summary, entry.job = state.status, state.summary, None
            entry.error = state.error if state.status == FAILED else None

    def _write(self) -> None:
        write_results(self.board, self.folder / "results.csv")
        self.screen.refresh()
