"""The store: what is listed, resolved, verified and refused; `test_store_faults` breaks the disk under it."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.classifier import OnnxClassifier
from model_store.disk import MAX_RECORD_BYTES, Disk, list_entries
from model_store.encoding import TextItem
from model_store.errors import (
    IntegrityError,
    InvalidReferenceError,
    ModelNotFoundError,
    StoreError,
    StoreWriteError,
    VersionInUseError,
)
from model_store.manifest import MANIFEST_FILE, TOKENIZER_FILE, ModelId
from model_store.store import Draft, ModelStore, digest_file
from tests.tiny import MODEL_FILE, TinyWeights, make_tiny_version, tiny_draft


def folder_of(store: ModelStore, model: ModelId) -> Path:
    return store.root / model.name / str(model.version)


def everything_under(folder: Path) -> dict[str, bytes | None]:
    return {str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None for p in sorted(folder.rglob("*"))}


# Publishing and listing


def test_a_store_that_is_not_there_is_empty(store: ModelStore) -> None:
    assert store.names() == []
    assert store.versions("tiny") == []
    assert store.aliases("tiny") == {}


def test_versions_count_up_from_one(store: ModelStore) -> None:
    assert [make_tiny_version(store).version for _ in range(3)] == [1, 2, 3]
    assert store.names() == ["tiny"]
    assert store.versions("tiny") == [1, 2, 3]


def test_versions_are_ordered_as_numbers(store: ModelStore, tiny: ModelId) -> None:
    for number in (2, 10):
        shutil.copytree(folder_of(store, tiny), store.root / "tiny" / str(number))
    assert store.versions("tiny") == [1, 2, 10]


def test_a_published_version_is_whole_and_read_only(store: ModelStore, tiny: ModelId) -> None:
    stored = store.open(tiny)
    assert stored.manifest.id == tiny
    assert {path.name for path in stored.folder.iterdir()} == {
        MANIFEST_FILE,
        *(entry.file for entry in (*stored.manifest.artifacts, *stored.manifest.files)),
    }
    assert all(path.stat().st_mode & 0o222 == 0 for path in stored.folder.iterdir())


def test_an_artifact_that_changed_after_it_was_measured_is_not_published(store: ModelStore, tmp_path: Path) -> None:
    draft, files = tiny_draft(tmp_path / "draft")
    files[MODEL_FILE].write_bytes(b"something else")
    with pytest.raises(IntegrityError, match="changed after it was measured"):
        store.publish(draft, files)
    assert store.versions("tiny") == []


def test_a_refused_publication_leaves_nothing_behind(store: ModelStore, tiny: ModelId, tmp_path: Path) -> None:
    before = everything_under(store.root)
    draft, files = tiny_draft(tmp_path / "draft")
    with pytest.raises(StoreError, match=r"missing\.md can't be read"):
        store.publish(draft, {**files, "missing.md": tmp_path / "missing.md"}, ("staging",))
    assert everything_under(store.root) == before


@pytest.mark.parametrize("file", ["../escaped", "/tmp/escaped", ".hidden", "", "a/b", "a\\b"])
def test_a_file_name_that_leaves_the_folder_is_refused(store: ModelStore, tmp_path: Path, file: str) -> None:
    draft, files = tiny_draft(tmp_path / "draft")
    with pytest.raises(InvalidReferenceError):
        store.publish(draft, {**files, file: files[MODEL_FILE]})
    assert not store.root.exists()


@pytest.mark.parametrize(("name", "alias"), [("../tiny", "production"), ("tiny", "../x"), ("tiny", "7")])
def test_a_bad_name_or_alias_is_refused_before_anything_is_written(
    store: ModelStore, tmp_path: Path, name: str, alias: str
) -> None:
    draft, files = tiny_draft(tmp_path / "draft", name)
    with pytest.raises(InvalidReferenceError):
        store.publish(draft, files, (alias,))
    assert not store.root.exists()


@pytest.mark.parametrize("missing", ["tokenizer.json", MODEL_FILE])
def test_a_version_without_its_tokenizer_or_model_is_refused(store: ModelStore, tmp_path: Path, missing: str) -> None:
    draft, files = tiny_draft(tmp_path / "draft")
    del files[missing]
    with pytest.raises(StoreError):
        store.publish(draft, files)
    assert store.versions("tiny") == []


def test_a_manifest_of_ones_own_is_refused(store: ModelStore, tmp_path: Path) -> None:
    draft, files = tiny_draft(tmp_path / "draft")
    with pytest.raises(StoreError, match="the manifest never"):
        store.publish(draft, {**files, MANIFEST_FILE: files[MODEL_FILE]})


def test_a_manifest_too_large_to_be_read_is_not_written(store: ModelStore, tmp_path: Path) -> None:
    draft, files = tiny_draft(tmp_path / "draft")
    recipe = {"text": "x" * MAX_RECORD_BYTES}
    with pytest.raises(StoreError, match="more than"):
        store.publish(draft.model_copy(update={"lineage": draft.lineage.model_copy(update={"recipe": recipe})}), files)
    assert store.versions("tiny") == []


def test_a_store_under_a_file_is_a_write_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreWriteError, match="can't be written"):
        make_tiny_version(ModelStore(tmp_path / "file" / "store"))


def test_writers_in_many_threads_get_versions_of_their_own(store: ModelStore) -> None:
    published: list[ModelId] = []
    threads = [threading.Thread(target=lambda: published.append(make_tiny_version(store))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(model.version for model in published) == [1, 2, 3, 4]
    assert [store.open(model).manifest.id for model in published] == published


# References and aliases


def test_a_bare_name_means_production_or_else_the_newest(store: ModelStore) -> None:
    first, second = make_tiny_version(store), make_tiny_version(store)
    assert store.resolve("tiny") == second
    store.promote(first, "production")
    assert store.resolve("tiny") == first


def test_a_reference_names_a_version_or_an_alias(store: ModelStore, tiny: ModelId) -> None:
    make_tiny_version(store, aliases=("staging", "candidate"))
    assert store.resolve("tiny@1") == tiny
    assert store.resolve("tiny@production") == tiny
    assert store.resolve("tiny@staging") == store.resolve("tiny@candidate") == ModelId(name="tiny", version=2)
    assert store.aliases("tiny") == {"production": 1, "staging": 2, "candidate": 2}


@pytest.mark.parametrize(
    "reference", ["other", "tiny@2", "tiny@01", "tiny@0", "tiny@staging", f"tiny@{'9' * 5000}", "tiny@9999999999"]
)
def test_what_is_not_there_is_said_with_what_is(store: ModelStore, tiny: ModelId, reference: str) -> None:
    with pytest.raises(ModelNotFoundError, match="it has") as caught:
        store.resolve(reference)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize(
    "reference", ["", "@", "@1", "tiny@", "tiny@-1", "tiny@1@2", "tiny@../x", "../tiny@1", "tiny@²"]
)
def test_a_reference_of_another_form_is_refused(store: ModelStore, tiny: ModelId, reference: str) -> None:
    with pytest.raises(InvalidReferenceError):
        store.resolve(reference)


@given(reference=st.one_of(st.text(), st.from_regex(r"(\.\./|/|tiny|\.|@|\\|%2e)+[@0-9a-z]*", fullmatch=True)))
def test_no_reference_leads_out_of_the_store(tiny_store: ModelStore, reference: str) -> None:
    try:
        folder = tiny_store.open(tiny_store.resolve(reference)).folder
    except (InvalidReferenceError, ModelNotFoundError) as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right, and each is checked
        return
    assert folder.resolve().parent.parent == tiny_store.root.resolve()


def test_a_long_list_of_what_is_there_is_cut(store: ModelStore, tiny: ModelId) -> None:
    for number in range(2, 101):
        (store.root / "tiny" / str(number)).mkdir()
    with pytest.raises(ModelNotFoundError, match="and 80 more"):
        store.resolve("tiny@777")


def test_promoting_a_version_that_is_not_there_changes_nothing(store: ModelStore, tiny: ModelId) -> None:
    before = everything_under(store.root)
    for model in (ModelId(name="tiny", version=2), ModelId(name="other", version=1)):
        with pytest.raises(ModelNotFoundError):
            store.promote(model, "production")
    assert everything_under(store.root) == before


def test_a_corrupt_version_is_not_promoted(store: ModelStore, tiny: ModelId) -> None:
    second = make_tiny_version(store, seed=1)
    (folder_of(store, second) / MODEL_FILE).unlink()
    with pytest.raises(IntegrityError):
        store.promote(second, "production")
    assert store.resolve("tiny") == tiny


def test_an_alias_of_a_version_that_vanished_is_an_integrity_error(store: ModelStore, tiny: ModelId) -> None:
    make_tiny_version(store)
    shutil.rmtree(folder_of(store, tiny))
    with pytest.raises(IntegrityError, match="promote another"):
        store.resolve("tiny@production")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"{",
        b"\xff",
        b'{"production": "x"}',
        b'{"production": 0}',
        b'{"production": 1e99}',
        b'{"../x": 1}',
        b'{"3": 1}',
        b'{"a": 1}' + b" " * MAX_RECORD_BYTES,
        b"[" * 100_000,
    ],
)
def test_a_malformed_alias_file_is_an_integrity_error(store: ModelStore, tiny: ModelId, content: bytes) -> None:
    path = store.root / "tiny" / "aliases.json"
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match="restore or delete"):
        store.resolve("tiny@production")
    assert store.resolve("tiny@1") == tiny


# Removing


def test_a_removed_version_is_gone_and_its_number_is_not_used_again(store: ModelStore) -> None:
    first, second = make_tiny_version(store), make_tiny_version(store)
    store.remove(second)
    assert store.versions("tiny") == [first.version]
    with pytest.raises(ModelNotFoundError):
        store.open(second)
    assert make_tiny_version(store).version == 3


def test_a_version_that_an_alias_points_at_is_not_removed(store: ModelStore, tiny: ModelId) -> None:
    with pytest.raises(VersionInUseError, match="production"):
        store.remove(tiny)
    assert store.open(tiny).manifest.id == tiny


@pytest.mark.parametrize("reference", [ModelId(name="tiny", version=9), ModelId(name="other", version=1)])
def test_removing_what_is_not_there_changes_nothing(store: ModelStore, tiny: ModelId, reference: ModelId) -> None:
    before = everything_under(store.root)
    with pytest.raises(ModelNotFoundError):
        store.remove(reference)
    assert everything_under(store.root) == before


def test_a_removed_version_that_was_copied_back_can_be_removed_again(store: ModelStore, tmp_path: Path) -> None:
    model = make_tiny_version(store)
    shutil.copytree(folder_of(store, model), tmp_path / "copy")
    store.remove(model)
    shutil.copytree(tmp_path / "copy", folder_of(store, model))
    store.remove(model)
    assert store.versions("tiny") == []


# Verifying


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def replace_by_a_link(path: Path) -> None:
    moved = path.parent.parent.parent / "moved"
    path.rename(moved)
    path.symlink_to(moved)


def replace_by_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize("file", [MODEL_FILE, "tokenizer.json", "report.md"])
@pytest.mark.parametrize("damage", [truncate, flip_a_bit, Path.unlink, replace_by_a_link, replace_by_a_folder])
def test_a_damaged_file_is_refused_and_the_other_versions_open(
    store: ModelStore, tiny: ModelId, file: str, damage: Callable[[Path], None]
) -> None:
    other = make_tiny_version(store)
    path = folder_of(store, tiny) / file
    path.chmod(0o644)
    damage(path)
    with pytest.raises(IntegrityError, match=str(tiny)):
        store.open(tiny)
    assert store.open(other).manifest.id == other


def test_a_file_that_the_manifest_does_not_list_is_refused(store: ModelStore, tiny: ModelId) -> None:
    (folder_of(store, tiny) / "weights.bin").write_bytes(b"")
    with pytest.raises(IntegrityError, match=r"weights\.bin"):
        store.open(tiny)


def reading(location: str, draft: Draft, files: dict[str, Path]) -> tuple[Draft, dict[str, Path]]:
    """The same version with weights that lie at `location`."""
    path = files[MODEL_FILE]
    model = onnx.load(path)
    for tensor in model.graph.initializer:
        if tensor.name == "embedding":
            onnx.external_data_helper.set_external_data(tensor, location)
            weights = tensor.raw_data
            tensor.ClearField("raw_data")
            tensor.data_location = onnx.TensorProto.EXTERNAL
    path.write_bytes(model.SerializeToString())
    (path.parent / "weights.bin").write_bytes(weights)
    sha256, size = digest_file(path)
    artifact = draft.artifacts[0].model_copy(update={"sha256": sha256, "bytes": size})
    return draft.model_copy(update={"artifacts": (artifact,)}), files


@pytest.mark.parametrize("location", ["../weights.bin", "/etc/passwd", "sub/weights.bin", "weights.bin", ""])
def test_a_model_that_reads_what_is_not_in_its_version_is_not_published(
    store: ModelStore, tmp_path: Path, location: str
) -> None:
    draft, files = reading(location, *tiny_draft(tmp_path / "draft"))
    with pytest.raises(IntegrityError, match="which is not a file of the version: publish them together"):
        store.publish(draft, files)
    assert store.names() == []


@pytest.mark.parametrize("location", ["../../../secret", "/etc/passwd", f"../../tiny/1/{TOKENIZER_FILE}"])
def test_a_malicious_version_whose_model_reads_elsewhere_is_neither_opened_nor_promoted_nor_loaded(
    store: ModelStore, tiny: ModelId, tmp_path: Path, location: str
) -> None:
    """Every digest is right: whoever wrote the version wrote its manifest too."""
    (store.root.parent / "secret").write_bytes(bytes(4096))
    draft, files = reading(location, *tiny_draft(tmp_path / "draft"))
    folder = folder_of(store, tiny)
    for file in (MODEL_FILE, MANIFEST_FILE):
        (folder / file).chmod(0o644)
    manifest = json.loads((folder / MANIFEST_FILE).read_bytes())
    manifest["artifacts"] = [draft.artifacts[0].model_dump(mode="json")]
    (folder / MANIFEST_FILE).write_text(json.dumps(manifest))
    shutil.copyfile(files[MODEL_FILE], folder / MODEL_FILE)
    with pytest.raises(IntegrityError, match="which is not a file of the version"):
        store.open(tiny)
    with pytest.raises(IntegrityError, match="which is not a file of the version"):
        store.promote(tiny, "canary")


def test_a_model_whose_weights_lie_beside_it_in_its_version_answers(store: ModelStore, tmp_path: Path) -> None:
    draft, files = reading("weights.bin", *tiny_draft(tmp_path / "draft"))
    model = store.publish(draft, {**files, "weights.bin": tmp_path / "draft" / "weights.bin"})
    classifier = OnnxClassifier(store.open(model))
    encoded = classifier.encode(TextItem("a good film"))
    expected = TinyWeights.drawn(2, 0).logits(encoded.input_ids)
    np.testing.assert_allclose(classifier.run([encoded])[0], expected, atol=1e-5)


def test_a_model_file_that_is_not_onnx_is_not_published(store: ModelStore, tmp_path: Path) -> None:
    draft, files = tiny_draft(tmp_path / "draft")
    files[MODEL_FILE].write_bytes(b"\x80\x04\x95 a pickle")
    sha256, size = digest_file(files[MODEL_FILE])
    artifact = draft.artifacts[0].model_copy(update={"sha256": sha256, "bytes": size})
    with pytest.raises(IntegrityError, match=r"tiny@1: fp32\.onnx is not an ONNX file"):
        store.publish(draft.model_copy(update={"artifacts": (artifact,)}), files)


def test_a_pipe_in_place_of_a_record_is_refused_at_once(store: ModelStore, tiny: ModelId) -> None:
    for path in (store.root / "tiny" / "aliases.json", folder_of(store, tiny) / MANIFEST_FILE):
        path.unlink()
        os.mkfifo(path)
    with pytest.raises(IntegrityError, match="restore or delete"):
        store.aliases("tiny")
    with pytest.raises(IntegrityError, match="Invalid argument"):
        store.manifest(tiny)


def test_a_store_that_cannot_be_written_is_read_and_served(tiny_store: ModelStore) -> None:
    """A disk that refuses every write stands for a mount that is read-only; root could write anywhere else."""
    read_only = ModelStore(tiny_store.root, _ReadOnly())
    classifier = OnnxClassifier(read_only.open(read_only.resolve("tiny")))
    assert classifier.run([classifier.encode(TextItem("a good film"))]).shape == (1, 2)
    with pytest.raises(StoreWriteError, match="mount it writable"):
        read_only.promote(read_only.resolve("tiny"), "canary")


class _ReadOnly(Disk):
    """Fails as a read-only mount does."""

    def sync(self, path: Path) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_another_versions_manifest_is_refused(store: ModelStore, tiny: ModelId) -> None:
    shutil.copytree(folder_of(store, tiny), store.root / "tiny" / "2")
    with pytest.raises(IntegrityError, match="that of tiny@1"):
        store.manifest(ModelId(name="tiny", version=2))


def test_a_version_without_a_manifest_is_refused(store: ModelStore, tiny: ModelId) -> None:
    (folder_of(store, tiny) / MANIFEST_FILE).unlink()
    with pytest.raises(IntegrityError, match="No such file"):
        store.manifest(tiny)


@given(position=st.floats(0, 1, exclude_max=True), junk=st.binary(max_size=8), cut=st.integers(0, 40))
def test_a_manifest_with_changed_bytes_gives_an_integrity_error_or_parses(
    tiny_store: ModelStore, position: float, junk: bytes, cut: int
) -> None:
    original = (tiny_store.root / "tiny" / "1" / MANIFEST_FILE).read_bytes()
    at = int(position * len(original))
    store = ModelStore(tiny_store.root.parent / "mutated")
    folder = store.root / "tiny" / "1"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MANIFEST_FILE).write_bytes(original[:at] + junk + original[at + cut :])
    try:
        manifest = store.manifest(ModelId(name="tiny", version=1))
    except IntegrityError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right, and each is checked
        return
    assert manifest.id == ModelId(name="tiny", version=1)


@pytest.mark.parametrize("content", [b"", b"null", b"[" * 100_000, b"\xff\xfe", b" " * (MAX_RECORD_BYTES + 1)])
def test_a_manifest_that_is_no_manifest_is_an_integrity_error(store: ModelStore, tiny: ModelId, content: bytes) -> None:
    path = folder_of(store, tiny) / MANIFEST_FILE
    path.chmod(0o644)
    path.write_bytes(content)
    with pytest.raises(IntegrityError, match="can't be read"):
        store.manifest(tiny)


def test_a_manifest_under_a_foreign_name_is_an_integrity_error(store: ModelStore, tiny: ModelId) -> None:
    path = folder_of(store, tiny) / MANIFEST_FILE
    path.chmod(0o644)
    path.write_text(json.dumps({**json.loads(path.read_text()), "name": "../../etc"}))
    with pytest.raises(IntegrityError):
        store.manifest(tiny)


# What else lies in a store


class KeepingDisk(Disk):
    """Deletes nothing, as where all is another user's."""

    def remove(self, path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))


