from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from model_store.builder.data import TaskData, _check_shares, json_records, load_data, normalised, sample
from model_store.builder.errors import DataError, FetchError, NotFetchedError, OverlapError
from model_store.builder.metrics import Metric
from model_store.builder.sources import DataSource, HubSource, RawRow, read_movie_reviews
from model_store.encoding import TextItem
from tests.tiny_torch import write_records

SOURCE: TypeAdapter[Any] = TypeAdapter(DataSource)


def source(folder: Path, **changes: object) -> DataSource:
    files = {split: str(folder / f"{split}.jsonl") for split in ("train", "dev", "test")}
    validated: DataSource = SOURCE.validate_python({"source": "files", "licence": "MIT", **files, **changes})
    return validated


def write(folder: Path, **splits: list[dict[str, Any]]) -> Path:
    for split, rows in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


def rows(*pairs: tuple[Any, Any]) -> list[dict[str, Any]]:
    return [{"text": text, "label": label} for text, label in pairs]


def simple(folder: Path, **changes: list[dict[str, Any]]) -> Path:
    splits = {"train": rows(("one", "a"), ("two", "b")), "dev": rows(("three", "a")), "test": rows(("four", "b"))}
    return write(folder, **(splits | changes))


def targets(data: TaskData, split: str) -> list[Any]:
    return [row.target for row in data.splits[split]]


def test_labels_are_positions_in_sorted_order_and_digests_and_licence_are_kept(tmp_path: Path) -> None:
    data = load_data(source(simple(tmp_path)))
    assert (data.labels, targets(data, "train"), targets(data, "test")) == (("a", "b"), [0, 1], [1])
    assert (data.lineage.licence, data.lineage.splits["train"].rows) == ("MIT", 2)
    again = load_data(source(simple(tmp_path)))
    assert data.digest == again.digest
    assert data.digest != load_data(source(simple(tmp_path, dev=rows(("drei", "a"))))).digest


def test_a_pair_without_its_second_text_is_refused_and_makes_no_task_of_single_texts(tmp_path: Path) -> None:
    whole = {"text": "two", "text_pair": "zwei", "label": "b"}
    without: dict[str, Any] = {"text": "one", "text_pair": None, "label": "a"}
    folder = write(tmp_path, train=[without, whole], dev=[whole], test=[whole])
    with pytest.raises(DataError, match=r"train\.jsonl, line 1: the text is empty or not a text"):
        load_data(source(folder, text_pair="text_pair"))


def test_the_digest_tells_the_order_of_labels_apart(tmp_path: Path) -> None:
    folder = simple(tmp_path)
    turned = load_data(source(folder, labels=["b", "a"]))
    assert turned.labels == ("b", "a")
    assert turned.digest != load_data(source(folder)).digest


