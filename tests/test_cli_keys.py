"""`successor keys`: what is printed once, what the file holds, and what is refused."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from service.access import Keyring, KeysFileError, digest_of, parse_keys
from service.cli import main
from service.errors import AuthenticationError


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as exited:
        main(["keys", *arguments], plugins=[])
    return int(exited.value.code or 0)


def test_a_new_key_is_printed_once_and_only_its_digest_is_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys.json"
    assert run("new", "shop", "--scope", "infer", "--scope", "metrics", "--rate", "50", "--file", str(file)) == 0
    printed = capsys.readouterr()
    key = printed.out.strip()
    assert "shop may infer, metrics" in printed.err
    assert key not in file.read_text()
    assert json.loads(file.read_text()) == {
        "anonymous": [],
        "keys": [
            {
                "name": "shop",
                "sha256": digest_of(key),
                "scopes": ["infer", "metrics"],
                "requests_per_second": 50.0,
            }
        ],
    }
    assert stat.S_IMODE(file.stat().st_mode) & 0o007 == 0
    assert Keyring(file).admit({b"x-api-key": key.encode()}, "metrics") == "shop"


def test_a_key_may_infer_as_often_as_it_likes_unless_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.json"
    assert run("new", "a", "--file", str(file), "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["entry"] == {
        "name": "a",
        "sha256": digest_of(answer["key"]),
        "scopes": ["infer"],
        "requests_per_second": None,
    }


def test_keys_are_listed_without_what_could_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.json"
    run("new", "first", "--file", str(file))
    run("new", "second", "--scope", "admin", "--rate", "0.5", "--file", str(file))
    keys = capsys.readouterr().out.split()
    assert run("list", "--file", str(file)) == 0
    printed = capsys.readouterr().out
    assert printed == "first  infer\nsecond  admin  0.5 requests a second\n"
    assert run("list", "--file", str(file), "--json") == 0
    assert [entry["name"] for entry in json.loads(capsys.readouterr().out)] == ["first", "second"]
    assert not any(key in printed for key in keys)


def test_a_revoked_key_is_let_in_no_more_and_the_others_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.json"
    run("new", "old", "--file", str(file))
    run("new", "kept", "--file", str(file))
    old, kept = (key.encode() for key in capsys.readouterr().out.split())
    ring = Keyring(file)
    assert run("revoke", "old", "--file", str(file)) == 0
    ring.refresh()
    with pytest.raises(AuthenticationError):
        ring.admit({b"x-api-key": old}, "infer")
    assert ring.admit({b"x-api-key": kept}, "infer") == "kept"


def test_a_server_that_has_the_file_itself_mounted_sees_a_key_revoked(tmp_path: Path) -> None:
    file, mounted = tmp_path / "keys.json", tmp_path / "mounted.json"
    run("new", "shop", "--file", str(file))
    run("new", "a-name-that-is-longer", "--file", str(file))
    mounted.hardlink_to(file)  # as a mount does, it stays with what the file was
    for name in ("shop", "a-name-that-is-longer"):
        assert run("revoke", name, "--file", str(file)) == 0
    assert parse_keys(mounted.read_bytes(), mounted).keys == ()
    assert sorted(one.name for one in tmp_path.iterdir()) == ["keys.json", "mounted.json"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["new", "there"], "has a key 'there': revoke it first"),
        (["new", "not a name"], "are not valid: keys.1.name"),
        (["new", "x", "--rate", "0"], "requests_per_second"),
        (["revoke", "nobody"], "has no key 'nobody': it has there"),
    ],
)
def test_what_can_not_be_done_is_one_line_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    file = tmp_path / "keys.json"
    run("new", "there", "--file", str(file))
    before = file.read_bytes()
    capsys.readouterr()
    assert run(*arguments, "--file", str(file)) == 1
    printed = capsys.readouterr()
    assert message in printed.err
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    assert file.read_bytes() == before


def test_a_file_that_is_damaged_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys.json"
    file.write_text("{")
    for arguments in (["new", "a"], ["list"], ["revoke", "a"]):
        assert run(*arguments, "--file", str(file)) == 1
        assert "are not valid" in capsys.readouterr().err
    assert file.read_text() == "{"


def test_a_file_that_can_not_be_written_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("new", "a", "--file", str(tmp_path / "nowhere" / "keys.json")) == 1
    printed = capsys.readouterr()
    assert "can't be written (No such file or directory)" in printed.err
    assert printed.out == ""


def test_keys_that_are_made_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    command = [sys.executable, "-m", "service.cli", "keys", "new", "--file", str(file)]
    makers = [subprocess.Popen([*command, f"key-{number}"], stdout=subprocess.DEVNULL) for number in range(6)]
    assert [maker.wait(60) for maker in makers] == [0] * 6
    assert sorted(entry["name"] for entry in json.loads(file.read_text())["keys"]) == [f"key-{n}" for n in range(6)]


def test_a_folder_that_lets_the_keys_be_locked_and_not_written_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / ".keys.json.incoming").mkdir()
    assert run("new", "a", "--file", str(tmp_path / "keys.json")) == 1
    assert "can't be written (Is a directory)" in capsys.readouterr().err


def test_a_scope_that_is_none_is_bad_usage(tmp_path: Path) -> None:
    assert run("new", "a", "--scope", "root", "--file", str(tmp_path / "keys.json")) == 2
    with pytest.raises(KeysFileError):
        Keyring(tmp_path / "keys.json")


def test_the_file_is_taken_from_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SUCCESSOR_API_KEYS_FILE", str(tmp_path / "keys.json"))
    assert run("new", "a") == 0
    assert run("list") == 0
    assert "a  infer" in capsys.readouterr().out
