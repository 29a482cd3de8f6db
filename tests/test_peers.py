from __future__ import annotations

import io
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from model_store.store import ModelStore
from service.comparison.errors import ServerStartError
from tests.benchmarks.effort import QUICK
from tests.benchmarks.figures import Report
from tests.benchmarks.peers.assignment import Assignment, Setting, settings
from tests.benchmarks.peers.catalogue import PEERS, Peer
from tests.benchmarks.peers.contest import Contest, report_ratios
from tests.benchmarks.peers.environments import environment
from tests.benchmarks.peers.errors import PeerError
from tests.benchmarks.peers.processes import Family
from tests.benchmarks.peers.screening import RunningPeer, best, screen, start_each_at_its_best, started
from tests.benchmarks.subjects import Subject
from tests.tiny import make_tiny_version

PYTHON = Path(sys.executable)
ALONE = Setting(workers=1, threads=1)
EFFORT = replace(QUICK, peer_seconds=1.0)
STUB = Peer(
    name="Stub",
    key="stub",
    module="tests.stub_peer",
    packages=("pip",),  # every environment has it: nothing is downloaded
    constraints=PEERS[0].constraints,
    ready="/up",
    path="/classify",
    ask=lambda text, _: {"text": text},
    read=lambda answer: list(answer["probs"]),
)
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); time.sleep(600)"
PARENT = f"""
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", {STUBBORN!r}], start_new_session=True, stdout=subprocess.PIPE,
                         stderr=subprocess.DEVNULL)
child.stdout.readline()
print(child.pid, flush=True)
"""


@pytest.fixture
def report() -> Report:
    return Report(Console(file=io.StringIO()))


@pytest.fixture
def subject(store: ModelStore) -> Subject:
    return Subject("tiny", store, make_tiny_version(store, "tiny"), ["the film is good", "dull"])


def orphan(family: Family) -> psutil.Process:
    """A process in a session of its own that ignores SIGTERM, and whose parent has ended."""
    command = [sys.executable, "-c", PARENT]
    done = subprocess.run(command, env=family.environment(), capture_output=True, text=True, check=True, timeout=60)
    return psutil.Process(int(done.stdout))


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def descendants() -> list[psutil.Process]:
    return [child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]


def test_a_peer_is_tried_with_all_cores_in_one_call_and_one_call_a_core_without_and_with_batches() -> None:
    tried = settings(2, batched=True)
    assert {(setting.workers, setting.threads) for setting in tried} == {(1, 2), (2, 1)}
    assert [setting.batch for setting in tried] == [1, 4, 8, 1, 4, 8]
    assert all((setting.wait_ms > 0) == (setting.batch > 1) for setting in tried)
    assert len(settings(1, batched=True)) == 3


def test_a_file_whose_answers_depend_on_the_batch_is_not_batched() -> None:
    assert [setting.batch for setting in settings(2, batched=False)] == [1, 1]


def test_a_setting_says_what_it_is() -> None:
    assert str(Setting(2, 1)) == "2 workers × 1 threads, no batching"
    assert str(Setting(1, 2, 8, 4)) == "1 workers × 2 threads, batches up to 8 within 4 ms"


def test_an_assignment_reaches_another_process_as_it_was() -> None:
    assignment = Assignment("/store", "tiny@1", 8000, (8001, 8002), Setting(2, 1, 4, 2))
    assert Assignment.from_environment(assignment.environment()) == assignment


def test_the_best_setting_is_the_one_with_the_highest_rate() -> None:
    assert best({Setting(1, 2): 10.0, Setting(2, 1): 30.0, Setting(2, 1, 4, 2): 20.0}) == Setting(2, 1)


@pytest.mark.parametrize("rates", [{}, {Setting(1, 2): 0.0}])
def test_a_peer_that_answers_in_no_setting_has_no_best_one(rates: dict[Setting, float]) -> None:
    with pytest.raises(PeerError, match="in no setting"):
        best(rates)


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.key)
def test_every_version_that_a_peer_asks_for_is_pinned(peer: Peer) -> None:
    lines = [line for line in peer.constraints.read_text().splitlines() if not line.startswith("#")]
    pinned = {line.partition("==")[0].lower() for line in lines}
    assert all("==" in line and "/" not in line for line in lines)
    assert {requirement.partition("[")[0] for requirement in peer.packages} <= pinned