def test_csv_and_tsv_are_read_by_their_header_and_tsv_keeps_quotes(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('review,stars\n"good, really",5\nbad,1\n', encoding="utf-8")
    (tmp_path / "b.tsv").write_text('review\tstars\nthe "best\t5\n', encoding="utf-8")
    (tmp_path / "c.tsv").write_text("review\tstars\nthe worst\t1\n", encoding="utf-8-sig")
    files = {"train": tmp_path / "a.csv", "dev": tmp_path / "b.tsv", "test": tmp_path / "c.tsv"}
    data = load_data(source(tmp_path, text="review", label="stars", **files))
    assert data.splits["train"][0].item == TextItem("good, really")
    assert data.splits["dev"][0].item == TextItem('the "best')
    assert data.labels == ("1", "5")


def test_pairs_are_read_when_the_recipe_names_their_column(tmp_path: Path) -> None:
    write_records(tmp_path, pair=True)
    data = load_data(source(tmp_path, text_pair="text_pair"))
    assert data.pair
    assert data.splits["train"][0].item.text_pair is not None
    assert set(next(json_records(data, "test"))) == {"text", "text_pair", "label"}


def test_a_multi_label_row_has_a_flag_for_each_label(tmp_path: Path) -> None:
    folder = simple(
        tmp_path, train=rows(("one", ["a", "b"]), ("two", [])), dev=rows(("x", ["b"])), test=rows(("y", []))
    )
    data = load_data(source(folder, problem="multi_label"))
    assert targets(data, "train") == [(1, 1), (0, 0)]
    assert [record["label"] for record in json_records(data, "train")] == [["a", "b"], []]


def test_multi_label_tables_separate_labels(tmp_path: Path) -> None:
    for split, line in (("train", "x,a|b"), ("dev", "y,"), ("test", "z,b")):
        (tmp_path / f"{split}.csv").write_text(f"text,label\n{line}\n", encoding="utf-8")
    files = {split: tmp_path / f"{split}.csv" for split in ("train", "dev", "test")}
    data = load_data(source(tmp_path, problem="multi_label", **files))
    assert (targets(data, "train"), targets(data, "dev"), targets(data, "test")) == ([(1, 1)], [(0, 0)], [(0, 1)])


def test_a_regressions_target_is_its_number(tmp_path: Path) -> None:
    later = {"dev": rows(("x", 0), ("y", 1)), "test": rows(("z", -1), ("zz", 2.5))}
    folder = simple(tmp_path, train=rows(("one", 1.5), ("two", "2")), **later)
    data = load_data(source(folder, problem="regression"))
    assert (data.labels, targets(data, "train")) == (("score",), [1.5, 2.0])
    assert [record["label"] for record in json_records(data, "train")] == [1.5, 2.0]
    assert load_data(source(folder, problem="regression", labels=["stars"])).labels == ("stars",)


@pytest.mark.parametrize("split", ["train", "dev", "test"])
def test_a_regressions_split_of_one_number_is_refused(tmp_path: Path, split: str) -> None:
    splits = {name: rows((f"{name} a", 1), (f"{name} b", 2), (f"{name} c", 1)) for name in ("train", "dev", "test")}
    hidden = [row | {"label": -1} for row in splits[split]]
    with pytest.raises(DataError, match=rf"^data\.{split}: the number of every row is -1\.0, of 3 rows: name a split"):
        load_data(source(simple(tmp_path, **(splits | {split: hidden})), problem="regression"))


def test_a_text_of_a_later_split_leaves_the_earlier_one_and_is_counted(tmp_path: Path) -> None:
    folder = simple(
        tmp_path,
        train=rows(("One", "a"), ("two", "b"), ("keep", "a"), ("three", "a")),
        dev=rows(("three", "a"), ("ONE ", "a")),
        test=rows(("one", "b")),
    )
    data = load_data(source(folder, overlap="drop"))
    assert [row.item.text for row in data.splits["train"]] == ["two", "keep"]
    assert [row.item.text for row in data.splits["dev"]] == ["three"]
    assert len(data.splits["test"]) == 1
    counts = {split: entry.dropped_overlap for split, entry in data.lineage.splits.items()}
    assert counts == {"train": 2, "dev": 1, "test": 0}


def test_overlap_is_refused_where_the_recipe_says_so(tmp_path: Path) -> None:
    folder = simple(tmp_path, dev=rows(("one", "a"), ("x", "a")))
    with pytest.raises(OverlapError, match=r"1 of data\.train"):
        load_data(source(folder, overlap="refuse"))


def test_pairs_overlap_only_when_both_texts_do() -> None:
    assert normalised(TextItem("A  b", "C")) == normalised(TextItem("a b", "c "))
    assert normalised(TextItem("a", "b")) != normalised(TextItem("a"))
    assert normalised(TextItem("a", "b")) != normalised(TextItem("a", "c"))


def test_a_pair_that_is_turned_around_is_the_same_pair() -> None:
    assert normalised(TextItem("a", "b")) == normalised(TextItem("b", "a"))


def test_the_metrics_are_those_that_the_recipe_names_the_first_deciding(tmp_path: Path) -> None:
    folder = simple(tmp_path)
    assert load_data(source(folder)).metric == Metric("accuracy")
    named = load_data(source(folder, metrics=["f1", "accuracy"], positive_label="a"))
    assert named.metrics == (Metric("f1", 0), Metric("accuracy", 0))
    assert named.metric.name == "f1"


@pytest.mark.parametrize(
    ("labels", "limit", "message"),
    [
        (
            ["a", "b"] * 150,
            150,
            "data.max_train_rows: 150 of the 150 rows taken have the label 'a', and 150 of all 300",
        ),
        (
            ["a", "b", "b", "b"] * 100,
            100,
            "100 of the 100 rows taken have the label 'a', and 100 of all 400: the rows'",
        ),
        (["b", "b", "a", "b"] * 100, 200, "100 of the 200 rows taken have the label 'b', and 300 of all 400"),
        ([["a", "b"], ["b"]] * 150, 150, "150 of the 150 rows taken have the label 'a', and 150 of all 300"),
    ],
    ids=["in turns", "one of each four", "half of the others", "several labels"],
)
def test_rows_taken_in_step_with_the_labels_are_refused(
    tmp_path: Path, labels: list[Any], limit: int, message: str
) -> None:
    folder = simple(tmp_path, train=rows(*((f"text {index}", label) for index, label in enumerate(labels))))
    problem = {"problem": "multi_label"} if isinstance(labels[0], list) else {}
    if problem:
        write(folder, dev=rows(("x", ["a"])), test=rows(("y", ["b"])))
    with pytest.raises(DataError) as refusal:
        load_data(source(folder, max_train_rows=limit, **problem))
    assert message in str(refusal.value)
    assert len(load_data(source(folder, max_train_rows=limit - 1, **problem)).splits["train"]) == limit - 1


@given(
    counts=st.lists(st.integers(1, 200), min_size=1, max_size=12),
    limit=st.integers(1, 600),
    seed=st.integers(0, 2**32) | st.none(),
)
def test_rows_of_sorted_and_of_shuffled_files_are_never_refused(
    counts: list[int], limit: int, seed: int | None
) -> None:
    whole = [RawRow("text", None, str(label), "a row") for label, count in enumerate(counts) for _ in range(count)]
    if seed is not None:
        Random(seed).shuffle(whole)
    _check_shares("train", [(row.label,) for row in sample(whole, limit)], whole)


@pytest.mark.parametrize("plain", [("0", "1"), ("False", "True"), ("no", "yes"), ("NEGATIVE", "POSITIVE")])
def test_f1_is_about_the_second_of_two_labels_whose_meaning_is_plain(tmp_path: Path, plain: tuple[str, str]) -> None:
    first, second = plain
    folder = simple(
        tmp_path, train=rows(("one", first), ("two", second)), dev=rows(("x", first)), test=rows(("y", first))
    )
    assert load_data(source(folder, metrics=["f1"])).metric == Metric("f1", 1)
    with pytest.raises(DataError, match=f"is f1 to be about {second!r} or {first!r}"):
        load_data(source(folder, metrics=["accuracy", "f1"], labels=[second, first]))


def test_row_limits_take_rows_evenly_spaced_for_files_are_often_sorted_by_label(tmp_path: Path) -> None:
    write_records(tmp_path)
    whole = load_data(source(tmp_path)).splits["train"]
    third = load_data(source(tmp_path, max_train_rows=32)).splits["train"]
    assert third == whole[::3]
    assert load_data(source(tmp_path, max_train_rows=96)).splits["train"] == whole
    data = load_data(source(tmp_path, max_train_rows=10, max_dev_rows=4, max_test_rows=5))
    assert [len(data.splits[split]) for split in ("train", "dev", "test")] == [10, 4, 5]


@pytest.mark.parametrize(
    ("splits", "options", "message"),
    [
        ({"dev": rows(("x", "c"))}, {}, "data.dev: label 'c' is unknown to data.train, which has 'a', 'b'"),
        ({}, {"labels": ["a", "c"]}, "label 'b' is unknown to data.labels"),
        ({"train": rows(("x", "b")), "dev": rows(("y", "b"))}, {}, "at least two are needed"),
        ({"train": []}, {}, "data.train has no rows"),
        ({"dev": rows(("four", "a"))}, {}, "data.dev has no rows left"),
        ({"train": rows((" ", "a"), ("x", "b"))}, {}, "train.jsonl, line 1: the text is empty"),
        ({"train": rows((3, "a"), ("x", "b"))}, {}, "line 1: the text is empty or not a text"),
        ({"train": rows(("x", ["a"]), ("y", ["a", "b"]))}, {}, "line 2: the label is ['a', 'b']; a single_label"),
        ({"train": rows(("x", None))}, {}, "a single_label problem wants one label"),
        ({"train": rows(("x", 1.5))}, {"problem": "multi_label"}, "wants a list of labels"),
        ({"train": rows(("x", "high"))}, {"problem": "regression"}, "a regression wants a number"),
        ({"train": rows(("x", "nan"))}, {"problem": "regression"}, "a regression wants a number"),
        ({"train": rows(("x", None))}, {"problem": "regression"}, "a regression wants a number"),
        ({"train": rows(("x", int("9" * 400)))}, {"problem": "regression"}, "a regression wants a number"),
        ({"train": rows(("half \ud83d", "a"), ("y", "b"))}, {}, "line 1: the text has half a character in it"),
        ({}, {"labels": ["a", "b", "b"]}, "data.labels: 'a', 'b', 'b' has one twice"),
        ({}, {"problem": "regression", "labels": ["a", "b"]}, "a regression has one name"),
        ({}, {"positive_label": "c"}, "data.positive_label: 'c' is no label: use 'a', 'b'"),
        ({"train": rows(("x", "a"), ("y", "b"), ("z", "c"))}, {"metrics": ["f1"]}, "f1 of 3 labels needs"),
        ({}, {"metrics": ["f1"]}, "data.positive_label: is f1 to be about 'a' or 'b'? Name the one"),
        ({}, {"text": "body"}, "data.text: no column 'body' in train.jsonl, line 1: it has text, label"),
        ({}, {"label": "class"}, "data.label: no column 'class'"),
        ({}, {"text_pair": "second"}, "data.text_pair: no column 'second'"),
        ({}, {"train": "nowhere.jsonl"}, "data.train: nowhere.jsonl can't be read"),
        ({}, {"dev": "dev.xlsx"}, "data.dev: dev.xlsx is of no known kind: use .jsonl, .json, .csv, .tsv"),
    ],
)
def test_bad_data_is_refused_naming_the_key_or_the_line(
    tmp_path: Path, splits: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError) as refusal:
        load_data(source(simple(tmp_path, **splits), **options))
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", b'{"text": "a"', "x.jsonl, line 1 is not JSON"),
        ("x.jsonl", b"[1]", "line 1 is not a JSON object"),
        ("x.jsonl", b"[" * 100_000, "x.jsonl, line 1 is not JSON"),
        ("x.jsonl", b"\xff\xfe", "is not UTF-8 at byte 0"),
        ("x.csv", b"text,label\na,b,c\n", "line 2 has not as many fields as the header"),
        ("x.csv", b'text,label\n"a"b,c\n', "can't be read"),
    ],
)
def test_a_file_that_can_not_be_read_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (simple(tmp_path) / name).write_bytes(content)
    with pytest.raises(DataError) as refusal:
        load_data(source(tmp_path, train=tmp_path / name))
    assert message in str(refusal.value)


