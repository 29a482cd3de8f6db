"""API keys: what is let in, what is refused and how, and what changes while the server runs."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import structlog

from model_store.manifest import ModelId
from model_store.store import ModelStore
from service.access import KeyEntry, Keyring, KeysFileError, Permission, digest_of, keys_of, new_key, parse_keys
from service.api.dialects import TABLE
from service.app import create_app
from service.errors import AuthenticationError, NotPermittedError, RateLimitedError
from service.settings import load_settings
from tests.keys import BEARER, KEY, entry, write_keys
from tests.tiny import make_tiny_version
from tests.web import WebClient, running_app


def sent(key: str) -> dict[bytes, bytes]:
    return {b"authorization": f"Bearer {key}".encode()}


# The file


def test_a_key_is_random_long_and_kept_as_its_digest() -> None:
    first, second = new_key(), new_key()
    assert first != second
    assert first.startswith("suc_")
    assert len(first) >= 4 + 43  # 256 bits in base 64
    assert digest_of(first) == hashlib.sha256(first.encode()).hexdigest()


@pytest.mark.parametrize(
    "keys",
    [
        [{"name": "a"}],
        [entry("k", "infer") | {"sha256": "secret-in-the-clear"}],
        [entry("k", "infer") | {"scopes": ["root"]}],
        [entry("k", "infer") | {"scopes": []}],
        [entry("k", "infer", name="a b")],
        [entry("k", "infer") | {"requests_per_second": 0}],
        [entry("k", "infer") | {"requests_per_second": float("inf")}],
        [entry("k", "infer") | {"extra": 1}],
        [entry("k", "infer", name="a"), entry("l", "infer", name="a")],
        [entry("k", "infer", name="a"), entry("k", "infer", name="b")],
    ],
)
def test_a_file_that_is_not_valid_is_refused_in_one_line_that_quotes_nothing_of_it(
    tmp_path: Path, keys: list[dict[str, object]]
) -> None:
    with pytest.raises(KeysFileError) as caught:
        parse_keys(json.dumps({"keys": keys}).encode(), tmp_path / "keys.json")
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert "secret" not in str(caught.value)
    assert digest_of("k") not in str(caught.value)


@pytest.mark.parametrize("data", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_file_of_keys_is_refused(tmp_path: Path, data: bytes) -> None:
    with pytest.raises(KeysFileError, match="are not valid"):
        parse_keys(data, tmp_path)


def test_a_server_does_not_start_without_the_keys_that_it_was_told_of(tmp_path: Path) -> None:
    with pytest.raises(KeysFileError, match=r"there are no API keys in .*: make one with `successor keys new`"):
        Keyring(tmp_path / "keys.json")


# Requests


@pytest.mark.parametrize(
    ("headers", "keys"),
    [
        ({b"authorization": b"Bearer k"}, [b"k"]),
        ({b"authorization": b"bearer  k "}, [b"k"]),
        ({b"x-api-key": b"k"}, [b"k"]),
        ({b"authorization": b"Basic abc", b"x-api-key": b"k"}, [b"k"]),
        ({b"authorization": b"Bearer ", b"x-api-key": b"k"}, [b"k"]),
        ({b"authorization": b"Bearer k", b"x-api-key": b"other"}, [b"k", b"other"]),
        ({b"authorization": b"k"}, []),
        ({b"authorization": b"Bearer"}, []),
        ({}, []),
    ],
)
def test_a_key_comes_in_either_of_two_headers(headers: dict[bytes, bytes], keys: list[bytes]) -> None:
    assert keys_of(headers) == keys


@pytest.mark.parametrize("header", [b"authorization", b"x-api-key"])
def test_a_header_that_is_for_somebody_else_does_not_hide_a_key(tmp_path: Path, header: bytes) -> None:
    ring = Keyring(write_keys(tmp_path / "keys.json", entry("mine", "infer", name="me"), anonymous=("infer",)))
    both = {b"authorization": b"Bearer mine", b"x-api-key": b"mine"}
    stranger = {b"authorization": b"Bearer a.gateway's.token", b"x-api-key": b"a gateway's"}
    assert ring.admit(both | {header: stranger[header]}, "infer") == "me"
    with pytest.raises(AuthenticationError):
        ring.admit(stranger, "infer")


def test_a_key_may_do_what_its_scopes_say_and_nothing_else(tmp_path: Path) -> None:
    ring = Keyring(write_keys(tmp_path / "keys.json", entry("i", "infer"), entry("am", "admin", "metrics", name="ops")))
    allowed: dict[str, set[Permission]] = {"i": {"infer"}, "am": {"admin", "metrics"}}
    for key, scopes in allowed.items():
        for permission in ("infer", "admin", "metrics"):
            if permission in scopes:
                assert ring.admit(sent(key), permission) == {"i": "infer", "am": "ops"}[key]
            else:
                with pytest.raises(NotPermittedError, match=f"it needs the scope '{permission}'"):
                    ring.admit(sent(key), permission)


@pytest.mark.parametrize("key", ["", "wrong", "I", "i ", digest_of("i"), "\x00", "i" * 100_000])
def test_any_other_key_is_refused_without_being_repeated(tmp_path: Path, key: str) -> None:
    ring = Keyring(write_keys(tmp_path / "keys.json", entry("i", "infer")))
    headers = {b"x-api-key": key.encode()}
    with pytest.raises(AuthenticationError) as caught:
        ring.admit(headers, "infer")
    assert digest_of("i") not in str(caught.value)
    assert "wrong" not in str(caught.value).replace("it is wrong", "")


def test_keys_of_one_rate_do_not_use_up_each_others(tmp_path: Path) -> None:
    keys = [entry(name, "infer", name=name, requests_per_second=1) for name in ("a", "b")]
    path = write_keys(tmp_path / "keys.json", *keys)
    (tmp_path / "shared").mkdir()
    for folder in (None, tmp_path / "shared"):
        ring = Keyring(path, folder, clock=lambda: 100.0)
        ring.admit(sent("a"), "infer")
        with pytest.raises(RateLimitedError):
            ring.admit(sent("a"), "infer")
        assert ring.admit(sent("b"), "infer") == "b"
        ring.close()


def test_callers_without_a_key_may_do_what_the_file_says_and_those_with_a_wrong_one_nothing(tmp_path: Path) -> None:
    path = write_keys(tmp_path / "keys.json", entry("a", "admin"), anonymous=("infer",))
    ring = Keyring(path)
    assert ring.admit({}, "infer") == ""
    for permission in ("admin", "metrics"):
        with pytest.raises(AuthenticationError):
            ring.admit({}, permission)
    with pytest.raises(AuthenticationError):
        ring.admit(sent("wrong"), "infer")
    write_keys(path, entry("a", "admin"))
    ring.refresh()
    with pytest.raises(AuthenticationError):
        ring.admit({}, "infer")
    with pytest.raises(KeysFileError):
        Keyring(write_keys(path, anonymous=("admin",)))


def test_a_digest_that_only_begins_like_a_known_one_is_refused(tmp_path: Path) -> None:
    """What finds an entry is the beginning of its digest; what lets in is the whole."""
    forged = digest_of("i")[:16] + digest_of("other")[16:]
    keys = write_keys(tmp_path / "keys.json", entry("i", "infer") | {"sha256": forged})
    with pytest.raises(AuthenticationError):
        Keyring(keys).admit(sent("i"), "infer")


def test_a_key_that_asks_too_often_is_told_how_long_to_wait_and_the_others_are_not(tmp_path: Path) -> None:
    now = [50.0]
    keys = write_keys(tmp_path / "keys.json", entry("slow", "infer", requests_per_second=2), entry("any", "admin"))
    ring = Keyring(keys, clock=lambda: now[0])
    for _ in range(2):
        ring.admit(sent("slow"), "infer")
    with pytest.raises(RateLimitedError, match="may send 2 requests a second") as caught:
        ring.admit(sent("slow"), "infer")
    assert caught.value.retry_after_s == pytest.approx(0.5)
    assert ring.admit(sent("any"), "admin") == "admin"
    now[0] += caught.value.retry_after_s
    assert ring.admit(sent("slow"), "infer") == "infer"


def test_refused_requests_do_not_count_against_a_rate(tmp_path: Path) -> None:
    ring = Keyring(write_keys(tmp_path / "keys.json", entry("k", "infer", requests_per_second=1)), clock=lambda: 1.0)
    for _ in range(5):
        with pytest.raises(NotPermittedError):
            ring.admit(sent("k"), "admin")
    assert ring.admit(sent("k"), "infer") == "infer"


# Changes of the file


def test_a_revoked_key_stops_working_and_a_new_one_works_without_a_restart(tmp_path: Path) -> None:
    path = write_keys(tmp_path / "keys.json", entry("old", "infer"))
    ring = Keyring(path)
    assert ring.admit(sent("old"), "infer") == "infer"
    write_keys(path, entry("new", "infer"))
    ring.refresh()
    assert ring.admit(sent("new"), "infer") == "infer"
    with pytest.raises(AuthenticationError, match="was revoked"):
        ring.admit(sent("old"), "infer")


@pytest.mark.parametrize("broken", ["gone", "{", '{"keys": [{"name": "x"}]}'])
def test_a_file_that_is_broken_changes_nothing_and_is_logged_once(tmp_path: Path, broken: str) -> None:
    path = write_keys(tmp_path / "keys.json", entry("k", "infer"))
    ring = Keyring(path)
    path.unlink() if broken == "gone" else path.write_text(broken)
    with structlog.testing.capture_logs() as logs:
        ring.refresh()
        ring.refresh()
    assert [record["log_level"] for record in logs] == ["warning"]
    assert ring.admit(sent("k"), "infer") == "infer"
    write_keys(path, entry("l", "infer"))
    ring.refresh()
    assert ring.admit(sent("l"), "infer") == "infer"


@pytest.mark.parametrize("shared", [False, True])
def test_a_change_of_the_file_fills_no_bucket_whose_rate_stays(tmp_path: Path, *, shared: bool) -> None:
    path = write_keys(tmp_path / "keys.json", entry("k", "infer", requests_per_second=1))
    ring = Keyring(path, tmp_path if shared else None, clock=lambda: 9.0)
    ring.admit(sent("k"), "infer")
    write_keys(path, entry("k", "infer", requests_per_second=1), entry("l", "infer", name="l", requests_per_second=5))
    ring.refresh()
    with pytest.raises(RateLimitedError):
        ring.admit(sent("k"), "infer")
    write_keys(path, entry("k", "infer", requests_per_second=1000))
    ring.refresh()
    ring.admit(sent("k"), "infer")
    write_keys(path, entry("k", "infer"))
    ring.refresh()
    for _ in range(5):
        ring.admit(sent("k"), "infer")
    ring.close()


def test_processes_of_one_server_share_a_keys_rate(tmp_path: Path) -> None:
    path = write_keys(tmp_path / "keys.json", entry("k", "infer", requests_per_second=2))
    first, second = (Keyring(path, tmp_path, clock=lambda: 3.0) for _ in range(2))
    first.admit(sent("k"), "infer")
    second.admit(sent("k"), "infer")
    for ring in (first, second):
        with pytest.raises(RateLimitedError):
            ring.admit(sent("k"), "infer")
        ring.close()


def test_keys_are_read_as_kubernetes_mounts_them_and_changed_as_it_changes_them(tmp_path: Path) -> None:
    for version, key in (("one", "first"), ("two", "second")):
        (tmp_path / version).mkdir()
        write_keys(tmp_path / version / "keys.json", entry(key, "infer"))
    (tmp_path / "..data").symlink_to("one")
    path = tmp_path / "keys.json"
    path.symlink_to(Path("..data") / "keys.json")
    keyring = Keyring(path)
    assert keyring.admit({b"x-api-key": b"first"}, "infer")
    (tmp_path / "..aside").symlink_to("two")
    (tmp_path / "..aside").rename(tmp_path / "..data")
    keyring.refresh()
    assert keyring.admit({b"x-api-key": b"second"}, "infer")
    with pytest.raises(AuthenticationError):
        keyring.admit({b"x-api-key": b"first"}, "infer")


def test_the_file_is_looked_at_until_cancelled(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = write_keys(tmp_path / "keys.json", entry("old", "infer"))
        ring = Keyring(path)
        following = asyncio.create_task(ring.follow())
        write_keys(path, entry("new", "infer"))
        async with asyncio.timeout(20):
            while True:
                try:
                    ring.admit(sent("new"), "infer")
                    break
                except AuthenticationError:
                    await asyncio.sleep(0.05)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)

    asyncio.run(scenario())


# The application

TEXT = "a good film"
ROUTES: dict[str, tuple[str, str, object, Permission]] = {
    "classify": ("POST", "/v1/classify", {"model": "tiny", "input": TEXT}, "infer"),
    "models": ("GET", "/v1/models", None, "infer"),
    "open inference": (
        "POST",
        "/v2/models/tiny/infer",
        {"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": [TEXT]}]},
        "infer",
    ),
    "predict": ("POST", "/predict", {"inputs": TEXT}, "infer"),
    "root": ("POST", "/", {"inputs": TEXT}, "infer"),
    "info": ("GET", "/info", None, "infer"),
    "hugging face": ("POST", "/models/tiny", {"inputs": TEXT}, "infer"),
    "index": ("POST", "/v2/repository/index", {}, "infer"),
    "load": ("POST", "/v2/repository/models/tiny/load", {}, "admin"),
    "sync": ("POST", "/v1/admin/sync", None, "admin"),
    "promote": ("PUT", "/v1/admin/models/tiny/aliases/x", {"version": 1}, "admin"),
    "metrics": ("GET", "/metrics", None, "metrics"),
}
OPEN = (
    "/",
    "/health",
    "/health/live",
    "/health/ready",
    "/openapi.json",
    "/ping",
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
)


@pytest.fixture
def guarded(store: ModelStore, tiny: ModelId, tmp_path: Path) -> Iterator[WebClient]:
    keys = [
        entry("infer-key", "infer"),
        entry("admin-key", "admin"),
        entry("metrics-key", "metrics"),
        entry("slow-key", "infer", "admin", "metrics", requests_per_second=0.001),
        entry(KEY, "infer", "admin", "metrics", name="everything"),
    ]
    path = write_keys(tmp_path / "keys.json", *keys)
    settings = load_settings(store_dir=store.root, threads=1, api_keys_file=path, default_model="tiny")
    with running_app(create_app(settings)) as client:
        yield client


def code_in(response: httpx.Response) -> object:
    """What an error says, in whatever shape its dialect has."""
    if not response.content:
        return "empty"
    body = response.json()
    return body["error"]["code"] if isinstance(body["error"], dict) else body.get("error_type", "only a message")


SHAPES: dict[str, tuple[object, object, object]] = {
    # route → what 401, 403 and 429 say there
    "open inference": ("only a message",) * 3,
    "index": ("only a message",) * 3,
    "load": ("only a message",) * 3,
    "predict": ("empty", "Unauthorized", "Overloaded"),
    "root": ("empty", "Unauthorized", "Overloaded"),
    "info": ("empty", "Unauthorized", "Overloaded"),
}


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_asks_for_its_key_and_refuses_in_its_own_shape(guarded: WebClient, route: str) -> None:
    method, path, body, permission = ROUTES[route]
    native = ("invalid_api_key", "not_permitted", "rate_limited")
    unknown, forbidden, limited = SHAPES.get(route, native)
    for headers in ({}, {"authorization": "Bearer wrong"}, {"x-api-key": digest_of(KEY)}):
        answer = guarded.request(method, path, json=body, headers=headers)
        assert (answer.status_code, code_in(answer)) == (401, unknown), answer.text
        assert answer.headers["www-authenticate"] == "Bearer"
    for other in {"infer", "admin", "metrics"} - {permission}:
        answer = guarded.request(method, path, json=body, headers={"x-api-key": f"{other}-key"})
        assert (answer.status_code, code_in(answer)) == (403, forbidden), answer.text
    for key in (f"{permission}-key", KEY, "slow-key"):
        answer = guarded.request(method, path, json=body, headers={"authorization": f"Bearer {key}"})
        assert answer.status_code == 200, answer.text
    answer = guarded.request(method, path, json=body, headers={"x-api-key": "slow-key"})
    assert answer.status_code in {429, 503}
    assert code_in(answer) == limited
    assert 990 <= int(answer.headers["retry-after"]) <= 1000


@pytest.mark.parametrize("path", OPEN)
def test_health_and_the_description_need_no_key(guarded: WebClient, path: str) -> None:
    assert guarded.get(path).status_code == 200


def is_open(method: str, path: str) -> bool:
    """Whether a route asks for no key; one path has both kinds."""
    return path in OPEN and (path, method.upper()) != ("/", "POST")


def test_health_names_no_model_where_models_need_a_key(store: ModelStore, tiny: ModelId, tmp_path: Path) -> None:
    broken = make_tiny_version(store, "broken")
    (store.root / "broken" / str(broken.version) / "tokenizer.json").write_text("{}")
    for path, shown in (
        (write_keys(tmp_path / "closed.json"), False),
        (write_keys(tmp_path / "open.json", anonymous=("infer",)), True),
    ):
        settings = load_settings(store_dir=store.root, threads=1, api_keys_file=path, default_model="nobody")
        with running_app(create_app(settings)) as client:
            for route in ("/health", "/ping", "/"):
                answer = client.get(route)
                assert (answer.status_code, "tiny" in answer.text) == (503, shown), route
            answer = client.get("/health/ready")
            assert (answer.status_code, answer.json()["status"]) == (200, "ok")
            assert ("tiny" in answer.text, "broken" in answer.text) == (shown, shown), answer.text
            client.service.registry.table.models.clear()
            for route in ("/health/ready", "/v2/health/ready", "/health"):
                answer = client.get(route)
                assert answer.status_code == 503
                assert ("no model is loaded: the log says why" in answer.text) is not shown, route


def test_who_asks_too_often_is_no_failure_of_the_server(guarded: WebClient) -> None:
    headers = {"x-api-key": "slow-key"}
    method, path, body, _ = ROUTES["open inference"]
    guarded.request(method, path, json=body, headers=headers)
    with structlog.testing.capture_logs() as logs:
        answer = guarded.request(method, path, json=body, headers=headers)
    assert (answer.status_code, logs) == (429, [])


def test_every_route_of_the_table_is_either_open_or_asks_for_a_key(guarded: WebClient) -> None:
    """A route that somebody adds without a thought is found here."""
    described = guarded.get("/openapi.json").json()["paths"]
    routes = {(method.upper(), path) for path, operations in described.items() for method in operations}
    routes |= {(endpoint.method, endpoint.path) for endpoint in TABLE.endpoints}
    assert len(routes) > 25
    for method, path in routes:
        answer = guarded.request(method, path.replace("{", "").replace("}", ""))
        assert (answer.status_code == 401) == (not is_open(method, path)), f"{method} {path}: {answer.status_code}"


def test_the_description_says_which_routes_ask_for_a_key(guarded: WebClient) -> None:
    for path, operations in guarded.get("/openapi.json").json()["paths"].items():
        for method, operation in operations.items():
            assert ("security" in operation) == (not is_open(method, path)), f"{method} {path}"
            assert ("401" in operation["responses"]) == (not is_open(method, path)), f"{method} {path}"


def test_a_body_is_not_read_for_a_caller_who_is_not_let_in(guarded: WebClient) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            read.append(True)
            yield bytes(1 << 16)

    for route in ("classify", "open inference", "predict", "hugging face", "promote", "load"):
        method, path, *_ = ROUTES[route]
        read: list[bool] = []
        assert guarded.request(method, path, content=endless()).status_code == 401
        assert len(read) <= 2, route


def test_a_promotions_body_is_cut_off_at_the_servers_limit(guarded: WebClient) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(1 << 16)

    answer = guarded.request("PUT", ROUTES["promote"][1], content=endless(), headers=BEARER)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "body_too_large")


def test_without_keys_everything_but_administration_is_open(store: ModelStore, tiny: ModelId) -> None:
    with running_app(create_app(load_settings(store_dir=store.root, threads=1, default_model="tiny"))) as client:
        for method, path, body, permission in ROUTES.values():
            answer = client.request(method, path, json=body, headers=BEARER)
            assert answer.status_code == (403 if permission == "admin" else 200), answer.text
            if permission == "admin":
                assert "SUCCESSOR_API_KEYS_FILE" in answer.text


def test_who_administers_is_logged_by_name_and_no_key_is(guarded: WebClient) -> None:
    with structlog.testing.capture_logs() as logs:
        guarded.post("/v1/admin/sync", headers=BEARER | {"x-request-id": "seven"})
        guarded.post("/v2/repository/models/tiny/load", headers=BEARER)
        guarded.post("/v1/admin/sync", headers={"x-api-key": "wrong-key"})
    first, second = (record for record in logs if record["event"] == "administration")
    assert first == {
        "event": "administration",
        "log_level": "info",
        "key": "everything",
        "method": "POST",
        "path": "/v1/admin/sync",
        "request_id": "seven",
    }
    assert (second["key"], second["path"]) == ("everything", "/v2/repository/models/tiny/load")
    assert KEY not in str(logs)
    assert "wrong-key" not in str(logs)


# A port of their own


@pytest.fixture
def two_ports(store: ModelStore, tiny: ModelId, tmp_path: Path) -> Iterator[Callable[[int, str], httpx.Response]]:
    """Asks one of the routes at a port; the operations' is 9090."""
    settings = load_settings(
        store_dir=store.root,
        threads=1,
        api_keys_file=write_keys(tmp_path / "keys.json"),
        default_model="tiny",
        operations_port=9090,
    )
    app = create_app(settings)
    with running_app(app) as client:

        def ask(port: int, route: str) -> httpx.Response:
            method, path, body, _ = ROUTES[route]
            content = None if body is None else json.dumps(body)
            state = {"service": client.service}

            async def send() -> httpx.Response:
                async def stateful(scope, receive, send) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
                    scope["state"] = dict(state)
                    await app(scope, receive, send)

                transport = httpx.ASGITransport(stateful)
                async with httpx.AsyncClient(transport=transport, base_url=f"http://test:{port}") as sender:
                    return await sender.request(method, path, content=content, headers=BEARER)

            return asyncio.run_coroutine_threadsafe(send(), client.loop).result(20)

        yield ask


