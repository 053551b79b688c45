"""The command line: a bad input gets one line that names the key and the way out, and nothing is written."""

from __future__ import annotations

import os
import pickle
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from training_runs import PROJECT, Finished, Outcome

from chronomoe.benchmark.settings import BenchmarkSettings, ScalingSettings
from chronomoe.entry import read_arguments
from chronomoe.settings import InputError

Command = Callable[..., Outcome]


def assert_refused(outcome: Outcome, *fragments: str) -> None:
    """Exit code 2, nothing on standard output, and one line on standard error that holds the fragments."""
    assert outcome.code == 2, outcome.stderr
    assert outcome.stdout == ""
    lines = outcome.stderr.splitlines()
    assert len(lines) == 1, outcome.stderr
    assert lines[0].startswith("error: ")
    for fragment in fragments:
        assert fragment in lines[0]


WRONG = {
    "unknown": (["model.dmi=8"], ["model.dmi", "model.dim"]),
    "unknown_after_plus": (["+model.dmi=8"], ["model.dmi", "model.dim"]),
    "unknown_after_two_plus": (["++model.dmi=8"], ["model.dmi", "model.dim"]),
    "unknown_at_the_root": (["++sede=8"], ["sede", "seed"]),
    "right_name_in_the_wrong_place": (["model.seq_len=8"], ["model.seq_len", "data.seq_len"]),
    "of_another_law": (["chrono=off", "chrono.gamma=1"], ["chrono.gamma", "chronovisor"]),
    "unknown_group": (["modle=mixtral_2x8"], ["modle", "model"]),
    "unknown_option": (["model=mixtral_2x9"], ["model=mixtral_2x9", "mixtral_2x8", "mixtral_4x16", "mixtral_8x7b"]),
    "unknown_experiment": (["experiment=quik"], ["experiment", "quick"]),
    "unknown_deletion": (["~model.dmi"], ["model.dmi", "model.dim"]),
    "no_override": (["model.dim"], ["model.dim", "key=value"]),
    "unreadable": (["model.dim=[1"], ["model.dim=[1"]),
    "word_for_a_number": (["model.dim=wide"], ["model.dim", "wide", "Integer"]),
    "fraction_for_an_integer": (["trainer.max_steps=2.5"], ["trainer.max_steps", "2.5"]),
    "number_for_a_switch": (["model.tie_embeddings=maybe"], ["model.tie_embeddings"]),
    "null": (["model.dim=null"], ["model.dim"]),
    "list_for_a_number": (["optim.lr=[1,2]"], ["optim.lr"]),
    "missing": (["optim.lr=???"], ["optim.lr", "must be given"]),
    "interpolation": (["optim.lr=${optim.rl}"], ["optim.lr"]),
    "choice": (["trainer.precision=bf16-mixd"], ["trainer.precision", "bf16-mixed"]),
    "top_k": (["router.top_k=5"], ["router.top_k=5", "model.num_experts=4"]),
    "heads": (["model.num_heads=3"], ["model.num_heads=3", "model.dim=32", "2"]),
    "kv_heads": (["model.num_heads=4", "model.num_kv_heads=3"], ["model.num_kv_heads=3", "model.num_heads=4"]),
    "micro_period": (["chrono.clocks.micro_period=0"], ["chrono.clocks.micro_period=0", "1"]),
    "macro_period": (["chrono.clocks.macro_period=-4"], ["chrono.clocks.macro_period=-4"]),
    "negative_scale": (["chrono.pressure_scale=-0.1"], ["chrono.pressure_scale=-0.1", "0"]),
    "nan_scale": (["chrono.pressure_scale=nan"], ["chrono.pressure_scale=nan"]),
    "layer_scales": (["chrono.layer_scales=[1,1,1]"], ["chrono.layer_scales", "2 layers"]),
    "batch": (["trainer.accumulate_grad_batches=3"], ["data.batch_size=4", "3"]),
    "sequence": (["data.seq_len=4096"], ["data.seq_len=4096", "model.max_seq_len=1024"]),
    "path": (["data.path=nowhere"], ["data.path=nowhere"]),
    "path_left_out": (["data.path=null"], ["data.path"]),
    "vocabulary": (["model.vocab_size=280"], ["model.vocab_size=280", "300"]),
    "too_long_for_the_text": (["data.batch_size=4096"], ["data.batch_size=4096", "smaller"]),
    "checkpoint": (["ckpt_path=no.ckpt"], ["ckpt_path=no.ckpt", "no such file"]),
    "nothing_to_resume": (["ckpt_path=last"], ["ckpt_path=last"]),
    "nothing_to_resume_here": (["ckpt_path=last", "hydra.run.dir=here"], ["ckpt_path=last", "here"]),
    "hydra_key": (["hydra.run.dri=x"], ["hydra.run.dri"]),
}  # fmt: skip