def test_a_predecessors_labels_decide_the_order_and_a_label_it_does_not_know_is_refused(tmp_path: Path) -> None:
    folder = simple(tmp_path)
    assert load_data(source(folder), ("b", "a")).labels == ("b", "a")
    with pytest.raises(DataError, match=r"label 'b' is unknown to the predecessor, which has 'a', 'LABEL_1'"):
        load_data(source(folder), ("a", "LABEL_1"))
    with pytest.raises(DataError, match=r"data\.labels: the predecessor's labels are 'b', 'a'"):
        load_data(source(folder, labels=["a", "b"]), ("b", "a"))


def test_a_local_folder_is_read_as_the_hub_would_be(tmp_path: Path) -> None:
    write_records(tmp_path)
    (tmp_path / "dev.jsonl").rename(tmp_path / "validation.jsonl")
    hub = SOURCE.validate_python({"source": "hub", "name": str(tmp_path), "licence": "MIT"})
    data = load_data(hub, offline=True)
    assert (data.labels, len(data.splits["dev"])) == (("negative", "positive"), 40)


def test_class_labels_of_a_data_set_are_read_by_their_names(tmp_path: Path) -> None:
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    for split, shard in (("train", "train"), ("validation", "validation"), ("test", "test")):
        table = datasets.Dataset.from_dict({"text": [f"{split} 1", f"{split} 2"], "label": [0, 1]}, features=features)
        table.to_parquet(tmp_path / f"{shard}.parquet")
    hub = SOURCE.validate_python({"source": "hub", "name": str(tmp_path), "licence": "MIT"})
    assert load_data(hub).labels == ("no", "yes")


