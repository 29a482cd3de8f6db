from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import psutil
import pytest

from service.comparison import servers
from service.comparison.errors import LoadError, ServerStartError
from service.comparison.servers import ServedModel, Server, Waits, free_port, resolve_served, running
from tests.stub_server import StubServer, entry

READY = """
import http.server, os, signal, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health/ready" else 404)
        self.end_headers()
    def log_message(self, *_): pass
if "stubborn" in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
MODELS = [
    ServedModel.model_validate(entry(model, aliases=aliases))
    for model, aliases in (("large@1", []), ("large@2", ["canary"]), ("small@1", ["production"]), ("small@2", []))
]


def start(tmp_path: Path, code: str, *arguments: str, waits: Waits = servers.WAITS) -> AbstractContextManager[Server]:
    port = free_port()
    command = [sys.executable, "-c", code, str(port), *arguments]
    return running(command, os.environ, f"http://127.0.0.1:{port}", tmp_path / "log", waits)


@pytest.mark.parametrize(
    ("reference", "resolved"),
    [
        ("large", "large@2"),
        ("large@1", "large@1"),
        ("large@canary", "large@2"),
        ("small", "small@1"),
        ("small@production", "small@1"),
        ("small@2", "small@2"),
    ],
)
def test_a_reference_means_what_the_server_takes_it_for(reference: str, resolved: str) -> None:
    assert resolve_served(MODELS, reference).id == resolved


@pytest.mark.parametrize("reference", ["none", "large@3", "small@canary", "large@"])
def test_a_model_that_is_not_loaded_is_refused_with_those_that_are(reference: str) -> None:
    with pytest.raises(LoadError, match="it has large@1, large@2, small@1, small@2"):
        resolve_served(MODELS, reference)


def test_a_server_without_models_says_so() -> None:
    with pytest.raises(LoadError, match="it has nothing"):
        resolve_served([], "large")


def test_a_servers_models_are_read() -> None:
    with StubServer([entry("large@1", aliases=["production"])]) as server:
        (model,) = Server(server.url).models()
    assert (model.id, model.aliases, model.threads) == ("large@1", ("production",), 1)


def test_a_server_that_is_not_one_of_ours_is_refused() -> None:
    with StubServer([{"id": "gpt"}]) as server, pytest.raises(LoadError, match="not a Successor server"):
        Server(server.url).models()


def test_a_server_that_does_not_answer_is_refused() -> None:
    with pytest.raises(LoadError, match="is the server running"):
        Server(f"http://127.0.0.1:{free_port()}").models()


def test_the_memory_of_a_server_that_was_not_started_here_is_not_known() -> None:
    assert Server("http://127.0.0.1:1").resident_bytes() is None


@pytest.mark.slow
def test_a_server_runs_while_the_block_does_and_its_memory_is_known(tmp_path: Path) -> None:
    with start(tmp_path, READY) as server:
        assert server.process is not None
        assert server.resident_bytes() == pytest.approx(server.process.memory_info().rss, rel=0.5)
    assert not psutil.pid_exists(server.process.pid)


@pytest.mark.slow
def test_a_server_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    with start(tmp_path, READY, "stubborn", waits=Waits(ready_seconds=60, stop_seconds=0.1)) as server:
        assert server.process is not None
    assert not psutil.pid_exists(server.process.pid)


@pytest.mark.slow
def test_a_server_that_ends_is_an_error_with_its_last_log_lines(tmp_path: Path) -> None:
    failing = "import sys; print('loading'); sys.exit('the store is empty')"
    with (
        pytest.raises(ServerStartError, match=r"ended with exit code 1: (loading \| )?the store is empty"),
        start(tmp_path, failing),
    ):
        pass


@pytest.mark.slow
def test_a_server_that_is_not_ready_in_time_is_an_error_and_is_ended(tmp_path: Path) -> None:
    with (
        pytest.raises(ServerStartError, match=r"not ready within 0\.3 s: it printed nothing"),
        start(tmp_path, "import time; time.sleep(60)", waits=Waits(ready_seconds=0.3, stop_seconds=5)),
    ):
        pass
    assert not [child for child in psutil.Process().children() if "time.sleep(60)" in " ".join(child.cmdline())]


@pytest.mark.slow
def test_sigterm_ends_the_servers_too(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, start(tmp_path, READY) as server:  # noqa: PT012 - the signal arrives inside
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
    assert caught.value.code == 128 + signal.SIGTERM
    assert server.process is not None
    assert not server.process.is_running()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.slow
def test_a_server_can_be_run_from_another_thread(tmp_path: Path) -> None:
    seen: list[str] = []

    def work() -> None:
        with start(tmp_path, READY) as server:
            seen.append(server.url)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen


def test_no_proxy_stands_between_us_and_a_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    with StubServer([entry("large@1")]) as server:
        assert [model.id for model in Server(server.url).models()] == ["large@1"]
    with start(tmp_path, READY, waits=Waits(ready_seconds=20)) as started:
        assert started.process is not None


def test_a_server_gets_the_settings_that_say_how_models_run_and_no_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, str] = {}

    @contextmanager
    def run(command: list[str], environment: dict[str, str], *_: object) -> Iterator[Server]:
        seen.update(environment, command=" ".join(command))
        yield Server("http://x")

    monkeypatch.setattr(servers, "running", run)
    for name in ("STATE_DIR", "MAX_CONNECTIONS", "API_KEYS_FILE", "PROVIDER"):
        monkeypatch.setenv(f"SUCCESSOR_{name}", name)
    monkeypatch.setenv("successor_threads", "3")
    with servers.serving(["large@1"], tmp_path, tmp_path / "log", max_wait_ms="60000"):
        pass
    given = {name.upper(): value for name, value in seen.items() if name.upper().startswith("SUCCESSOR_")}
    assert given == {
        "SUCCESSOR_MODELS": '["large@1"]',
        "SUCCESSOR_MAX_WAIT_MS": "60000",
        "SUCCESSOR_PROVIDER": "PROVIDER",
        "SUCCESSOR_THREADS": "3",
    }
    assert " -P -m service.cli serve " in seen["command"]


def test_a_server_has_settled_when_it_does_nothing_any_more(monkeypatch: pytest.MonkeyPatch) -> None:
    used = iter([0.0, 0.5, 0.9, 0.901, 0.902, 1.2, 1.2, 1.2, 1.2, 9.0, 9.0])
    looks: list[float] = []
    monkeypatch.setattr(time, "sleep", looks.append)
    monkeypatch.setattr(Server, "_used_seconds", lambda _: next(used))
    Server("http://x").settle(60)
    assert next(used) == 9.0
    assert len(looks) == 8
    Server("http://x").settle(0)  # taken as it is


def test_what_a_server_has_used_is_known_also_when_it_has_just_ended(tmp_path: Path) -> None:
    with start(tmp_path, READY) as server:
        assert server._used_seconds() > 0
        assert server.process is not None
        server.process.kill()
        server.process.wait()
        assert server._used_seconds() == 0
        assert server.resident_bytes() is None


@pytest.mark.parametrize("ignored", [True, False])
def test_a_signal_that_is_ignored_stays_so(ignored: bool) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        with servers.exit_on_sigterm():
            assert (signal.getsignal(signal.SIGHUP) is signal.SIG_IGN) == ignored
            if not ignored:
                with pytest.raises(SystemExit, match=str(128 + signal.SIGHUP)):
                    signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is (signal.SIG_IGN if ignored else signal.SIG_DFL)
    finally:
        signal.signal(signal.SIGHUP, before)