@pytest.mark.parametrize(("overrides", "fragments"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_input_gets_one_line_and_leaves_nothing(
    command: Command, tiny: list[str], tmp_path: Path, overrides: list[str], fragments: list[str]
) -> None:
    assert_refused(command(*tiny, *overrides), *fragments)
    assert list(tmp_path.iterdir()) == []


TEXTS = {
    "empty": b"",
    "blank": b"  \n\n",
    "binary": b"MZ\x00\x01\x02" * 100,
    "latin": b"caf\xe9" * 100,
    "short": b"one word",
}


@pytest.mark.parametrize("content", TEXTS.values(), ids=TEXTS.keys())
def test_a_text_that_cannot_be_trained_on_is_refused(
    command: Command, tiny: list[str], tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "my.txt").write_bytes(content)
    assert_refused(command(*tiny, "data.path=my.txt"), "data.")
    assert [path.name for path in tmp_path.iterdir()] == ["my.txt"]


@pytest.mark.parametrize("run_dir", ["file/below", "/proc/nowhere/run"])
def test_a_run_directory_that_cannot_be_written_is_refused(
    command: Command, tiny: list[str], tmp_path: Path, run_dir: str
) -> None:
    (tmp_path / "file").write_text("not a folder")
    assert_refused(command(*tiny, f"hydra.run.dir={run_dir}"), "hydra.run.dir", run_dir)


def test_more_devices_than_there_are_is_refused(command: Command, tiny: list[str]) -> None:
    wanted = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=512", "data.batch_size=512")
    outcome = command(*tiny, *wanted, "data.val_sequences=512", "trainer.max_steps=8")
    assert_refused(outcome, "trainer.devices=512", f"at most {len(os.sched_getaffinity(0))}")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize(("trainer", "way"), [("gpu", "trainer=cpu"), ("fsdp", "trainer.accelerator=cpu")])
def test_a_gpu_that_is_not_there_is_refused_with_the_way_to_the_cpu(
    command: Command, tiny: list[str], tmp_path: Path, trainer: str, way: str
) -> None:
    assert_refused(command(*tiny, f"trainer={trainer}"), "trainer.accelerator=cuda", way)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def finished(train: Callable[..., Finished]) -> Path:
    """The last checkpoint of a finished run of four steps."""
    return train("trainer.max_steps=4", into="finished").directory / "checkpoints" / "last.ckpt"


MISMATCHES = {
    "another_width": (["model.hidden_dim=64"], ["is of another model", "experts"]),
    "another_depth": (["model.num_layers=3"], ["is of another model", "blocks.2"]),
    "another_number_of_experts": (["model.num_experts=8"], ["is of another model"]),
    "another_law": (["chrono=off"], ["chrono=chronovisor"]),
    "another_law_with_state": (["chrono=documented"], ["chrono=chronovisor"]),
    "more_state": (["chrono/temperature=structural"], ["chrono."]),
    "no_steps_left": (["trainer.max_steps=4"], ["trainer.max_steps=4"]),
}  # fmt: skip


@pytest.mark.parametrize(("overrides", "fragments"), MISMATCHES.values(), ids=MISMATCHES.keys())
def test_a_checkpoint_that_does_not_fit_the_config_is_refused(
    command: Command, tiny: list[str], tmp_path: Path, finished: Path, overrides: list[str], fragments: list[str]
) -> None:
    assert_refused(command(*tiny, f"ckpt_path={finished}", *overrides), "ckpt_path=", *fragments)
    assert [path.name for path in tmp_path.iterdir()] == ["finished"]


def test_a_truncated_checkpoint_is_refused(command: Command, tiny: list[str], tmp_path: Path, finished: Path) -> None:
    broken = tmp_path / "broken.ckpt"
    broken.write_bytes(finished.read_bytes()[:-1000])
    assert_refused(command(*tiny, f"ckpt_path={broken}"), f"ckpt_path={broken}", "truncated")


class CreatesAFile:
    """A pickle of it runs code when it is loaded carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return open, (str(self.path), "w")


@pytest.mark.parametrize("wrapped", ["pickle", "torch"])
def test_a_pickle_that_is_no_checkpoint_is_refused_and_never_executed(
    command: Command, tiny: list[str], tmp_path: Path, wrapped: str
) -> None:
    trap, target = tmp_path / "trap.ckpt", tmp_path / "executed"
    if wrapped == "pickle":
        trap.write_bytes(pickle.dumps(CreatesAFile(target)))
    else:
        torch.save({"state_dict": {}, "global_step": 0, "callbacks": CreatesAFile(target)}, trap)
    assert_refused(command(*tiny, f"ckpt_path={trap}"), "ckpt_path=", "not executed")
    assert not target.exists()


def test_help_lists_every_group_and_trains_nothing(command: Command, tmp_path: Path) -> None:
    outcome = command("--help")
    assert outcome.code == 0
    for group in ("model", "router", "chrono", "data", "optim", "trainer", "logger", "experiment"):
        assert f"{group}:" in outcome.stdout
    assert list(tmp_path.iterdir()) == []


def test_the_resolved_config_can_be_printed(command: Command, tiny: list[str], tmp_path: Path) -> None:
    outcome = command(*tiny, "--cfg", "job", "--resolve")
    assert outcome.code == 0
    assert "schedule_steps: 8" in outcome.stdout
    assert "${" not in outcome.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_real_process_refuses_in_one_line(python: Callable[..., Any], tmp_path: Path) -> None:
    started = time.monotonic()
    process = python(str(PROJECT / "train.py"), "model.dmi=3")
    stdout, stderr = process.communicate(timeout=60)
    assert_refused(Outcome(process.returncode, stdout, stderr), "model.dmi", "model.dim")
    assert time.monotonic() - started < 15  # 2 s on an idle machine
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("written", ["[8,16]", "8,16", "[8, 16]"])
def test_a_list_is_read_with_and_without_brackets_and_its_elements_have_a_type(written: str) -> None:
    assert read_arguments(ScalingSettings, [f"experts={written}"]).experts == [8, 16]
    with pytest.raises(
        InputError, match=r"^experts\[1\]: Value 'many' of type 'str' could not be converted to Integer$"
    ):
        read_arguments(ScalingSettings, ["experts=[8,many]"])


def test_a_list_can_be_empty_and_can_hold_overrides() -> None:
    read = read_arguments(BenchmarkSettings, ["systems=[]", "overrides=[model.vocab_size=64,chrono=off]"])
    assert (read.systems, read.overrides) == ([], ["model.vocab_size=64", "chrono=off"])