def test_a_split_that_a_data_set_lacks_is_refused(tmp_path: Path) -> None:
    write_records(tmp_path)
    hub = SOURCE.validate_python({"source": "hub", "name": str(tmp_path), "licence": "MIT", "dev": "dev2"})
    with pytest.raises(DataError, match=r"data\.dev: .* has no split 'dev2'"):
        load_data(hub)


def test_a_data_set_of_the_hub_is_not_fetched_offline() -> None:
    hub = SOURCE.validate_python({"source": "hub", "name": "org/name", "licence": "MIT", "revision": "abc"})
    assert hub.describe() == "hub data set org/name at abc"
    with pytest.raises(NotFetchedError, match="without --dry-run"):
        load_data(hub, offline=True)


def reviews(folder: Path, lines: str, *, inner: str = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt") -> Path:
    def packed(name: str, content: bytes) -> bytes:
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content))
        return buffer.getvalue()

    outer = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    file = folder / "vaderSentiment-3.3.2.tar.gz"
    file.write_bytes(packed(outer, packed(inner, lines.encode())))
    return file


def test_movie_reviews_are_split_by_their_ids_and_weak_or_repeated_ones_left_out(tmp_path: Path) -> None:
    lines = "".join(f"{index}\t{3.0 if index % 2 else -2.5}\tText number {index}\r\n" for index in range(200))
    lines += "200\t0.5\tToo weak\r\n201\t3.1\tTEXT  number 1\r\n"
    splits = read_movie_reviews(reviews(tmp_path, lines))
    assert sum(map(len, splits.values())) == 200
    assert len(splits["test"]) > len(splits["dev"])
    # by their SHA-256 modulo 1000: 305, 322 and 861; another rule would make old figures incomparable
    for split, identifier in (("test", 0), ("dev", 4), ("train", 2)):
        assert f"movie review {identifier}" in {row.where for row in splits[split]}
    assert {row.label for row in splits["train"]} == {"positive", "negative"}


