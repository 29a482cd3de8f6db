"""The peers: what is installed for each, and how it is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.benchmarks.peers.assignment import Setting

Answer = Any  # what JSON can hold

_FOLDER = Path(__file__).parent
# What `inference` needs in every peer's environment, and what makes uvicorn fast.
_COMMON = ("httptools", "numpy", "onnxruntime", "orjson", "pydantic", "tokenizers", "uvloop")


@dataclass(frozen=True, slots=True)
class Peer:
    """A serving system.

    Attributes:
        name: how the report calls it.
        key: of its environment and its log.
        module: its server.
        packages: what pip is asked to install.
        constraints: the file with the versions.
        ready: the path that answers 200 when it is up.
        path: where texts are posted.
        ask: from a text to the body that the peer reads in a setting.
        read: from the peer's answer to the text's scores.
    """

    name: str
    key: str
    module: str
    packages: tuple[str, ...]
    constraints: Path
    ready: str
    path: str
    ask: Callable[[str, Setting], dict[str, Any]]
    read: Callable[[Answer], list[float]]

    def command(self, python: Path) -> list[str]:
        """Its server, started with the interpreter of its environment."""
        return [str(python), "-m", self.module]


def _ask_text(text: str, _: Setting) -> dict[str, Any]:
    return {"text": text}


def _read_probs(answer: Answer) -> list[float]:
    return list(answer["probs"])


def _ask_bentoml(text: str, setting: Setting) -> dict[str, Any]:
    return {"texts": [text]} if setting.batch > 1 else {"text": text}


def _read_bentoml(answer: Answer) -> list[float]:
    return _read_probs(answer[0] if isinstance(answer, list) else answer)


def _ask_open_inference(text: str, _: Setting) -> dict[str, Any]:
    return {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [text]}]}


def _read_open_inference(answer: Answer) -> list[float]:
    return list(answer["outputs"][0]["data"])


PEERS = (
    Peer(
        name="LitServe",
        key="litserve",
        module=f"{__package__}.litserve_server",
        packages=("litserve", "torch", *_COMMON),
        constraints=_FOLDER / "litserve-constraints.txt",
        ready="/health",
        path="/classify",
        ask=_ask_text,
        read=_read_probs,
    ),
    Peer(
        name="BentoML",
        key="bentoml",
        module=f"{__package__}.bentoml_server",
        packages=("bentoml", *_COMMON),
        constraints=_FOLDER / "bentoml-constraints.txt",
        ready="/readyz",
        path="/classify",
        ask=_ask_bentoml,
        read=_read_bentoml,
    ),
    Peer(
        name="MLServer",
        key="mlserver",
        module=f"{__package__}.mlserver_server",
        packages=("mlserver", *_COMMON),
        constraints=_FOLDER / "mlserver-constraints.txt",
        ready="/v2/models/classify/ready",
        path="/v2/models/classify/infer",
        ask=_ask_open_inference,
        read=_read_open_inference,
    ),
    Peer(
        name="Ray Serve",
        key="ray",
        module=f"{__package__}.ray_server",
        packages=("ray[serve]", *_COMMON),
        constraints=_FOLDER / "ray-constraints.txt",
        ready="/",
        path="/",
        ask=_ask_text,
        read=_read_probs,
    ),
)
