"""The peers among those who take turns, and what the service is in proportion to them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

from tests.benchmarks.figures import Figure, Report, at_least, ratio_of_rounds
from tests.benchmarks.peers.screening import RunningPeer

PEER_BAR = 1.15
CONNECTIONS = (16, 64)
_BARRED_CONNECTIONS = 16


class Contest:
    """Peers at their best settings, driven for `seconds` whenever it is their turn."""

    def __init__(self, peers: Sequence[RunningPeer], seconds: float) -> None:
        self._peers = peers
        self._seconds = seconds
        self._failed = {peer.target.name: 0 for peer in peers}  # requests, over all turns

    def contestants(self) -> dict[str, Callable[[], float]]:
        """`NAME, CONNECTIONS` to a turn, which gives answers a second."""
        return {
            f"{peer.target.name}, {connections}": partial(self._take_turn, peer, connections)
            for peer in self._peers
            for connections in CONNECTIONS
        }

    def report(self, label: str, rates: Mapping[str, Sequence[float]], report: Report) -> None:
        """Report failed requests and ratios; `rates` are those of the contestants and of `service, CONNECTIONS`."""
        for peer in self._peers:
            name, note = f"failed requests, {peer.target.name}", f"{peer.setting}; at all numbers of connections"
            report.add(Figure(label, name, self._failed[peer.target.name], note=note))
        report_ratios(label, rates, list(self._failed), report)

    def _take_turn(self, peer: RunningPeer, connections: int) -> float:
        seen = peer.driven(connections, self._seconds)
        self._failed[peer.target.name] += seen.failed
        return seen.answers_a_second


def report_ratios(label: str, rates: Mapping[str, Sequence[float]], names: Sequence[str], report: Report) -> None:
    """Report the service against every peer, and against the best of them, which has the bar.

    Args:
        label: of the subject.
        rates: texts a second by round, of `service, N` and of `NAME, N`, for each number N of connections.
        names: the peers that were measured; none is a failure: there is nothing that the service could be better than.
        report: gets the figures.
    """
    for connections in CONNECTIONS:
        bar = at_least(PEER_BAR) if connections == _BARRED_CONNECTIONS else None
        name = f"service at {connections} connections ÷"
        if not names:
            report.add(Figure(label, f"{name} best peer", float("nan"), bar=bar, note="no peer could be measured"))
            continue
        ratios = {
            peer: ratio_of_rounds(rates[f"service, {connections}"], rates[f"{peer}, {connections}"]) for peer in names
        }
        for peer, ratio in ratios.items():
            report.add(Figure(label, f"{name} {peer}", ratio.value, interval=ratio.interval))
        best = min(ratios, key=lambda peer: ratios[peer].value)
        ratio = ratios[best]
        report.add(Figure(label, f"{name} best peer", ratio.value, interval=ratio.interval, bar=bar, note=best))