def test_leftovers_that_can_not_be_deleted_keep_no_writer_from_its_work(
    store: ModelStore, tiny: ModelId, tmp_path: Path
) -> None:
    keeping = ModelStore(store.root, KeepingDisk())
    (store.root / tiny.name / ".incoming-2").mkdir()
    third = make_tiny_version(keeping, tiny.name)
    assert third.version == 3
    keeping.promote(third, "production")
    keeping.remove(tiny)
    assert store.versions(tiny.name) == [3]
    assert make_tiny_version(keeping, tiny.name).version == 4
    assert make_tiny_version(store, tiny.name).version == 5
    assert sorted(path.name for path in (store.root / tiny.name).glob(".*")) == [".lock", ".removed-1"]


def test_a_link_in_a_version_is_no_obstacle_to_its_removal(store: ModelStore, tiny: ModelId, tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "kept").touch()
    second = make_tiny_version(store, tiny.name)
    folder = folder_of(store, second)
    folder.chmod(0o755)
    (folder / "cache").symlink_to(elsewhere)
    with pytest.raises(IntegrityError, match="cache: delete them, or remove the version"):
        store.open(second)
    store.promote(tiny, "production")
    store.remove(second)
    assert not list((store.root / tiny.name).glob(".removed-*/*"))
    assert (elsewhere / "kept").exists()