@pytest.mark.parametrize("route", ROUTES)
def test_with_a_port_of_their_own_operations_are_there_and_nothing_else_is(
    two_ports: Callable[[int, str], httpx.Response], route: str
) -> None:
    here, there = (8000, 9090) if ROUTES[route][3] == "infer" else (9090, 8000)
    assert two_ports(here, route).status_code == 200
    refused = two_ports(there, route)
    assert refused.status_code == 404, refused.text
    assert "on this port" in refused.text


# Pages of other origins


def test_no_origin_is_let_in_unless_set(guarded: WebClient) -> None:
    answer = guarded.get("/health/live", headers={"origin": "https://example.org"})
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_an_origin_that_is_set_may_ask_first_read_answers_and_read_refusals(
    store: ModelStore, tiny: ModelId, tmp_path: Path
) -> None:
    keys = write_keys(tmp_path / "keys.json")
    origin = "https://example.org"
    settings = load_settings(store_dir=store.root, threads=1, api_keys_file=keys, cors_origins=[origin])
    asked = {"origin": origin, "access-control-request-method": "POST", "access-control-request-headers": "x-api-key"}
    with running_app(create_app(settings)) as client:
        preflight = client.request("OPTIONS", "/v1/classify", headers=asked)
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, origin)
        assert preflight.headers["access-control-allow-headers"] == "x-api-key"
        for headers, status in ((BEARER, 200), ({}, 401)):
            answer = client.post(
                "/v1/classify", json={"model": "tiny", "input": TEXT}, headers={"origin": origin, **headers}
            )
            assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, origin)
        other = client.request("OPTIONS", "/v1/classify", headers={**asked, "origin": "https://evil.example"})
        assert other.status_code == 400
        assert "access-control-allow-origin" not in other.headers


def test_an_entry_says_who_may_do_what(tmp_path: Path) -> None:
    parsed = KeyEntry.model_validate(entry("k", "infer", "metrics", requests_per_second=3))
    assert (parsed.name, parsed.scopes, parsed.requests_per_second) == ("infer-metrics", ("infer", "metrics"), 3)