@pytest.mark.parametrize("peer", PEERS, ids=lambda peer: peer.key)
def test_a_peers_server_runs_with_the_interpreter_of_its_environment(peer: Peer) -> None:
    interpreter, option, module = peer.command(Path("/environment/bin/python"))
    assert (interpreter, option) == ("/environment/bin/python", "-m")
    assert Path(*module.split(".")).with_suffix(".py").is_file()


@pytest.mark.parametrize("setting", [ALONE, Setting(1, 2, 4, 2)], ids=["alone", "batched"])
def test_every_peer_is_asked_about_one_text_a_request(setting: Setting) -> None:
    for peer in PEERS:
        assert str(peer.ask("dull", setting)).count("dull") == 1


def test_scores_are_read_from_every_peers_form_of_answer() -> None:
    answers = {
        "litserve": {"label": "positive", "probs": [0.25, 0.75]},
        "bentoml": [{"label": "positive", "probs": [0.25, 0.75]}],
        "mlserver": {"outputs": [{"name": "scores", "shape": [1, 2], "data": [0.25, 0.75]}]},
        "ray": {"label": "positive", "probs": [0.25, 0.75]},
    }
    assert {peer.key: peer.read(answers[peer.key]) for peer in PEERS} == {key: [0.25, 0.75] for key in answers}
    bentoml = next(peer for peer in PEERS if peer.key == "bentoml")
    assert bentoml.read({"probs": [1.0]}) == [1.0]


@pytest.mark.slow
def test_an_environment_is_made_once_and_again_when_its_versions_change(tmp_path: Path) -> None:
    python = environment(STUB, tmp_path)
    (witness := python.parent / "witness").touch()
    assert environment(STUB, tmp_path) == python
    assert witness.exists()
    other = tmp_path / "constraints.txt"
    other.write_text("# other versions\n")
    assert environment(replace(STUB, constraints=other), tmp_path) == python
    assert not witness.exists()


@pytest.mark.slow
def test_an_environment_that_pip_can_not_make_is_refused_with_pips_reason_and_not_taken_for_made(
    tmp_path: Path,
) -> None:
    peer = replace(STUB, packages=("not/a/requirement",))
    for _ in range(2):
        with pytest.raises(PeerError, match=r"could not be installed: ERROR: Invalid requirement"):
            environment(peer, tmp_path)


@pytest.mark.slow
def test_an_installation_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    with pytest.raises(PeerError, match="timed out"):
        environment(STUB, tmp_path, seconds=0.05)
    assert descendants() == []


@pytest.mark.slow
def test_a_family_is_ended_to_its_last_orphan() -> None:
    with Family() as family, Family() as other:
        ended, spared = orphan(family), orphan(other)
        assert family.processes() == [ended]
        family.end()
        wait_until(lambda: not ended.is_running() or ended.status() == psutil.STATUS_ZOMBIE)
        assert spared.is_running()


@pytest.mark.slow
def test_a_family_sleeps_unless_it_is_awake() -> None:
    with Family() as family:
        process = orphan(family)
        family.pause()
        wait_until(lambda: process.status() == psutil.STATUS_STOPPED)
        with family.awake():
            wait_until(lambda: process.status() != psutil.STATUS_STOPPED)
        wait_until(lambda: process.status() == psutil.STATUS_STOPPED)


@pytest.mark.slow
def test_a_peer_takes_its_turns_and_nothing_of_it_is_left_although_it_ignores_sigterm(
    subject: Subject, tmp_path: Path, report: Report
) -> None:
    with started(STUB, PYTHON, subject, ALONE, tmp_path) as peer:
        contest = Contest([peer], seconds=1)
        rates = {name: [turn()] * 2 for name, turn in contest.contestants().items()}
        assert list(rates) == ["Stub, 16", "Stub, 64"]
        contest.report("tiny", {**rates, "service, 16": [1.0] * 2, "service, 64": [1.0] * 2}, report)
        figures = {figure.name: figure for figure in report.figures}
        assert figures["failed requests, Stub"].value == 0
        assert figures["service at 16 connections ÷ Stub"].value == pytest.approx(1 / rates["Stub, 16"][0])
        members = peer.family.processes()
        assert len(members) == 2
        assert {member.status() for member in members} == {psutil.STATUS_STOPPED}
    assert peer.family.processes() == []


@pytest.mark.slow
def test_nothing_of_a_peer_is_left_when_the_measurement_fails(subject: Subject, tmp_path: Path) -> None:
    def fail_while_it_sleeps(peer: RunningPeer) -> None:
        peer.family.pause()
        raise KeyError

    with pytest.raises(KeyError), started(STUB, PYTHON, subject, ALONE, tmp_path) as peer:
        fail_while_it_sleeps(peer)
    assert peer.family.processes() == []