def test_a_version_that_is_removed_while_it_is_read_is_not_called_damaged(
    store: ModelStore, tiny: ModelId, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = make_tiny_version(store, tiny.name)
    store.promote(tiny, "production")
    removed: list[bool] = []

    def list_then_remove(folder: Path) -> list[os.DirEntry[str]]:
        entries = list_entries(folder)
        if folder == folder_of(store, second) and not removed:
            removed.append(True)
            ModelStore(store.root).remove(second)
        return entries

    monkeypatch.setattr("model_store.store.list_entries", list_then_remove)
    with pytest.raises(ModelNotFoundError):
        store.open(second)


def test_folders_and_files_that_are_no_models_are_not_listed(store: ModelStore, tiny: ModelId) -> None:
    for folder in ("lost+found", ".git", "Upper", "empty", "tiny/01", "tiny/0", "tiny/draft", "tiny/9999999999"):
        (store.root / folder).mkdir()
    (store.root / "README.md").write_text("")
    (store.root / "tiny" / "2").write_text("a file, not a version")
    assert store.names() == ["tiny"]
    assert store.versions("tiny") == [1]


def test_a_link_is_not_a_version_and_what_it_leads_to_is_never_removed(
    store: ModelStore, tiny: ModelId, tmp_path: Path
) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "precious").write_text("")
    (store.root / "tiny" / "2").symlink_to(tmp_path / "elsewhere")
    assert store.versions("tiny") == [1]
    with pytest.raises(ModelNotFoundError):
        store.remove(ModelId(name="tiny", version=2))
    assert (tmp_path / "elsewhere" / "precious").exists()


def test_a_model_linked_under_a_second_name_is_refused_by_its_manifest(store: ModelStore, tiny: ModelId) -> None:
    (store.root / "alias").symlink_to(store.root / "tiny")
    with pytest.raises(IntegrityError, match="that of tiny@1"):
        store.open(ModelId(name="alias", version=1))


def test_a_loop_of_links_is_an_integrity_error(store: ModelStore, tiny: ModelId) -> None:
    os.symlink("loop", store.root / "loop")  # noqa: PTH211 - a link to itself
    with pytest.raises(IntegrityError, match="can't be read"):
        store.versions("loop")


def test_a_manifest_that_is_a_link_is_refused(store: ModelStore, tiny: ModelId, tmp_path: Path) -> None:
    manifest = store.root / tiny.name / str(tiny.version) / "manifest.json"
    manifest.rename(tmp_path / "elsewhere.json")
    manifest.symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(IntegrityError, match="can't be read"):
        store.open(tiny)
