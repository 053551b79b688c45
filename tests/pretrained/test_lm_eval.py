"""lm-eval scores an export as the run itself scores the same answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from chronomoe.convert import ConvertSettings, export_run
from chronomoe.data.tokenizer import load_tokenizer
from chronomoe.generate import load_model

pytest.importorskip("transformers", reason="the extra chronomoe[hf] is not installed")
lm_eval = pytest.importorskip("lm_eval", reason="the extra chronomoe[eval] is not installed")

QUESTIONS = [
    {"question": "the router sends", "choices": ["every token", "a quiet signal", "déjà vu"], "answer": 0},
    {"question": "a quiet field", "choices": ["sends an expert", "weighs the signal"], "answer": 1},
    {"question": "every", "choices": ["token", "expert", "field", "the"], "answer": 2},
]
TASK = """\
task: local_choice
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
output_type: multiple_choice
doc_to_text: question
doc_to_choice: choices
doc_to_target: answer
metric_list:
  - metric: acc
    aggregation: mean
    higher_is_better: true
"""


@pytest.fixture
def task_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A task that needs no network."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    folder = tmp_path / "task"
    folder.mkdir()
    (folder / "questions.jsonl").write_text("".join(json.dumps(question) + "\n" for question in QUESTIONS))
    (folder / "local_choice.yaml").write_text(TASK.format(file=folder / "questions.jsonl"))
    return folder


def score(run: Path, question: dict[str, Any]) -> list[float]:
    """ln p(choice | question) of every choice, by the run itself."""
    model, _ = load_model(run, "best")
    encode = load_tokenizer(str(run / "tokenizer")).tokenizer.encode
    scores, asked = [], len(encode(question["question"]).ids)
    for choice in question["choices"]:
        ids = encode(f"{question['question']} {choice}").ids
        with torch.no_grad():
            log_p_SV = model(torch.tensor([ids[:-1]])).logits_BSV[0].log_softmax(-1)
        scores.append(sum(float(log_p_SV[i - 1, ids[i]]) for i in range(asked, len(ids))))
    return scores


@pytest.mark.slow
@pytest.mark.parametrize("form", ["mixtral", "package"])
def test_lm_eval_scores_an_export_as_the_run_does(
    saved_run: Callable[..., Path], tmp_path: Path, task_folder: Path, form: str
) -> None:
    run = saved_run("chrono=sign", field=0.0 if form == "mixtral" else 1.0)
    export_run(ConvertSettings(source=str(run), target=str(tmp_path / "out"), form=form))
    found = lm_eval.simple_evaluate(
        model="hf",
        model_args={"pretrained": str(tmp_path / "out"), "trust_remote_code": form == "package", "dtype": "float32"},
        tasks=["local_choice"],
        task_manager=lm_eval.tasks.TaskManager(include_path=str(task_folder), include_defaults=False),
        device="cpu",
        batch_size=2,
    )
    samples = sorted(found["samples"]["local_choice"], key=lambda sample: sample["doc_id"])
    right = 0
    for question, sample in zip(QUESTIONS, samples, strict=True):
        ours, theirs = score(run, question), [float(answer[0]) for answer in sample["filtered_resps"]]
        assert theirs == pytest.approx(ours, rel=1e-4)
        right += ours.index(max(ours)) == question["answer"]
    assert found["results"]["local_choice"]["acc,none"] == pytest.approx(right / len(QUESTIONS))