@pytest.mark.slow
def test_a_peer_that_answers_otherwise_than_the_file_is_refused(store: ModelStore, tmp_path: Path) -> None:
    subject = Subject("wrong", store, make_tiny_version(store, "wrong"), ["the film is good"])
    with (
        pytest.raises(PeerError, match="where the file answers"),
        started(STUB, PYTHON, subject, ALONE, tmp_path),
    ):
        pass


@pytest.mark.slow
def test_a_peer_whose_answers_have_another_form_is_refused(subject: Subject, tmp_path: Path) -> None:
    strange = replace(STUB, read=lambda answer: list(answer["scores"]))
    with (
        pytest.raises(PeerError, match=r"can't be read: KeyError\('scores'\)"),
        started(strange, PYTHON, subject, ALONE, tmp_path),
    ):
        pass


@pytest.mark.slow
def test_a_setting_that_does_not_start_is_skipped_with_the_reason_and_the_best_of_the_others_is_taken(
    store: ModelStore, tmp_path: Path, report: Report
) -> None:
    model = make_tiny_version(store, "leaky", batch_invariant=False)
    subject = Subject("leaky", store, model, ["dull"])
    assert screen(STUB, PYTHON, subject, EFFORT, report, logs=tmp_path, cores=2) == Setting(1, 2)
    assert [figure.note for figure in report.figures] == [str(Setting(1, 2))]
    ((what, why),) = report.skipped.items()
    assert what == "Stub, 2 workers × 1 threads, no batching"
    assert "one worker is all that there is" in why


@pytest.mark.slow
def test_peers_that_can_not_be_installed_or_started_are_reported_and_the_others_sleep(
    store: ModelStore, tmp_path: Path, report: Report
) -> None:
    subject = Subject("leaky", store, make_tiny_version(store, "leaky", batch_invariant=False), ["dull"])
    broken = replace(STUB, name="Broken", key="broken", packages=("not/a/requirement",))
    python = environment(STUB, tmp_path / "environments")
    python.unlink()
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')  # it has what the stub needs
    python.chmod(0o755)
    with ExitStack() as stack:
        (peer,) = start_each_at_its_best(
            stack,
            subject,
            EFFORT,
            report,
            tmp_path,
            environments=tmp_path / "environments",
            cores=1,
            peers=(broken, STUB),
        )
        assert peer.setting == ALONE
        assert {member.status() for member in peer.family.processes()} == {psutil.STATUS_STOPPED}
    assert peer.family.processes() == []
    assert list(report.skipped) == ["Broken"]


def test_the_service_is_held_against_the_peer_that_is_best_at_16_connections(report: Report) -> None:
    rates = {
        "service, 16": [30.0, 30.0],
        "slow, 16": [10.0, 10.0],
        "fast, 16": [20.0, 20.0],
        "service, 64": [30.0, 30.0],
        "slow, 64": [10.0, 10.0],
        "fast, 64": [30.0, 30.0],
    }
    report_ratios("tiny", rates, ["slow", "fast"], report)
    ratios = {figure.name: (round(figure.value, 9), figure.note, figure.verdict) for figure in report.figures}
    assert ratios == {
        "service at 16 connections ÷ slow": (3.0, "", ""),
        "service at 16 connections ÷ fast": (1.5, "", ""),
        "service at 16 connections ÷ best peer": (1.5, "fast", "pass"),
        "service at 64 connections ÷ slow": (3.0, "", ""),
        "service at 64 connections ÷ fast": (1.0, "", ""),
        "service at 64 connections ÷ best peer": (1.0, "fast", ""),
    }


def test_without_any_peer_the_bar_is_missed(report: Report) -> None:
    report_ratios("tiny", {"service, 16": [1.0], "service, 64": [1.0]}, [], report)
    assert [figure.name for figure in report.failed] == ["service at 16 connections ÷ best peer"]


@pytest.mark.slow
def test_a_peer_that_ends_at_once_is_an_error_with_its_last_words(subject: Subject, tmp_path: Path) -> None:
    with (
        pytest.raises(ServerStartError, match="one worker is all that there is"),
        started(STUB, PYTHON, subject, Setting(2, 1), tmp_path),
    ):
        pass
    assert descendants() == []