def test_a_package_without_the_reviews_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not hold the movie-review snippets"):
        read_movie_reviews(reviews(tmp_path, "", inner="other.txt"))


def test_movie_reviews_are_not_fetched_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUCCESSOR_CACHE_DIR", str(tmp_path))
    with pytest.raises(FetchError, match=r"vaderSentiment==3\.3\.2 is not in"):
        load_data(SOURCE.validate_python({"source": "movie_reviews"}), offline=True)


def hub_of(folder: Path, feature: Any, labels: dict[str, list[Any]]) -> HubSource:  # noqa: ANN401 - of datasets
    import datasets

    features = datasets.Features({"text": datasets.Value("string"), "label": feature})
    for split, values in labels.items():
        texts = [f"{split} {index}" for index in range(len(values))]
        datasets.Dataset.from_dict({"text": texts, "label": values}, features=features).to_parquet(
            str(folder / f"{split}.parquet")
        )
    return HubSource(source="hub", name=str(folder), licence="MIT")


@pytest.mark.parametrize("missing", [-1, None, 2])
def test_a_split_of_a_hub_whose_labels_are_kept_back_is_refused(tmp_path: Path, missing: int | None) -> None:
    import datasets

    feature = datasets.ClassLabel(names=["no", "yes"]) if missing != 2 else datasets.Value("int64")
    hub = hub_of(tmp_path, feature, {"train": [0, 1], "validation": [0, 1], "test": [missing, missing]})
    with pytest.raises(DataError, match=r"stands for none: name a split that has labels|unknown to data\.train"):
        load_data(hub)


def test_several_labels_of_a_hub_have_their_names(tmp_path: Path) -> None:
    import datasets

    feature = datasets.Sequence(datasets.ClassLabel(names=["joy", "fear"]))
    hub = hub_of(tmp_path, feature, {"train": [[0], [0, 1]], "validation": [[1]], "test": [[]]})
    data = load_data(hub.model_copy(update={"problem": "multi_label"}))
    assert data.labels == ("fear", "joy")
    assert [row.target for row in data.splits["train"]] == [(0, 1), (1, 1)]


def test_a_regression_by_a_predecessor_of_several_outputs_is_refused(tmp_path: Path) -> None:
    files = write_records(tmp_path, "regression")
    source = SOURCE.validate_python({"source": "files", "licence": "CC0-1.0", "problem": "regression", **files})
    with pytest.raises(DataError, match="has the outputs 'a', 'b', a regression has one"):
        load_data(source, ("a", "b"))
    assert load_data(source, ("a",)).labels == ("a",)


def test_training_rows_of_one_class_are_refused_whatever_the_predecessor_knows(tmp_path: Path) -> None:
    files = write_records(tmp_path)
    lines = Path(files["train"]).read_text().splitlines()
    Path(files["train"]).write_text("\n".join(line for line in lines if "positive" in line) + "\n")
    source = SOURCE.validate_python({"source": "files", "licence": "CC0-1.0", **files})
    with pytest.raises(DataError, match="has the only label 'positive'"):
        load_data(source, ("negative", "positive"))
