"""The real server against those who don't belong: keys, TLS, ports, huge and slow requests, paths, deep JSON."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import trustme

from model_store.manifest import ModelId
from model_store.store import ModelStore
from service.errors import TlsError
from service.health_check import is_ready
from service.server import allow_connections, check_access, check_certificate, is_loopback
from service.settings import InvalidSettingsError, load_settings
from tests.keys import BEARER, KEY, entry, write_keys
from tests.test_server import RunningServer, free_port, server
from tests.tiny import make_tiny_version

MEGABYTE = 2**20
CLASSIFY = {"model": "tiny", "input": "a good film"}


# Keys


@pytest.mark.slow
def test_every_process_asks_for_keys_forgets_revoked_ones_and_counts_with_the_others(
    store: ModelStore, tiny: ModelId, tmp_path: Path
) -> None:
    slow = entry("slow", "infer", name="slow", requests_per_second=5)
    path = write_keys(tmp_path / "keys.json", entry(KEY, "infer", "metrics"), slow)
    with server(store, tmp_path, processes="2", api_keys_file=str(path)) as running:

        def status(headers: dict[str, str]) -> int:
            return running.request("POST", "/v1/classify", CLASSIFY, headers)[0]

        assert {status({}) for _ in range(20)} == {401}
        assert {status(BEARER) for _ in range(20)} == {200}
        begun = time.monotonic()
        answered = [status({"x-api-key": "slow"}) for _ in range(40)]
        elapsed = time.monotonic() - begun
        assert set(answered) == {200, 429}
        # Each process for itself would let twice as many through.
        assert 5 <= answered.count(200) <= 5 + 5 * elapsed + 1
        write_keys(path, slow)
        give_up = time.monotonic() + 20
        refused = 0
        while refused < 20:  # by all processes
            refused = refused + 1 if status(BEARER) == 401 else 0
            assert time.monotonic() < give_up
        code, log = running.stop()
    assert code == 0
    assert KEY not in log


@pytest.mark.slow
def test_operations_have_a_port_of_their_own_in_every_process(store: ModelStore, tiny: ModelId, tmp_path: Path) -> None:
    operations = free_port()
    settings: dict[str, Any] = {"processes": "2", "operations_port": str(operations)}
    with server(store, tmp_path, **settings) as running:
        for _ in range(10):
            assert running.classify() == 200
            assert running.request("GET", "/health/ready", port=operations)[0] == 200
            assert running.request("POST", "/v1/classify", CLASSIFY, port=operations)[0] == 404
            assert running.request("GET", "/metrics")[0] == 404
        connection = running.connect(operations)
        connection.request("GET", "/metrics")
        assert b"successor_texts_total" in connection.getresponse().read()
        connection.close()
        assert running.stop()[0] == 0


# TLS


@pytest.fixture(scope="session")
def authority() -> trustme.CA:
    return trustme.CA()


def issue(authority: trustme.CA, folder: Path) -> tuple[Path, Path]:
    """A certificate for this machine and its key."""
    issued = authority.issue_cert("127.0.0.1", "localhost")
    cert, key = folder / "cert.pem", folder / "key.pem"
    issued.private_key_pem.write_to_path(key)
    for index, part in enumerate(issued.cert_chain_pems):
        part.write_to_path(cert, append=index > 0)
    return cert, key


@pytest.mark.slow
def test_with_a_certificate_every_port_speaks_tls_and_nothing_else(
    store: ModelStore, tiny: ModelId, tmp_path: Path, authority: trustme.CA
) -> None:
    cert, key = issue(authority, tmp_path)
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    operations = free_port()
    settings: dict[str, Any] = {
        "tls_cert_file": str(cert),
        "tls_key_file": str(key),
        "operations_port": str(operations),
    }
    with server(store, tmp_path, tls=trusting, **settings) as running:
        assert is_ready(running.port, tls=True)
        assert not is_ready(running.port, tls=False)
        assert running.classify() == 200
        assert running.request("GET", "/health/live", port=operations)[0] == 200
        for garbage in (b"nonsense\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"):
            with (
                socket.create_connection(("127.0.0.1", running.port), timeout=20) as plain,
                trusting.wrap_socket(plain, server_hostname="127.0.0.1") as secure,
            ):
                secure.sendall(garbage)
                assert secure.recv(12) in {b"HTTP/1.1 400", b"HTTP/1.1 431"}
        for port in (running.port, operations):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
            connection.request("GET", "/health/live")
            with pytest.raises((http.client.BadStatusLine, ConnectionError)):
                connection.getresponse()
            connection.close()
        code, log = running.stop()
    assert code == 0, log
    assert "https://127.0.0.1" in log
    assert "PRIVATE KEY" not in log


def test_a_key_of_another_certificate_is_refused_in_one_line_before_anything_starts(
    tmp_path: Path, authority: trustme.CA
) -> None:
    (tmp_path / "other").mkdir()
    cert, key = issue(authority, tmp_path)
    other_cert, other_key = issue(authority, tmp_path / "other")
    check_certificate(cert, key)
    with pytest.raises(TlsError, match=rf"^the private key {other_key} is not that of the certificate {cert}$"):
        check_certificate(cert, other_key)
    with pytest.raises(TlsError, match="are not a certificate and its key in PEM"):
        check_certificate(key, other_cert)
    with pytest.raises(TlsError, match=r"can't be read \(No such file or directory\)"):
        check_certificate(cert, tmp_path / "nowhere")
    with pytest.raises(TlsError, match="check its path and owner"):
        check_access(load_settings(tls_cert_file=cert, tls_key_file=tmp_path / "nowhere"))


def test_a_private_key_with_a_password_is_refused_without_asking_for_it(tmp_path: Path, authority: trustme.CA) -> None:
    from cryptography.hazmat.primitives import serialization

    cert, key = issue(authority, tmp_path)
    private = serialization.load_pem_private_key(key.read_bytes(), None)
    encryption = serialization.BestAvailableEncryption(b"password")
    key.write_bytes(private.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption))
    with pytest.raises(TlsError, match="has a password: give the server one without"):
        check_certificate(cert, key)


def test_a_certificate_without_its_key_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettingsError, match="needs both SUCCESSOR_TLS_CERT_FILE and SUCCESSOR_TLS_KEY_FILE"):
        load_settings(tls_cert_file=tmp_path / "cert.pem")


# Addresses


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        ("127.0.0.1", True),
        ("127.8.0.9", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("example.org", False),
    ],
)
def test_an_address_that_others_reach_is_told_from_one_that_they_don_t(host: str, *, loopback: bool) -> None:
    assert is_loopback(host) == loopback


@pytest.mark.slow
@pytest.mark.parametrize(
    ("host", "keys", "warnings"), [("0.0.0.0", False, 1), ("0.0.0.0", True, 0), ("127.0.0.1", False, 0)]
)
def test_a_server_that_is_open_to_all_says_so_once(
    store: ModelStore, tiny: ModelId, tmp_path: Path, host: str, *, keys: bool, warnings: int
) -> None:
    settings: dict[str, Any] = {"host": host, "processes": "2"}
    if keys:
        settings["api_keys_file"] = str(write_keys(tmp_path / "keys.json"))
    with server(store, tmp_path, **settings) as running:
        _, log = running.stop()
    assert log.count("anybody who reaches this address may use it") == warnings


def test_the_limit_of_open_files_is_raised_to_what_connections_need() -> None:
    program = (
        "import resource\n"
        "from service.server import allow_connections\n"
        "_, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (300, hard))\n"
        "allow_connections(1_000)\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (300, 400))\n"
        "allow_connections(1_000)\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert [line for line in done.stdout.splitlines() if line.isdigit()] == ["1256", "400"]
    assert "raise it" in done.stdout + done.stderr
    allow_connections(1)


# Huge and slow requests


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory, tiny_store: ModelStore) -> Iterator[RunningServer]:
    """A server with short patience and a key."""
    folder = tmp_path_factory.mktemp("strict")
    keys = write_keys(folder / "keys.json")
    settings: dict[str, Any] = {"receive_timeout_ms": "1500", "api_keys_file": str(keys), "default_model": "tiny"}
    settings["log_level"] = "warning"  # nobody reads its log: a pipe that is full would stop it
    with server(tiny_store, folder, **settings) as running:
        yield running


def peak_bytes(running: RunningServer) -> int:
    """The most memory that the process ever had."""
    status = Path(f"/proc/{running.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) * 1_024


POSTS = ("/v1/classify", "/v2/models/tiny/infer", "/predict", "/models/tiny", "/v2/repository/index")


@pytest.mark.slow
@pytest.mark.parametrize("announced", [True, False])
@pytest.mark.parametrize("path", [*POSTS, "/v1/admin/models/tiny/aliases/x"])
def test_a_body_of_100_megabytes_is_cut_off_without_being_kept(
    strict: RunningServer, path: str, *, announced: bool
) -> None:
    method = "PUT" if "admin" in path else "POST"
    length = f"Content-Length: {100 * MEGABYTE}" if announced else "Transfer-Encoding: chunked"
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\n{length}\r\n\r\n"
    before, sent = peak_bytes(strict), 0
    with socket.create_connection(("127.0.0.1", strict.port), timeout=20) as connection:
        connection.sendall(head.encode())
        with contextlib.suppress(OSError):  # the server closes while we send
            while sent < 100 * MEGABYTE:
                piece = b" " * MEGABYTE if announced else b"100000\r\n" + b" " * MEGABYTE + b"\r\n"
                connection.sendall(piece)
                sent += MEGABYTE
        assert sent < 40 * MEGABYTE
        assert connection.recv(12) == b"HTTP/1.1 413"
    assert peak_bytes(strict) - before < 24 * MEGABYTE
    assert strict.request("POST", "/v1/classify", CLASSIFY, BEARER)[0] == 200


@pytest.mark.slow
@pytest.mark.parametrize("begin", [b"GET /health/live HTTP/1.1\r\nX: ", b"", b"POST /v1/classify HTTP/1.1\r\n"])
def test_a_sender_of_a_byte_now_and_then_is_dropped(strict: RunningServer, begin: bytes) -> None:
    head = b"POST /predict HTTP/1.1\r\nX-API-Key: %b\r\nContent-Length: 1000\r\n\r\n" % KEY.encode()
    with socket.create_connection(("127.0.0.1", strict.port), timeout=20) as connection:
        connection.sendall(begin or head)
        begun = time.monotonic()
        answer = b""
        connection.settimeout(0.1)
        while not answer:
            with contextlib.suppress(TimeoutError):
                answer = connection.recv(12)
            with contextlib.suppress(OSError):
                connection.sendall(b"a")
            assert time.monotonic() - begun < 15
        assert answer == b"HTTP/1.1 408"


@pytest.mark.slow
def test_many_slow_senders_do_not_keep_others_out(strict: RunningServer) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(200):
            connection = stack.enter_context(socket.create_connection(("127.0.0.1", strict.port), timeout=20))
            connection.sendall(b"POST /v1/classify HTTP/1.1\r\nContent-Le")
        assert strict.request("POST", "/v1/classify", CLASSIFY, BEARER)[0] == 200
        process = psutil.Process(strict.process.pid)
        give_up = time.monotonic() + 20
        while len([one for one in process.net_connections("tcp") if one.status == "ESTABLISHED"]) > 5:
            assert time.monotonic() < give_up
            time.sleep(0.1)


# Names and bodies

PATHS = (
    "../tiny",
    "..",
    "../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "..%5c..%5cwindows",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "tiny/../../secret",
    "tiny%00",
    "tiny%0a",
    ".removed-1",
    ".incoming-1",
    "tiny@../1",
    "tiny@..%2f1",
    "tiny@1%2f..%2f..",
    "%EF%BC%8E%EF%BC%8E",
    "%ff",
    "a" * 5_000,
)


def send_raw(running: RunningServer, method: str, target: str, body: bytes = b"{}") -> tuple[int, bytes]:
    """One request whose target is sent as it is: clients tidy paths up."""
    head = f"{method} {target} HTTP/1.1\r\nHost: x\r\nX-API-Key: {KEY}\r\nConnection: close\r\n"
    with socket.create_connection(("127.0.0.1", running.port), timeout=20) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        answer = connection.makefile("rb").read()
    return int(answer.split()[1]), answer


@pytest.mark.slow
def test_no_name_in_a_path_leads_out_of_the_store(strict: RunningServer, tiny_store: ModelStore) -> None:
    before = sorted(str(path) for path in tiny_store.root.parent.rglob("*"))
    document = strict.request("GET", "/openapi.json")[2]
    paths = document["paths"]
    assert isinstance(paths, dict)
    templates = [(path, method) for path, methods in paths.items() for method in methods if "{" in path]
    assert templates
    extra = [
        ("/models/{model}", "post"),
        ("/v2/models/{model}/infer", "post"),
        ("/v2/models/{model}/versions/{version}", "get"),
        ("/v2/repository/models/{model}/load", "post"),
        ("/v2/repository/models/{model}/unload", "post"),
    ]
    bodies = (b"{}", b'{"version": 1}')
    for template, method in {*templates, *extra}:
        names = [part[1:-1] for part in template.split("/") if part.startswith("{")]
        for attacked in names:
            for value in PATHS:
                target = template
                for name in names:
                    target = target.replace(f"{{{name}}}", value if name == attacked else "tiny")
                for body in bodies:
                    status, answer = send_raw(strict, method.upper(), target, body)
                    assert 400 <= status < 500, (method, target, answer)
                    assert b"root:" not in answer
    assert sorted(str(path) for path in tiny_store.root.parent.rglob("*")) == before
    for name in PATHS:
        asked = {"model": name.replace("%2f", "/"), "input": "a"}
        assert strict.request("POST", "/v1/classify", asked, BEARER)[0] == 404


DEEP = (
    b"[" * 200_000,
    b"[" * 100_000 + b"]" * 100_000,
    b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    b'{"inputs":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"input":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b'{"inputs":[{"name":"text","shape":[1],"datatype":"BYTES","data":' + b"[" * 900 + b'"a"' + b"]" * 900 + b"}]}",
    b'{"version":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    b"1" * 1_000_000,
    b'{"input": 1e' + b"9" * 1_000 + b"}",
)


@pytest.mark.slow
@pytest.mark.parametrize("body", DEEP, ids=[str(body[:12]) for body in DEEP])
@pytest.mark.parametrize("path", [*POSTS, "/v1/admin/models/tiny/aliases/x", "/v2/repository/models/tiny/load"])
def test_json_of_any_depth_and_numbers_of_any_length_are_never_a_fault_of_the_server(
    strict: RunningServer, path: str, body: bytes
) -> None:
    status, answer = send_raw(strict, "PUT" if "admin" in path else "POST", path, body)
    assert status < 500, answer[:500]
    if not path.endswith(("load", "index")):  # which leave unknown keys, or the whole body, aside
        assert status >= 400, answer[:500]


@pytest.mark.slow
def test_a_malicious_version_is_not_served_and_the_others_are(store: ModelStore, tiny: ModelId, tmp_path: Path) -> None:
    """A version that somebody wrote into the store by hand, with a manifest that fits: its model reads elsewhere."""
    import shutil

    import onnx

    from model_store.store import digest_file
    from tests.tiny import MODEL_FILE

    secret = tmp_path / "secret"
    secret.write_bytes(os.urandom(4_096))
    folder = store.root / "tiny" / "2"
    shutil.copytree(store.root / "tiny" / "1", folder)
    path = folder / MODEL_FILE
    model = onnx.load(path)
    weights = model.graph.initializer[0]
    onnx.external_data_helper.set_external_data(weights, os.path.relpath(secret, folder))
    weights.ClearField("raw_data")
    weights.data_location = onnx.TensorProto.EXTERNAL
    path.chmod(0o644)
    path.write_bytes(model.SerializeToString())
    manifest = json.loads((folder / "manifest.json").read_text())
    sha256, size = digest_file(path)
    manifest["version"] = 2
    manifest["artifacts"][0] |= {"sha256": sha256, "bytes": size}
    (folder / "manifest.json").chmod(0o644)
    (folder / "manifest.json").write_text(json.dumps(manifest))
    with server(store, tmp_path, models="tiny@1,tiny@2") as running:
        assert running.request("POST", "/v1/classify", {"model": "tiny@1", "input": "a"})[0] == 200
        status, _, answer = running.request("POST", "/v1/classify", {"model": "tiny@2", "input": "a"})
        assert status == 404
        assert "which is not a file of the version" in json.dumps(answer)


@pytest.mark.slow
def test_a_comparison_gets_in_with_the_key_that_the_environment_has(
    store: ModelStore, tiny: ModelId, tmp_path: Path
) -> None:
    make_tiny_version(store, seed=1)
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(json.dumps({"text": f"a good film {n}", "label": "positive"}) + "\n" for n in range(20)))
    with server(
        store, tmp_path, api_keys_file=str(write_keys(tmp_path / "keys.json")), models="tiny@1,tiny@2"
    ) as running:
        program = [sys.executable, "-m", "service.cli", "compare", "tiny@1", "tiny@2", "--pairs", "2", "--blocks", "2"]
        program += ["--url", f"http://127.0.0.1:{running.port}", "--texts", str(texts), "--out", str(tmp_path / "out")]

        def compare(**variables: str) -> subprocess.CompletedProcess[str]:
            environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **variables}
            return subprocess.run(program, env=environment, capture_output=True, text=True, timeout=120, check=False)

        done = compare(SUCCESSOR_API_KEY=KEY)
        assert done.returncode == 0, done.stderr
        assert KEY not in done.stdout + done.stderr
        refused = compare()
        assert (refused.returncode, "does not let us in (401): see --api-key" in refused.stderr) == (1, True), (
            refused.stderr
        )
