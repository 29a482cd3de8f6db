"""Every setting of every peer for a moment, then the best of each for as long as the measurement takes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import httpx
import numpy as np

from model_store.classifier import to_scores
from service.comparison.errors import ComparisonError
from service.comparison.servers import Waits, free_port, running
from tests.benchmarks.effort import Effort
from tests.benchmarks.figures import Figure, Report
from tests.benchmarks.peers.assignment import Assignment, Setting, settings
from tests.benchmarks.peers.catalogue import PEERS, Peer
from tests.benchmarks.peers.environments import environment
from tests.benchmarks.peers.errors import PeerError
from tests.benchmarks.peers.processes import Family
from tests.benchmarks.servers import Target
from tests.benchmarks.subjects import Subject
from tests.benchmarks.wrk import Driven, drive

CONNECTIONS = 16
_ROOT = Path(__file__).parents[3]
_WAITS = Waits(ready_seconds=90, stop_seconds=1)  # nothing is lost when a peer is killed
# Timers that came due while it slept, and cold caches.
_WAKE_UP_SECONDS = 1.0
_CHECKED_TEXTS = 8
# Some peers write scores with fewer digits.
_SAME_SCORES = 1e-3


@dataclass(frozen=True, slots=True)
class RunningPeer:
    """A peer that sleeps unless it is driven, so that it takes nothing from those whose turn it is."""

    peer: Peer
    setting: Setting
    target: Target
    family: Family

    def driven(self, connections: int, seconds: float, *, before: float = _WAKE_UP_SECONDS) -> Driven:
        """Wake it, drive it for `before` seconds that don't count, then for `seconds`, and let it sleep again."""
        url, path, bodies = self.target.server.url, self.target.path, self.target.bodies
        with self.family.awake():
            drive(url, path, bodies, connections, before)
            return drive(url, path, bodies, connections, seconds)


@contextmanager
def started(peer: Peer, python: Path, subject: Subject, setting: Setting, logs: Path) -> Iterator[RunningPeer]:
    """A peer in a setting, with none of its processes left when the block ends.

    Raises:
        ServerStartError: it ended, or was not ready in time.
        PeerError: it does not answer what the file answers.
    """
    port, *spare_ports = _free_ports(3)
    url = f"http://127.0.0.1:{port}"
    assignment = Assignment(
        str(subject.store.root.absolute()), str(subject.model), port, (spare_ports[0], spare_ports[1]), setting
    )
    waits = replace(_WAITS, ready_path=peer.ready)
    # Peers leave files there when they are killed; and sockets, whose paths may have no more than about 100 characters.
    short = TemporaryDirectory(prefix="peer-", dir="/tmp", ignore_cleanup_errors=True)
    with short as folder, Family() as family:
        variables = {**family.environment(), **assignment.environment(), "PYTHONPATH": str(_ROOT), "TMPDIR": folder}
        with running(peer.command(python), variables, url, logs / f"{peer.key}.log", waits) as server:
            target = Target(peer.name, server, peer.path, [peer.ask(text, setting) for text in subject.texts])
            _check(peer, target, subject)
            try:
                yield RunningPeer(peer, setting, target, family)
            finally:
                family.resume()  # who is stopped can't obey SIGTERM


def screen(
    peer: Peer, python: Path, subject: Subject, effort: Effort, report: Report, *, logs: Path, cores: int
) -> Setting:
    """Try every setting, one after another, and return the one with the highest rate.

    Raises:
        PeerError: none works.
    """
    rates: dict[Setting, float] = {}
    for setting in settings(cores, batched=subject.artifact.batch_invariant):
        try:
            with started(peer, python, subject, setting, logs) as candidate:
                seen = candidate.driven(CONNECTIONS, effort.peer_seconds, before=effort.peer_seconds)
        except (PeerError, ComparisonError) as error:
            report.skip(f"{peer.name}, {setting}", str(error))
            continue
        rates[setting] = seen.answers_a_second
        note = f"{setting}; {seen.failed} failed" if seen.failed else str(setting)
        report.add(Figure(subject.label, f"{peer.name}, first look", seen.answers_a_second, "texts/s", note=note))
    return best(rates)


def best(rates: Mapping[Setting, float]) -> Setting:
    """The setting with the highest rate.

    Raises:
        PeerError: there is none with an answer.
    """
    answering = {setting: rate for setting, rate in rates.items() if rate > 0}
    if not answering:
        raise PeerError("it answers in no setting")
    return max(answering, key=lambda setting: answering[setting])


def start_each_at_its_best(
    stack: ExitStack,
    subject: Subject,
    effort: Effort,
    report: Report,
    logs: Path,
    *,
    environments: Path,
    cores: int,
    peers: Sequence[Peer] = PEERS,
) -> list[RunningPeer]:
    """Install, screen and start the peers; they sleep until they are driven and end with the stack.

    Those that can't be installed or started are reported as skipped, with the reason.
    """
    running_peers: list[RunningPeer] = []
    for peer in peers:
        try:
            report.console.print(f"{peer.name}: installing where needed, then every setting", highlight=False)
            python = environment(peer, environments)
            setting = screen(peer, python, subject, effort, report, logs=logs, cores=cores)
            chosen = stack.enter_context(started(peer, python, subject, setting, logs))
            chosen.driven(CONNECTIONS, effort.peer_seconds, before=effort.peer_seconds)
        except (PeerError, ComparisonError) as error:
            report.skip(peer.name, str(error))
            continue
        running_peers.append(chosen)
    return running_peers


def _free_ports(count: int) -> list[int]:
    """Different ones: the system may name a port again that nobody has taken yet."""
    ports: set[int] = set()
    while len(ports) < count:
        ports.add(free_port())
    return list(ports)


def _check(peer: Peer, target: Target, subject: Subject) -> None:
    """Refuse a peer whose scores are not those of the file, text by text."""
    classifier = subject.classifier(threads=1)
    for body, encoded in list(zip(target.bodies, subject.encoded, strict=True))[:_CHECKED_TEXTS]:
        expected = to_scores(classifier.run([encoded]), classifier.manifest.scores)[0]
        try:
            response = httpx.post(f"{target.server.url}{target.path}", json=body, timeout=30)
            response.raise_for_status()
            scores = np.array(peer.read(response.json()), dtype=np.float64)
        except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
            raise PeerError(f"its first answers can't be read: {error!r}") from error
        if scores.shape != expected.shape or not np.allclose(scores, expected, atol=_SAME_SCORES):
            raise PeerError(f"it answers {scores.tolist()} where the file answers {expected.tolist()}")
