from __future__ import annotations

import sys
import time

import pytest

from chronomoe.data import hub, huggingface
from chronomoe.data.huggingface import wikitext_articles
from chronomoe.data.settings import DataSettings
from chronomoe.settings import InputError

datasets = pytest.importorskip("datasets")

LINES = [
    "",
    " = Clock = \n",
    "",
    " A clock tells time . \n",
    " = = History = = \n",
    " Old . \n",
    " = Time and = Space = \n",
    " x \n",
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "hf"))
    datasets.disable_progress_bars()


def read(**overrides) -> list[tuple[str, str]]:
    settings = DataSettings(source="huggingface", **overrides)
    huggingface.signature(settings)
    return [(document.text, document.domain) for document in huggingface.documents(settings)]


@pytest.mark.parametrize("streaming", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("saved", ["jsonl", "save_to_disk", "dict_on_disk"])
def test_local_data_sets_are_read(tmp_path, saved, streaming):
    folder = tmp_path / "tales"
    dataset = datasets.Dataset.from_dict({"body": ["one", "two", "three"], "id": [1, 2, 3]})
    if saved == "jsonl":
        folder.mkdir()
        dataset.to_json(folder / "train.jsonl")
    else:
        (dataset if saved == "save_to_disk" else datasets.DatasetDict(train=dataset)).save_to_disk(folder)
    texts = read(name=str(folder), text_field="body", streaming=streaming, max_documents=9)
    assert texts == [("one", "tales"), ("two", "tales"), ("three", "tales")]


def test_wikitext_lines_become_articles_and_no_text_is_lost():
    articles = list(wikitext_articles(iter(LINES)))
    assert "".join(articles) == "".join(LINES)
    headings = [article.split("\n")[0] for article in articles if article]
    assert headings == [" = Clock = ", " = Time and = Space = "]


def test_a_data_set_named_wikitext_is_regrouped(tmp_path):
    datasets.Dataset.from_dict({"text": LINES}).save_to_disk(tmp_path / "wikitext")
    texts = [text for text, _ in read(name=str(tmp_path / "wikitext")) if text.strip()]
    assert len(texts) == 2
    assert "History" in texts[0]


def test_a_missing_field_names_the_fields_that_are_there(tmp_path):
    datasets.Dataset.from_dict({"body": ["one"], "id": [1]}).save_to_disk(tmp_path / "tales")
    with pytest.raises(InputError, match=r"data\.text_field=text: .*record 0 .*\(body, id\)"):
        read(name=str(tmp_path / "tales"))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({}, "data.name is missing"),
        ({"name": "owner/set", "streaming": True}, "data.streaming=true .* data.max_documents"),
    ],
)
def test_settings_that_cannot_work_are_refused(overrides, message):
    with pytest.raises(InputError, match=message):
        read(**overrides)


def test_an_unreachable_hub_is_reported_at_once_and_the_libraries_are_left_as_they_were(monkeypatch):
    monkeypatch.setattr(hub, "_hub_answers", lambda: False)
    before = datasets.config.HF_HUB_OFFLINE
    started = time.perf_counter()
    with pytest.raises(InputError, match=r"data\.name=owner/absent: .*data=stdlib") as error:
        read(name="owner/absent")
    assert time.perf_counter() - started < 5
    assert "\n" not in str(error.value)
    assert datasets.config.HF_HUB_OFFLINE is before


def test_an_unknown_split_is_reported(tmp_path):
    datasets.DatasetDict(train=datasets.Dataset.from_dict({"text": ["one"]})).save_to_disk(tmp_path / "tales")
    with pytest.raises(InputError, match=r"data\.name=.*tales.*data\.split"):
        read(name=str(tmp_path / "tales"), split="test")


def test_a_missing_library_names_the_extra_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r'pip install -e "\.\[hf\]"'):
        read(name="owner/set")
