"""The real server: sockets, signals, processes."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import multiprocessing.context
import os
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil
import pytest

from model_store.manifest import ModelId
from model_store.store import ModelStore
from service import health_check
from service.errors import ListenError
from service.processes import Supervisor
from service.server import Loop, address, listen, run_process
from service.settings import load_settings
from tests.keys import BEARER, write_keys
from tests.tiny import make_tiny_version

pytestmark = pytest.mark.slow

_PROGRAM = """
import sys
from service.server import serve
from service.settings import load_settings
if __name__ == "__main__":
    sys.exit(serve(load_settings()))
"""


class RunningServer:
    """A server process and the port that it listens on."""

    def __init__(self, process: subprocess.Popen[str], port: int, tls: ssl.SSLContext | None = None) -> None:
        self.process = process
        self.port = port
        self.tls = tls

    def connect(self, port: int | None = None) -> http.client.HTTPConnection:
        """A connection to its port or another one of it, with TLS where it has that."""
        port = port or self.port
        if self.tls is None:
            return http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        return http.client.HTTPSConnection("127.0.0.1", port, timeout=20, context=self.tls)

    def request(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: Mapping[str, str] = {},
        *,
        port: int | None = None,
    ) -> tuple[int, dict[str, str], dict[str, object]]:
        connection = self.connect(port)
        try:
            connection.request(method, path, None if body is None else json.dumps(body), dict(headers))
            response = connection.getresponse()
            return response.status, {k.lower(): v for k, v in response.getheaders()}, json.loads(response.read())
        finally:
            connection.close()

    def classify(self, text: str = "a good film") -> int:
        return self.request("POST", "/v1/classify", {"model": "tiny", "input": text})[0]

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def started(
    store: ModelStore, folder: Path, *, tls: ssl.SSLContext | None = None, before: str = "", **settings: str
) -> RunningServer:
    """A server whose process has been started, ready or not."""
    program = folder / "program.py"
    program.write_text(before + _PROGRAM)
    port = free_port()
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "SUCCESSOR_STORE_DIR": str(store.root),
        "SUCCESSOR_PORT": str(port),
        **{f"SUCCESSOR_{name.upper()}": value for name, value in settings.items()},
    }
    process = subprocess.Popen(
        [sys.executable, str(program)], env=environment, stderr=subprocess.PIPE, text=True, cwd=folder
    )
    return RunningServer(process, port, tls)


@contextlib.contextmanager
def server(
    store: ModelStore, folder: Path, *, tls: ssl.SSLContext | None = None, before: str = "", **settings: str
) -> Iterator[RunningServer]:
    """A server that is ready, ended at the end of the block."""
    running = started(store, folder, tls=tls, before=before, **settings)
    process = running.process
    try:
        give_up = time.monotonic() + 30
        while True:
            with contextlib.suppress(OSError, http.client.HTTPException):
                if running.request("GET", "/health/ready")[0] == 200:
                    break
            assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < give_up, "not ready"
            time.sleep(0.05)
        yield running
    finally:
        if process.poll() is None:
            process.terminate()
            try:
                process.communicate(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()


def test_it_serves_until_sigterm_and_exits_with_0(store: ModelStore, tiny: ModelId, tmp_path: Path) -> None:
    with server(store, tmp_path) as running:
        status, headers, body = running.request("POST", "/v1/classify", {"model": "tiny", "input": "a good film"})
        assert (status, headers["x-model-version"], body["model"]) == (200, "tiny@1", "tiny@1")
        code, errors = running.stop()
    assert code == 0
    events = [json.loads(line)["event"] for line in errors.splitlines()]
    assert events == ["starting", "version loaded", "going down"]


def test_a_container_asks_whether_it_is_ready(
    store: ModelStore, tiny: ModelId, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with server(store, tmp_path) as running:
        monkeypatch.setenv("SUCCESSOR_PORT", str(running.port))
        assert health_check.main() == 0
        running.stop()
        assert health_check.main() == 1


@pytest.mark.parametrize(("answer", "ready"), [(b"503 Service Unavailable", False), (b"200 OK", True), (b"", False)])
def test_an_answer_other_than_200_is_not_ready(answer: bytes, ready: bool) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def reply() -> None:
            with listener.accept()[0] as connection:
                connection.recv(1024)
                connection.sendall(b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % answer)

        replying = threading.Thread(target=reply)
        replying.start()
        assert health_check.is_ready(listener.getsockname()[1], tls=False) is ready
        replying.join()


def test_sigint_ends_it_as_well(store: ModelStore, tiny: ModelId, tmp_path: Path) -> None:
    with server(store, tmp_path) as running:
        assert running.stop(signal.SIGINT)[0] == 0


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_that_still_loads_ends_at_once(
    store: ModelStore, tiny: ModelId, tmp_path: Path, processes: str, number: int
) -> None:
    endless = (
        "import os, threading\nfrom service.loading import Loader\n"
        "def load(self, model):\n    os.write(2, b'loading\\n')\n    threading.Event().wait()\n"
        "Loader.__call__ = load\n"
    )
    running = started(store, tmp_path, before=endless, processes=processes)
    assert running.process.stderr is not None
    for _ in range(int(processes)):
        while running.process.stderr.readline() != "loading\n":
            assert running.process.poll() is None
    begun = time.monotonic()
    assert running.stop(number)[0] == 0
    assert time.monotonic() - begun < 15  # a load is waited for twice as long


@pytest.mark.parametrize("processes", ["1", "2"])
def test_under_load_sigterm_leaves_no_accepted_request_without_an_answer(
    store: ModelStore, tiny: ModelId, tmp_path: Path, processes: str
) -> None:
    answered: list[int] = []
    lost: list[str] = []
    leaving = threading.Event()

    def ask(port: int) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        with contextlib.suppress(ConnectionRefusedError):
            while True:
                try:
                    connection.request("POST", "/v1/classify", json.dumps({"model": "tiny", "input": "a good film"}))
                    response = connection.getresponse()
                    response.read()
                except ConnectionRefusedError:
                    raise
                except (OSError, http.client.HTTPException) as error:
                    lost.append(repr(error))
                    return
                answered.append(response.status)
                if leaving.is_set() and response.getheader("connection") == "close":
                    return

    with server(store, tmp_path, processes=processes) as running:
        threads = [threading.Thread(target=ask, args=(running.port,)) for _ in range(8)]
        for thread in threads:
            thread.start()
        while len(answered) < 100:
            time.sleep(0.01)
        leaving.set()
        code, _ = running.stop()
        for thread in threads:
            thread.join()
    assert code == 0
    assert lost == []
    assert set(answered) == {200}


def test_a_server_that_measures_its_model_ends_well_all_the_same(
    store: ModelStore, tiny: ModelId, tmp_path: Path
) -> None:
    """A thread that comes back from the runtime while the interpreter ends aborts the process."""
    measuring = (
        "import os\nimport service.loading as loading\n"
        "def endless(classifier, *_):\n"
        "    os.write(2, b'measuring\\n')\n"
        "    batch = [loading._sample(classifier)] * 64\n"
        "    while True:\n        classifier.run(batch)\n"
        "loading._measure = endless\n"
    )
    with server(store, tmp_path, before=measuring) as running:
        assert running.process.stderr is not None
        while running.process.stderr.readline() != "measuring\n":
            assert running.process.poll() is None
        code, errors = running.stop()
    assert code == 0, errors
    assert "left behind" in errors


_ENDLESS_CALLS = (
    "import os, threading\nimport service.workers as workers\nrun = workers.run_isolated\n"
    "def stuck(classifier, items):\n"
    "    if any(item.text.text == 'endless' for item in items):\n"
    "        os.write(2, b'stuck\\n')\n        threading.Event().wait()\n"
    "    return run(classifier, items)\n"
    "workers.run_isolated = stuck\n"
)


@contextlib.contextmanager
def endless_request(running: RunningServer, requests: int = 1) -> Iterator[list[http.client.HTTPConnection]]:
    """Requests that the server never has an answer to; it is at the first of them."""
    assert running.process.stderr is not None
    connections = [running.connect() for _ in range(requests)]
    try:
        for connection in connections:
            connection.request("POST", "/v1/classify", json.dumps({"model": "tiny", "input": "endless"}))
        while running.process.stderr.readline() != "stuck\n":
            assert running.process.poll() is None
        yield connections
    finally:
        for connection in connections:
            connection.close()


def test_what_is_in_flight_at_the_end_has_the_time_that_the_setting_says(
    store: ModelStore, tiny: ModelId, tmp_path: Path
) -> None:
    with (
        server(store, tmp_path, before=_ENDLESS_CALLS, drain_ms="1000", request_timeout_ms="60000") as running,
        endless_request(running) as (connection,),
    ):
        begun = time.monotonic()
        running.process.send_signal(signal.SIGTERM)
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["error"]["code"]) == (503, "shutting_down")
        assert time.monotonic() - begun > 0.9
        running.process.communicate(timeout=20)
        assert time.monotonic() - begun < 15
        assert running.process.returncode == 0


def test_a_second_signal_cuts_one_process_short_and_none_of_several(
    store: ModelStore, tiny: ModelId, tmp_path: Path
) -> None:
    for processes, drain_s in (("1", 60), ("2", 3)):
        several = processes != "1"
        with (
            server(
                store,
                tmp_path,
                before=_ENDLESS_CALLS,
                drain_ms=str(1000 * drain_s),
                request_timeout_ms="90000",
                processes=processes,
            ) as running,
            endless_request(running, 4),
        ):
            children = psutil.Process(running.process.pid).children(recursive=True) if several else []
            begun = time.monotonic()
            for _ in range(2):
                for process in (psutil.Process(running.process.pid), *children):
                    with contextlib.suppress(psutil.NoSuchProcess):  # one that had nothing in flight
                        process.send_signal(signal.SIGTERM)
                time.sleep(0.5)
            running.process.communicate(timeout=30)
            assert (time.monotonic() - begun > drain_s - 0.5) == several


def test_processes_whose_parent_was_killed_end_as_well(store: ModelStore, tiny: ModelId, tmp_path: Path) -> None:
    with server(store, tmp_path, processes="2") as running:
        children = [psutil.Process(pid) for pid in server_processes(running)]
        assert len(children) == 2
        running.process.kill()
        _, alive = psutil.wait_procs(children, timeout=20)
        for process in alive:
            process.kill()
        assert alive == []
        running.process.communicate(timeout=20)


def test_a_terminal_that_interrupts_all_leaves_the_end_to_the_parent(
    store: ModelStore, tiny: ModelId, tmp_path: Path
) -> None:
    with server(store, tmp_path, processes="2") as running:
        own = os.getpgid(running.process.pid)
        assert all(os.getpgid(pid) != own for pid in server_processes(running))


def test_a_process_that_does_not_end_is_killed(tmp_path: Path) -> None:
    program = tmp_path / "deaf.py"
    program.write_text(
        "import os, signal, socket, sys, time\n"
        "import service.processes as processes\n"
        "from service.settings import load_settings\n"
        "processes._END_MARGIN_S = 0.5\n"
        "def deaf(settings, listeners, control):\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    os.write(1, b'deaf\\n')\n"
        "    while True:\n        time.sleep(1)\n"
        "if __name__ == '__main__':\n"
        "    with socket.socket() as listener:\n"
        "        sys.exit(processes.Supervisor(load_settings(processes=2, drain_ms=100), [listener], deaf).serve())\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(
        [sys.executable, str(program)], env=environment, stdout=subprocess.PIPE, text=True
    ) as running:
        assert running.stdout is not None
        assert [running.stdout.readline() for _ in range(2)] == ["deaf\n", "deaf\n"]
        children = [one for one in psutil.Process(running.pid).children() if "spawn_main" in " ".join(one.cmdline())]
        assert len(children) == 2
        running.terminate()
        assert running.wait(20) == 1
        assert psutil.wait_procs(children, timeout=10)[1] == []


def test_a_client_that_hangs_up_is_not_waited_for(store: ModelStore, tiny: ModelId, tmp_path: Path) -> None:
    with server(store, tmp_path) as running:
        body = json.dumps({"model": "tiny", "input": ["a good film"] * 200}).encode()
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", running.port)) as connection:
                connection.sendall(
                    b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(body) + body
                )
        assert running.classify() == 200
        assert running.stop()[0] == 0


def test_garbage_on_the_socket_does_not_disturb_others(store: ModelStore, tiny: ModelId, tmp_path: Path) -> None:
    with server(store, tmp_path) as running:
        for garbage in (
            b"\x00\xff" * 500,
            b"POST /v1/classify HTTP/1.1\r\nContent-Length: nonsense\r\n\r\n",
            b"GET\r\n\r\n",
        ):
            with socket.create_connection(("127.0.0.1", running.port), timeout=10) as connection:
                connection.sendall(garbage)
                assert connection.recv(100).startswith(b"HTTP/1.1 400")
        assert running.classify() == 200


def test_several_processes_share_the_port_the_metrics_and_what_they_are_told(
    store: ModelStore, tiny: ModelId, tmp_path: Path
) -> None:
    keys = write_keys(tmp_path / "keys.json")
    with server(store, tmp_path, processes="2", api_keys_file=str(keys), store_poll_ms="0") as running:

        def ask() -> str:
            return str(running.request("POST", "/v1/classify", {"model": "tiny", "input": "a"}, BEARER)[2]["model"])

        assert {ask() for _ in range(40)} == {"tiny@1"}
        give_up = time.monotonic() + 20
        while metric(running, 'successor_texts_total{model="tiny",version="1"}') != 40:
            # The process that isn't asked counts what it has answered a moment later.
            assert time.monotonic() < give_up
        make_tiny_version(store, seed=1, aliases=("production",))
        assert running.request("POST", "/v1/admin/sync", headers=BEARER)[0] == 200
        versions = {ask() for _ in range(40)}
        assert versions == {"tiny@2"}
        assert running.stop()[0] == 0


def test_a_process_that_dies_is_replaced(store: ModelStore, tiny: ModelId, tmp_path: Path) -> None:
    with server(store, tmp_path, processes="2") as running:
        before = server_processes(running)
        os.kill(min(before), signal.SIGKILL)
        give_up = time.monotonic() + 30
        while len(now := server_processes(running)) < 2 or now == before:
            assert time.monotonic() < give_up
            time.sleep(0.05)
        assert running.classify() == 200
        code, errors = running.stop()
    assert code == 0, errors
    assert "server process died" in errors


def test_a_process_without_a_worker_that_could_answer_ends_to_be_started_again(
    store: ModelStore, tiny: ModelId, tmp_path: Path
) -> None:
    endless = (
        "import threading\nfrom model_store.classifier import OnnxClassifier\nencode = OnnxClassifier.encode\n"
        "def stuck(self, item, **options):\n"
        "    if item.text == 'endless':\n        threading.Event().wait()\n"
        "    return encode(self, item, **options)\n"
        "OnnxClassifier.encode = stuck\n"
    )
    with server(store, tmp_path, before=endless, threads="1", stuck_call_ms="50", drain_ms="100") as running:
        for _ in range(5):
            assert running.classify() == 200
            assert running.classify("endless") == 503
        _, errors = running.process.communicate(timeout=30)
    assert running.process.returncode == 1
    assert "no worker can answer" in errors


def test_processes_that_keep_dying_end_the_server(store: ModelStore, tiny: ModelId, tmp_path: Path) -> None:
    with server(store, tmp_path, processes="1") as running:
        code, _ = running.stop()
        assert code == 0
    program = tmp_path / "dying.py"
    program.write_text(
        "import os, socket, sys\n"
        "from service.processes import Supervisor\n"
        "from service.settings import load_settings\n"
        "def die(settings, listeners, control):\n    os._exit(3)\n"
        "if __name__ == '__main__':\n"
        "    with socket.socket() as listener:\n"
        "        sys.exit(Supervisor(load_settings(processes=2), [listener], die).serve())\n"
    )
    done = subprocess.run(
        [sys.executable, str(program)],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1


def test_a_handshake_that_does_not_end_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.server._HANDSHAKE_S", 0.05)

    async def silent() -> bytes:
        listening = await asyncio.get_running_loop().create_server(
            asyncio.Protocol, "127.0.0.1", 0, ssl=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        )
        async with listening:
            reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
            try:
                return await asyncio.wait_for(reader.read(), 20)
            finally:
                writer.close()

    with asyncio.Runner(loop_factory=Loop) as runner:
        assert runner.run(silent()) == b""


def test_an_address_that_is_taken_is_refused_in_one_line() -> None:
    with listen("127.0.0.1", 0) as taken, pytest.raises(ListenError, match="choose another --host or --port"):
        listen("127.0.0.1", taken.getsockname()[1])


def test_it_listens_on_ipv6_as_well() -> None:
    if not socket.has_ipv6:
        pytest.skip("no IPv6 here")
    with listen("::1", 0) as listener:
        assert listener.family == socket.AF_INET6


def test_an_ipv6_address_is_in_brackets_before_its_port() -> None:
    assert (address("::1", 80), address("127.0.0.1", 80)) == ("[::1]:80", "127.0.0.1:80")
    with pytest.raises(ListenError, match=r"can't listen on \[2001:db8::1\]:80 "):
        listen("2001:db8::1", 80)


def test_a_request_that_does_not_arrive_is_given_up_and_holds_nothing(
    store: ModelStore, tiny: ModelId, tmp_path: Path
) -> None:
    with server(store, tmp_path, receive_timeout_ms="50", keep_alive_ms="50") as running:
        for sent, answer in (
            (b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{", b"HTTP/1.1 408 "),
            (b"GET /health/ready HTTP/1.1\r\nHo", b"HTTP/1.1 408 "),
            (b"", b""),
        ):
            with socket.create_connection(("127.0.0.1", running.port), timeout=20) as connection:
                connection.sendall(sent)
                assert connection.makefile("rb").read().startswith(answer)
        code, errors = running.stop()
    assert (code, "Traceback" in errors) == (0, False)


def server_processes(running: RunningServer) -> set[int]:
    """The living processes that its parent has started to serve."""
    serving = set()
    for child in psutil.Process(running.process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess, psutil.ZombieProcess):  # it has just died
            if child.status() != psutil.STATUS_ZOMBIE and "spawn_main" in " ".join(child.cmdline()):
                serving.add(child.pid)
    return serving


def metric(running: RunningServer, name: str) -> float:
    connection = http.client.HTTPConnection("127.0.0.1", running.port, timeout=20)
    connection.request("GET", "/metrics", headers=BEARER)
    text = connection.getresponse().read().decode()
    connection.close()
    return next(float(line.rsplit(" ", 1)[1]) for line in text.splitlines() if line.startswith(name))


def test_a_process_that_can_not_be_started_now_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = Supervisor(load_settings(processes=2), [], run_process)
    started: list[object] = []

    def start(process: object) -> None:
        started.append(process)
        if len(started) == 1:
            raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(multiprocessing.context.SpawnProcess, "start", start)
    monkeypatch.setattr(multiprocessing.context.SpawnProcess, "is_alive", lambda _: True)
    supervisor._control = tmp_path
    for _ in range(4):
        supervisor._replace_dead()
    assert len(started) == 3
    assert len(supervisor._started) == 2
