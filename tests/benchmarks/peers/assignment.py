"""How a peer is to serve, handed to its processes in one environment variable."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass

VARIABLE = "SUCCESSOR_BENCHMARK_PEER"


@dataclass(frozen=True, slots=True)
class Setting:
    """What a peer can be told about the work: the same for all of them.

    Attributes:
        workers: processes (or replicas) that run the model.
        threads: intra-op threads of a worker's session.
        batch: texts that may be run together; 1 switches the peer's batching off.
        wait_ms: how long a batch waits for further texts.
    """

    workers: int
    threads: int
    batch: int = 1
    wait_ms: int = 0

    def __str__(self) -> str:
        batching = f"batches up to {self.batch} within {self.wait_ms} ms" if self.batch > 1 else "no batching"
        return f"{self.workers} workers × {self.threads} threads, {batching}"


@dataclass(frozen=True, slots=True)
class Assignment:
    """What a peer's process needs to know.

    Attributes:
        store: the model store's folder.
        model: the reference of the version.
        port: where to listen, on 127.0.0.1.
        spare_ports: two further free ports, for what a peer can't be kept from listening on.
        setting: how.
    """

    store: str
    model: str
    port: int
    spare_ports: tuple[int, int]
    setting: Setting

    def environment(self) -> dict[str, str]:
        """The variable that `from_environment` reads."""
        return {VARIABLE: json.dumps(asdict(self))}

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Assignment:
        """What the process that started this one has assigned to it."""
        content = json.loads(environment[VARIABLE])
        spare_ports, setting = tuple(content["spare_ports"]), Setting(**content["setting"])
        return cls(**{**content, "spare_ports": spare_ports, "setting": setting})


def settings(cores: int, *, batched: bool) -> list[Setting]:
    """Every setting that is tried: all cores in one call or one call for each core, without batches and with.

    Args:
        cores: of the machine.
        batched: whether the file gives a text the same answer in every batch; otherwise it is not batched.
    """
    batches = ((1, 0), (4, 2), (8, 4)) if batched else ((1, 0),)
    shapes = sorted({(1, cores), (cores, 1)})
    return [Setting(workers, threads, batch, wait) for workers, threads in shapes for batch, wait in batches]
