"""The measurement: both models asked the same texts, next to each other in time, and every answer kept.

At one connection request follows request: A B, B A, A B, … At many connections block follows block in the same way,
and both blocks of a round are the same texts in the same order. So whatever else the machine does meets both, and
neither always comes first. The blocks together cover every text, so the answers that accuracy and agreement are
computed from are those that throughput is computed from.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Literal, NamedTuple

import numpy as np
import orjson

from model_store.manifest import Problem
from service.comparison.connection import Origin, Reply
from service.comparison.errors import ComparisonError, LoadError
from service.comparison.load import Client
from service.comparison.servers import ServedModel, Server
from service.comparison.texts import Example

Key = Literal["a", "b"]
Answer = str | tuple[str, ...] | float
Progress = Callable[[str, int, int], None]

PAIRS = 600
BLOCKS = 10
# A block this many times its connections long ends with few of them idle.
_REQUESTS_PER_CONNECTION = 6
_FEWEST_PAIRS = 30


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two models, and where it answers."""

    reference: str
    served: ServedModel
    server: Server


class Sides(NamedTuple):
    """The two models, as they were given: predecessor first."""

    a: Side
    b: Side


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured.

    Attributes:
        pairs: requests to each model at one connection.
        pair_seconds: no further pair is begun after this time, once 30 are there.
        blocks: blocks of each model at many connections.
        connections: how many "many" are.
        warm_up_seconds: load on each model before anything is kept.
    """

    pairs: int = PAIRS
    pair_seconds: float = 60.0
    blocks: int = BLOCKS
    connections: int = 16
    warm_up_seconds: float = 1.5


@dataclass(frozen=True, slots=True)
class Sample:
    """One answer.

    Attributes:
        model: which of the two answered.
        connections: how many connections were in use.
        block: the pair's, or block's, number; the same for both models.
        text: the text's position in the given texts.
        started: seconds since the measurement began.
        seconds: latency.
        answer: the label, the labels above the threshold, or a regression's number.
    """

    model: Key
    connections: int
    block: int
    text: int
    started: float
    seconds: float
    answer: Answer


def check_sides(sides: Sides) -> None:
    """Refuse two models of which nothing could be compared.

    Raises:
        ComparisonError: different problems or inputs, or no label in common.
    """
    a, b = sides.a.served, sides.b.served
    if a.problem != b.problem:
        raise ComparisonError(f"{a.id} is {a.problem} and {b.id} {b.problem}: compare models of one problem")
    if a.pair != b.pair:
        paired, single = (a, b) if a.pair else (b, a)
        raise ComparisonError(f"{paired.id} reads pairs and {single.id} single texts: compare models of one kind")
    if a.problem != "regression" and not set(a.labels) & set(b.labels):
        raise ComparisonError(f"no label in common: {a.id} has {', '.join(a.labels)}, {b.id} has {', '.join(b.labels)}")


async def measure(sides: Sides, examples: Sequence[Example], plan: Plan, progress: Progress) -> list[Sample]:
    """Warm both models up, then measure as the module says.

    Raises:
        LoadError: a request was not answered, or not with 200 and a label.
    """
    order = [int(text) for text in np.random.default_rng(0).permutation(len(examples))]
    problem = sides.a.served.problem
    async with (
        Client(sides.a.server.url, plan.connections) as client_a,
        Client(sides.b.server.url, plan.connections) as client_b,
    ):
        requests: dict[Key, list[bytes]] = {"a": _requests(sides.a, examples), "b": _requests(sides.b, examples)}
        drive = _Drive({"a": client_a, "b": client_b}, requests, order, progress)
        for reply in await drive.warm_up(plan.warm_up_seconds):
            read_answer(reply.body, problem)
        started = perf_counter()
        singles = await drive.alternate_requests(plan.pairs, plan.pair_seconds)
        blocks = await drive.alternate_blocks(plan.blocks, plan.connections)
    return [
        Sample(
            model=block.model,
            connections=connections,
            block=block.number,
            text=text,
            started=reply.sent - started,
            seconds=reply.latency,
            answer=read_answer(reply.body, problem),
        )
        for connections, asked in ((1, singles), (plan.connections, blocks))
        for block in asked
        for text, reply in zip(block.texts, block.replies, strict=True)
    ]


class _Block(NamedTuple):
    """Texts that one model was asked without a break; at one connection a single text."""

    model: Key
    number: int
    texts: Sequence[int]
    replies: Sequence[Reply]


@dataclass(frozen=True, slots=True)
class _Drive:
    """Drives both models through the phases."""

    clients: dict[Key, Client]
    requests: dict[Key, list[bytes]]
    order: list[int]  # the texts, shuffled: a file sorted by length or label would flatter batching
    progress: Progress

    async def warm_up(self, seconds: float) -> list[Reply]:
        replies: list[Reply] = []
        for done, key in enumerate(_both(0)):
            self.progress("warm-up", done, 2)
            endless = itertools.cycle(self.requests[key][text] for text in self.order)
            replies += await self.clients[key].closed_loop(endless, seconds=seconds)
        self.progress("warm-up", 2, 2)
        return replies

    async def alternate_requests(self, pairs: int, most_seconds: float) -> list[_Block]:
        asked: list[_Block] = []
        end = perf_counter() + most_seconds
        for pair, text in enumerate(itertools.islice(itertools.cycle(self.order), pairs)):
            if pair >= _FEWEST_PAIRS and perf_counter() > end:
                break
            for key in _both(pair):
                reply = await self.clients[key].ask(self.requests[key][text])
                asked.append(_Block(key, pair, [text], [reply]))
            self.progress("1 connection", pair + 1, pairs)
        return asked

    async def alternate_blocks(self, blocks: int, connections: int) -> list[_Block]:
        asked: list[_Block] = []
        phase = f"{connections} connections"
        passes = -(-blocks * connections * _REQUESTS_PER_CONNECTION // len(self.order))
        for block, texts in enumerate(np.array_split(self.order * passes, blocks)):
            for turn, key in enumerate(_both(block)):
                self.progress(phase, 2 * block + turn, 2 * blocks)
                replies = await self.clients[key].closed_loop(self.requests[key][text] for text in texts)
                asked.append(_Block(key, block, texts.tolist(), replies))
        self.progress(phase, 2 * blocks, 2 * blocks)
        return asked


def read_answer(body: bytes, problem: Problem) -> Answer:
    """The label, labels or number in the answer to one text.

    Raises:
        LoadError: the answer has another form.
    """
    try:
        (entry,) = orjson.loads(body)["data"]
        if problem == "regression":
            return float(entry["score"])
        labels = entry["labels"] if problem == "multi_label" else [entry["label"]]
        names = tuple(sorted(label.encode().decode() for label in labels))  # each must be a text
        return names if problem == "multi_label" else names[0]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        start = body[:80].decode(errors="replace")
        raise LoadError(f"an answer has a form that is not known: {start}") from error


def _both(turn: int) -> tuple[Key, Key]:
    return ("a", "b") if turn % 2 == 0 else ("b", "a")


def _requests(side: Side, examples: Sequence[Example]) -> list[bytes]:
    origin = Origin.parse(side.server.url)
    return [
        origin.post(
            "/v1/classify",
            {
                "model": side.served.id,
                "input": example.text if example.text_pair is None else [[example.text, example.text_pair]],
            },
            side.server.headers,
        )
        for example in examples
    ]
