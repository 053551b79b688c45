# ruff: noqa: E501
"""The command line of sweeps: a bad input gets one line that names the key, the fault and the way out, and nothing is
written; a good one ends with the exit code that says how it went."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sweep_runs import SweepFolder
from training_runs import Outcome

from chronomoe.sweep import command as command_module
from chronomoe.sweep import engine as engine_module
from chronomoe.sweep.command import OBJECTIVES, main

Sweep = Callable[..., Outcome]

AXIS = "hydra: {sweeper: {params: {chrono.gamma: '0,1'}}}\n"
FILES = {
    "unknown_axis": ("sweep: {name: s}\nhydra: {sweeper: {params: {chrono.gama: '0,1'}}}\n", "chrono.gama=0: unknown key 'chrono.gama': did you mean 'chrono.gamma'?"),
    "unknown_under_sweep": ("sweep: {name: s, objectivs: [val_loss]}\n" + AXIS, "sweep/mine.yaml: unknown key 'sweep.objectivs': did you mean 'sweep.objectives'?"),
    "unknown_at_the_top": ("sweeep: {name: s}\n" + AXIS, "sweep/mine.yaml: unknown key 'sweeep': did you mean 'sweep'?"),
    "unknown_in_a_group": ("chrono: {gama: 1}\n" + AXIS, "sweep/mine.yaml: unknown key 'chrono.gama': did you mean 'chrono.gamma'?"),
    "unknown_under_hydra": ("hydra: {sweeper: {parms: {seed: '1,2'}}}\n", "sweep/mine.yaml: unknown key 'hydra.sweeper.parms': did you mean 'hydra.sweeper.params'?"),
    "no_header": ("sweep: {name: s}\n" + AXIS, "sweep/mine.yaml: 'sweep.sweep' is no setting: begin the file with `# @package _global_`"),
    "empty_axis": ("hydra: {sweeper: {params: {seed: }}}\n", "sweep/mine.yaml: seed: the axis is empty; give it values, such as seed: 1,2,3"),
    "blank_axis": ("hydra: {sweeper: {params: {seed: ' '}}}\n", "seed: the axis is empty; give it values, such as seed: 1,2,3"),
    "list_for_an_axis": ("hydra: {sweeper: {params: {seed: [1, 2]}}}\n", "seed: the axis is a list of YAML; write it as text, such as seed: 1,2,3"),
    "one_key_twice": ("hydra:\n  sweeper:\n    params:\n      seed: 1,2\n      seed: 3\n", "mine.yaml:6: found duplicate key seed; join the two"),
    "one_group_twice": ("hydra: {sweeper: {params: {chrono/clocks: 'default,slow', chrono.clocks: 'quick,slow'}}}\n", "chrono/clocks: two axes have this key; join their values in one"),
    "no_yaml": ("sweep: {name: s\n", "mine.yaml:3: expected ',' or '}', but got '<stream end>'; mend that line"),
    "word_for_a_number": ("sweep: {trials: many}\n" + AXIS, "sweep/mine.yaml: sweep.trials: Value 'many' of type 'str' could not be converted to Integer"),
    "word_for_a_list": ("sweep: {arms: chrono=off}\n" + AXIS, "sweep/mine.yaml: sweep.arms must be a list, such as [a,b]"),
    "wrong_arm": ("sweep: {name: s, arms: [chrono=of]}\n" + AXIS, "chrono=of: chrono=of does not exist"),
}  # fmt: skip


@pytest.mark.parametrize(("text", "message"), FILES.values(), ids=FILES.keys())
def test_a_wrong_sweep_file_gets_one_line_and_nothing_is_written(
    sweep: Sweep, tmp_path: Path, text: str, message: str, request: pytest.FixtureRequest
) -> None:
    file = tmp_path / "configs" / "sweep" / "mine.yaml"
    file.parent.mkdir(parents=True)
    file.write_text(text if "no_header" in request.node.name else f"# @package _global_\n{text}")
    assert_refused(sweep(f"hydra.searchpath=[file://{tmp_path / 'configs'}]", "sweep=mine", "sweep.name=s"), message)
    assert not (tmp_path / "sweeps").exists()


def assert_refused(outcome: Outcome, *fragments: str) -> None:
    """Exit code 2, nothing on standard output, and one line on standard error that holds the fragments."""
    assert outcome.code == 2, outcome.stderr
    assert outcome.stdout == ""
    lines = [line for line in outcome.stderr.splitlines() if not line.startswith(("data: ", "model: "))]
    assert len(lines) == 1, outcome.stderr
    assert lines[0].startswith("error: ")
    for fragment in fragments:
        assert fragment in lines[0]


SEARCH = ("chrono.gamma=0,1", "sweep.sampler=random", "sweep.trials=2")
WRONG = {
    "nothing": ([], "there is nothing to sweep: name a sweep (sweep=pressure_scale) or an axis"),
    "no_name": (["seed=1,2", "sweep.name=null"], "sweep.name must be given"),
    "empty_name": (["seed=1,2", "sweep.name="], "sweep.name must be given"),
    "unknown_sweep": (["sweep=presure_scale"], "sweep=presure_scale does not exist: there are basin, clock_periods, gamma, hybrid, laws, pressure_scale, routers, scaled_4x16, search, switch_transfer; did you mean sweep=pressure_scale?"),
    "unknown_axis": (["chrono.gama=0,1"], "unknown key 'chrono.gama': did you mean 'chrono.gamma'?"),
    "unknown_setting": (["seed=1,2", "sweep.nmae=x"], "unknown key 'sweep.nmae': did you mean 'sweep.name'?"),
    "unknown_launcher": (["seed=1,2", "launcher=slrum"], "launcher=slrum does not exist: there are debug, local, slurm; did you mean launcher=slurm?"),
    "unknown_launcher_setting": (["seed=1,2", "launcher.jbs=2"], "unknown key 'launcher.jbs': did you mean 'launcher.jobs'?"),
    "unknown_launcher_setting_after_plus": (["seed=1,2", "+launcher.jbs=2"], "unknown key 'launcher.jbs': did you mean 'launcher.jobs'?"),
    "no_jobs": (["seed=1,2", "launcher.jobs=0"], "launcher.jobs=0 is too small: the least is 1"),
    "launcher_axis": (["seed=1,2", "launcher.jobs=1,2"], "launcher.jobs=1,2 cannot be an axis: one launcher starts all points"),
    "no_slurm": (["seed=1,2", "launcher=slurm"], "launcher=slurm: there is no SLURM here (no srun on the PATH); use launcher=local"),
    "sweep_axis": (["sweep=laws,gamma"], "sweep cannot be an axis"),
    "sampler_axis": (["sweep.sampler=grid,tpe"], "sweep.sampler cannot be an axis"),
    "devices_axis": (["trainer.devices=1,2"], "trainer.devices cannot be an axis: every point gets the same devices"),
    "checkpoint": (["seed=1,2", "ckpt_path=last"], "ckpt_path has no meaning for a sweep"),
    "unknown_objective": (["seed=1,2", "sweep.objectives=[val_los]"], "sweep.objectives: val_los is none: there are val_loss,"),
    "objective_of_another_command": (["seed=1,2", "sweep.objectives=[specialisation]"], "sweep.objectives: specialisation is none"),
    "no_objective": (["seed=1,2", "sweep.objectives=[]"], "sweep.objectives is empty: name one, such as sweep.objectives=[val_loss]"),
    "no_trials": (["chrono.gamma=0,1", "sweep.sampler=tpe"], "sweep.sampler=tpe draws sweep.trials=… points: say how many"),
    "trials_of_a_grid": (["seed=1,2", "sweep.trials=3"], "sweep.trials=3 is for a search: add sweep.sampler=tpe (or random)"),
    "arms_of_a_search": ([*SEARCH, "sweep.arms=['chrono=off']"], "sweep.arms stand beside a grid"),
    "unquoted_arm": (["seed=1,2", "sweep.arms=[chrono=off]"], "'sweep.arms=[chrono=off]' is no override: no viable alternative at input '[chrono='; mend the value, or quote it: key='value'"),
    "seeds_of_a_search": ([*SEARCH, "seed=1,2"], "seed is no axis of a search: fix it (seed=1)"),
    "pruner_of_a_front": ([*SEARCH, "sweep.pruner=median", "sweep.objectives=[val_loss,max_vio_late]"], "sweep.pruner=median looks at the validation loss: use sweep.objectives=[val_loss]"),
    "unknown_sampler": (["seed=1,2", "sweep.sampler=bayes"], "sweep.sampler=bayes"),
    "interval_in_a_grid": (["chrono.gamma=interval(0,1)"], "chrono.gamma=interval(0,1): a grid needs single values"),
    "interval_downwards": (["chrono.gamma=interval(1,0)", *SEARCH[1:]], "an interval runs upwards"),
    "shuffle_in_a_search": (["chrono.gamma=shuffle(0,1)", *SEARCH[1:]], "a search draws from its axes in no order; leave out shuffle"),
    "empty_axis": (["seed=range(0,0)"], "seed=range(0,0): the axis is empty; give it values, such as seed=1,2,3"),
    "empty_choice": (["seed=choice()"], "empty choice is not legal"),
    "value_twice": (["chrono=off,off"], "chrono=off,off: off stands twice on the axis; remove one"),
    "two_axes": (["chrono/clocks=default,slow", "chrono.clocks=quick,slow"], "chrono/clocks: two axes have this key"),
    "axis_without_effect": (["trainer.log_every_steps=1,2"], "are the same run: an axis changes nothing there"),
    "contradiction": (["router.top_k=1,9"], "router.top_k=9: router.top_k=9 exceeds model.num_experts=4: lower the first"),
    "contradiction_beside_a_good_point": (["model.num_heads=2,3"], "model.num_heads=3: model.num_heads=3"),
    "value": (["optim.lr=0.1,fast"], "optim.lr=fast: "),
    "data": (["seed=1,2", "data.path=nowhere"], "seed=1: data.path=nowhere: no such file or folder"),
    "folder": (["seed=1,2", "sweep.dir=/proc/nowhere"], "sweep.dir=/proc/nowhere/s: cannot write in /proc"),
    "storage": (["seed=1,2", "sweep.storage=/proc/nowhere/study.log"], "sweep.storage=/proc/nowhere/study.log cannot be used"),
    "no_override": (["--cfg", "job"], "'--cfg' is no override"),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_command_gets_one_line_and_nothing_is_written(
    sweep: Sweep, tmp_path: Path, arguments: list[str], message: str
) -> None:
    assert_refused(sweep(*arguments), message)
    assert not (tmp_path / "sweeps").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_here_is_refused_here_but_not_for_a_cluster(
    sweep: Sweep, monkeypatch: pytest.MonkeyPatch, slurm: Any, folder: SweepFolder
) -> None:
    assert_refused(sweep("seed=1,2", "trainer=gpu", "launcher=local"), "trainer.accelerator=cuda", "trainer=cpu")
    assert not folder.path.exists()
    (slurm.path / "refuse").write_text("sbatch: error: invalid partition\n")  # far enough
    outcome = sweep("seed=1,2", "trainer=gpu", "launcher=slurm")
    assert outcome.code == 1
    assert outcome.stderr.splitlines()[-1].startswith("error: sbatch refused a job (sbatch: error: invalid partition)")


def test_a_folder_of_another_sweep_is_refused_and_left_as_it_is(sweep: Sweep, folder: SweepFolder) -> None:
    assert sweep("seed=1,2").code == 0
    before = {path: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}
    assert_refused(sweep("seed=1,2", "optim.lr=0.5"), f"{folder.path} holds another sweep: optim.lr was", "and is 0.5")
    assert_refused(sweep("chrono.gamma=0,1"), "holds another sweep", "axes are seed and not chrono.gamma")
    assert before == {path: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}


def test_a_storage_of_another_sweep_is_refused_before_its_folder_is_made(sweep: Sweep, tmp_path: Path) -> None:
    storage = f"sweep.storage={tmp_path / 'shared.log'}"
    assert sweep("seed=1,2", storage).code == 0
    outcome = sweep("seed=1,2", storage, "optim.lr=0.5", f"sweep.dir={tmp_path / 'elsewhere'}")
    assert_refused(outcome, f"{storage} holds another sweep: optim.lr was", "sweep.name=…")
    assert not (tmp_path / "elsewhere").exists()


def test_a_missing_library_is_named_with_how_to_install_it(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command_module, "find_spec", lambda name: None if name == "optuna" else object())
    assert_refused(sweep("seed=1,2"), 'python sweep.py needs optuna: install with pip install -e ".[sweep]"')


def test_help_lists_every_sweep_and_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    shown = capsys.readouterr().out
    for part in ("pressure_scale", "switch_transfer", "How much pressure?", "sweep.sampler=grid", "launcher.jobs=???"):
        assert part in shown


def test_objectives_are_what_a_summary_holds(sweep: Sweep, folder: SweepFolder) -> None:
    assert sweep("seed=1,2", "sweep.objectives=[val_loss]").code == 0
    assert set(OBJECTIVES) <= set(folder.results[0])


def test_all_done_is_0_and_says_where_the_results_are(sweep: Sweep, folder: SweepFolder) -> None:
    outcome = sweep("seed=1,2")
    assert outcome.code == 0
    assert outcome.stdout.splitlines()[-3:] == [
        f"results  {folder.path / 'results.csv'}",
        f"compare  python -m chronomoe.compare runs={folder.path}",
        f"report   python -m chronomoe.report runs={folder.path}",
    ]


def test_some_failed_is_1_with_one_line_that_leads_to_the_errors(sweep: Sweep, folder: SweepFolder) -> None:
    outcome = sweep("optim.lr=1e30,2e-3", "optim.warmup_frac=0")
    assert outcome.code == 1
    assert outcome.stderr.splitlines()[-1] == (
        f"error: 1 of 2 points failed: their errors are in {folder.path / 'results.csv'}; the same command tries them "
        f"again"
    )
    assert folder.column("status") == ["failed", "done"]
    assert folder.column("error")[0] != ""


@pytest.mark.parametrize("signal_name", ["SIGINT", "SIGTERM"])
def test_stopped_is_130(sweep: Sweep, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch, signal_name: str) -> None:
    import signal

    monkeypatch.setattr(engine_module.time, "sleep", lambda _: os.kill(os.getpid(), getattr(signal, signal_name)))
    outcome = sweep("seed=1,2")
    assert outcome.code == 130
    assert "Traceback" not in outcome.stderr
    assert set(folder.column("status")) <= {"waiting", "stopped", "done"}


@pytest.mark.parametrize("target", ["write_results", "trials"])
def test_a_full_disk_is_one_line_and_the_same_command_goes_on(
    sweep: Sweep, folder: SweepFolder, monkeypatch: pytest.MonkeyPatch, target: str
) -> None:
    """The parent's own writes: the table, and Optuna's journal."""
    undisturbed = sweep("seed=1,2", "sweep.name=undisturbed")
    assert undisturbed.code == 0
    full = OSError(28, "No space left on device")

    def write(*_: Any) -> None:
        raise full

    with monkeypatch.context() as patched:
        if target == "write_results":
            patched.setattr(engine_module, "write_results", write)
        else:
            patched.setattr("optuna.storages.journal.JournalFileBackend.append_logs", write)
        outcome = sweep("seed=1,2")
    assert outcome.code == 1
    assert outcome.stderr.splitlines()[-1] == (
        "error: the folder of the sweep: No space left on device; make room, then the same command goes on"
    )
    assert "Traceback" not in outcome.stderr
    assert sweep("seed=1,2").code == 0
    assert folder.table == SweepFolder(folder.path.with_name("undisturbed")).table
