"""Open Inference Protocol v2 over gRPC: the messages, and what each call answers or is refused with."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import json
import socket
import struct
import threading
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import structlog
import trustme

from model_store.encoding import TextItem
from model_store.errors import InferenceError
from model_store.manifest import ModelId
from model_store.store import ModelStore
from service.api.grpc_messages import COMPILED, SERVICE, compile_source, load_messages
from service.api.open_inference_grpc import serving
from service.app import check_installation, create_app
from service.batcher import Job
from service.comparison.servers import free_port
from service.engine import Engine
from service.errors import ListenError
from service.registry import Route
from service.settings import load_settings
from tests.fakes import FakeClassifier
from tests.keys import BEARER, KEY, entry, write_keys
from tests.serving import served
from tests.test_open_inference import binary, expected
from tests.tiny import make_tiny_version
from tests.web import WebClient, running_app

MESSAGES = load_messages()
Request = MESSAGES["ModelInferRequest"]


class GrpcClient:
    """Calls a server from the loop that it runs on."""

    def __init__(self, web: WebClient, port: int) -> None:
        self.web = web
        self.address = f"127.0.0.1:{port}"

    def run(self, work: Callable[[Any], Awaitable[Any]]) -> Any:  # noqa: ANN401 - what the work returns
        """Run `work` with a channel."""

        async def with_channel() -> Any:  # noqa: ANN401 - as above
            async with grpc.aio.insecure_channel(self.address) as channel:
                return await work(channel)

        return asyncio.run_coroutine_threadsafe(with_channel(), self.web.loop).result(20)

    def call(self, method: str, message: Any, **options: Any) -> Any:  # noqa: ANN401 - messages
        """One answer."""
        return self.run(lambda channel: stub(channel, method)(message, **options))

    def refused(self, method: str, message: Any, **options: Any) -> grpc.aio.AioRpcError:  # noqa: ANN401 - a message
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            self.call(method, message, **options)
        error: grpc.aio.AioRpcError = caught.value
        return error


def stub(channel: Any, method: str) -> Any:  # noqa: ANN401 - gRPC has no types
    return channel.unary_unary(
        f"/{SERVICE}/{method}",
        request_serializer=MESSAGES[f"{method}Request"].SerializeToString,
        response_deserializer=MESSAGES[f"{method}Response"].FromString,
    )


def client_of(store: ModelStore, **settings: Any) -> Iterator[GrpcClient]:  # noqa: ANN401 - settings
    port = free_port()
    chosen = {"threads": 1, "store_poll_ms": 0, **settings}
    with running_app(create_app(load_settings(store_dir=store.root, grpc_port=port, **chosen))) as web:
        yield GrpcClient(web, port)


@pytest.fixture(scope="module")
def client(tiny_store: ModelStore) -> Iterator[GrpcClient]:
    yield from client_of(tiny_store, models="tiny,tiny@1,pairs,rating,topics", max_texts_per_request=8)


def request(texts: list[str], model: str = "tiny", **more: Any) -> Any:  # noqa: ANN401 - a message
    message = Request(model_name=model, raw_input_contents=[binary(texts)], **more)
    message.inputs.add(name="text", datatype="BYTES", shape=[len(texts)])
    return message


def scores_of(response: Any) -> Any:  # noqa: ANN401 - an array
    output = response.outputs[0]
    assert (output.name, output.datatype) == ("scores", "FP32")
    return np.frombuffer(response.raw_output_contents[0], "<f4").reshape(output.shape)


TEXTS = ["a great film", "dull", "good " * 60]


def test_the_compiled_messages_are_those_of_the_source(tmp_path: Path) -> None:
    compile_source(tmp_path / "again.binpb")
    assert (tmp_path / "again.binpb").read_bytes() == COMPILED.read_bytes()


def test_raw_texts_are_answered_with_raw_outputs(client: GrpcClient, tiny_store: ModelStore) -> None:
    response = client.call("ModelInfer", request(TEXTS, id="seven"))
    assert (response.id, response.model_name, response.model_version) == ("seven", "tiny", "2")
    wanted = expected(tiny_store, "tiny", 2, [TextItem(text) for text in TEXTS])
    np.testing.assert_allclose(scores_of(response), wanted, atol=1e-6)
    assert [output.name for output in response.outputs] == ["scores", "label", "truncated"]
    labels = [("negative", "positive")[row.argmax()] for row in wanted]
    assert response.raw_output_contents[1] == binary(labels)
    assert response.raw_output_contents[2] == b"\0\0\1"


def test_texts_in_contents_are_read_too(client: GrpcClient) -> None:
    message = Request(model_name="tiny")
    tensor = message.inputs.add(name="text", datatype="BYTES", shape=[2])
    tensor.contents.bytes_contents.extend([b"dull", b"a great film"])
    both = scores_of(client.call("ModelInfer", message))
    raw = scores_of(client.call("ModelInfer", request(["dull", "a great film"])))
    np.testing.assert_allclose(both, raw, atol=1e-6)


def test_pairs_versions_and_classifications_are_as_over_http(client: GrpcClient) -> None:
    message = Request(model_name="pairs", model_version="1", raw_input_contents=[binary(["a"]), binary(["b"])])
    message.inputs.add(name="text", datatype="BYTES", shape=[1])
    message.inputs.add(name="text_pair", datatype="BYTES", shape=[1])
    message.outputs.add(name="scores").parameters["classification"].int64_param = 2
    response = client.call("ModelInfer", message)
    assert (list(response.outputs[0].shape), response.outputs[0].datatype) == ([1, 2], "BYTES")
    (length,) = struct.unpack_from("<I", response.raw_output_contents[0])
    value, index, label = response.raw_output_contents[0][4 : 4 + length].decode().split(":")
    assert 0 < float(value) < 1
    assert label == ("contradiction", "neutral", "entailment")[int(index)]


def test_parameters_mean_what_they_mean_over_http(client: GrpcClient) -> None:
    message = request(["good " * 60 + "dull " * 60])
    right = scores_of(client.call("ModelInfer", message))
    message.parameters["truncation_side"].string_param = "left"
    left = scores_of(client.call("ModelInfer", message))
    message.parameters["raw_scores"].bool_param = True
    raw = scores_of(client.call("ModelInfer", message))
    assert not np.allclose(left, right)
    np.testing.assert_allclose(np.exp(raw) / np.exp(raw).sum(), left, atol=1e-6)
    message.parameters["truncate"].bool_param = False
    assert client.refused("ModelInfer", message).code() is grpc.StatusCode.INVALID_ARGUMENT


def changed(**more: object) -> Any:  # noqa: ANN401 - a message
    """A good request, but for what is set."""
    message = request(["dull"])
    for name, value in more.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param"}[type(value)]
        setattr(message.parameters[name], kind, value)
    return message


def with_both() -> Any:  # noqa: ANN401 - a message
    message = request(["dull"])
    message.inputs[0].contents.bytes_contents.append(b"dull")
    return message


def with_output(name: str, **parameters: str) -> Any:  # noqa: ANN401 - a message
    message = request(["dull"])
    output = message.outputs.add(name=name)
    for key, value in parameters.items():
        output.parameters[key].string_param = value
    return message


def in_shared_memory() -> Any:  # noqa: ANN401 - a message
    message = request(["dull"])
    message.inputs[0].parameters["shared_memory_region"].string_param = "region"
    return message


BAD: dict[str, tuple[Any, str, str]] = {
    "an unknown model": (request(["a"], "nobody"), "NOT_FOUND", "no model 'nobody' here"),
    "two versions": (request(["a"], "tiny@1", model_version="2"), "INVALID_ARGUMENT", "name no other one"),
    "nothing": (Request(), "NOT_FOUND", "no model ''"),
    "no inputs": (Request(model_name="tiny"), "INVALID_ARGUMENT", "the request has none"),
    "too much raw": (
        Request(model_name="tiny", raw_input_contents=[b"", b""]),
        "INVALID_ARGUMENT",
        "raw_input_contents has 2 elements",
    ),
    "both": (with_both(), "INVALID_ARGUMENT", "not both"),
    "an empty text": (request([""]), "INVALID_ARGUMENT", "the text is empty"),
    "too many texts": (request(["a"] * 9), "INVALID_ARGUMENT", "9 texts"),
    "a timeout of words": (changed(timeout="soon"), "INVALID_ARGUMENT", "timeout: "),
    "a sequence": (changed(sequence_id=5), "UNIMPLEMENTED", "sequence_id is not supported"),
    "an unknown output": (with_output("logits"), "INVALID_ARGUMENT", "no output 'logits'"),
    "a classification of words": (with_output("scores", classification="all"), "INVALID_ARGUMENT", "a number"),
    "an output in shared memory": (with_output("scores", shared_memory_region="r"), "UNIMPLEMENTED", "shared_memory"),
    "an input in shared memory": (in_shared_memory(), "UNIMPLEMENTED", "shared_memory_region"),
    "a short timeout": (changed(timeout=1), "DEADLINE_EXCEEDED", "allow more time"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_with_its_code_and_one_clear_sentence(client: GrpcClient, name: str) -> None:
    message, code, sentence = BAD[name]
    error = client.refused("ModelInfer", message)
    assert error.code().name == code
    assert sentence in (error.details() or "")


def test_an_answer_says_who_gave_it_and_to_which_request(client: GrpcClient) -> None:
    async def trailing(channel: Any, metadata: tuple[tuple[str, str], ...]) -> dict[str, str]:  # noqa: ANN401
        call = stub(channel, "ModelInfer")(request(["dull"]), metadata=metadata)
        await call
        return dict(await call.trailing_metadata())

    given = client.run(functools.partial(trailing, metadata=(("x-request-id", "mine"),)))
    assert (given["x-model-version"], given["x-request-id"]) == ("tiny@2", "mine")
    first, second = (client.run(functools.partial(trailing, metadata=()))["x-request-id"] for _ in range(2))
    assert first != second


def test_a_stream_has_one_id(client: GrpcClient) -> None:
    async def trailing(channel: Any) -> str:  # noqa: ANN401 - gRPC has no types
        call = channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            request_serializer=MESSAGES["ModelInferRequest"].SerializeToString,
            response_deserializer=MESSAGES["ModelStreamInferResponse"].FromString,
        )(iter([request(["dull"])]), metadata=(("x-request-id", "mine"),))
        assert [answer.error_message async for answer in call] == [""]
        return str(dict(await call.trailing_metadata())["x-request-id"])

    assert client.run(trailing) == "mine"


def test_deadlines_of_metadata_are_kept(client: GrpcClient) -> None:
    assert client.call("ModelInfer", request(["dull"]), metadata=(("request-timeout-ms", "60000"),))
    late = client.refused("ModelInfer", request(["dull"]), metadata=(("request-deadline-ms", "1000"),))
    assert late.code() is grpc.StatusCode.DEADLINE_EXCEEDED


def test_models_and_the_server_describe_themselves(client: GrpcClient) -> None:
    assert client.call("ServerLive", MESSAGES["ServerLiveRequest"]()).live
    assert client.call("ServerReady", MESSAGES["ServerReadyRequest"]()).ready
    assert client.call("ServerMetadata", MESSAGES["ServerMetadataRequest"]()).name == "successor"
    assert client.call("ModelReady", MESSAGES["ModelReadyRequest"](name="tiny", version="1")).ready
    metadata = client.call("ModelMetadata", MESSAGES["ModelMetadataRequest"](name="pairs"))
    assert [tensor.name for tensor in metadata.inputs] == ["text", "text_pair"]
    config = client.call("ModelConfig", MESSAGES["ModelConfigRequest"](name="tiny")).config
    assert (config.backend, list(config.version_policy.specific.versions)) == ("onnxruntime", [2])
    for name, count in (("tiny", 1), ("", 5)):
        statistics = client.call("ModelStatistics", MESSAGES["ModelStatisticsRequest"](name=name)).model_stats
        assert len(statistics) == count
    assert not client.call("ModelReady", MESSAGES["ModelReadyRequest"](name="nobody")).ready
    missing = client.refused("ModelMetadata", MESSAGES["ModelMetadataRequest"](name="nobody"))
    assert missing.code() is grpc.StatusCode.NOT_FOUND


def test_a_stream_answers_in_order_and_goes_on_after_a_refusal(client: GrpcClient) -> None:
    async def stream(channel: Any) -> list[Any]:  # noqa: ANN401 - gRPC has no types
        call = channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            request_serializer=Request.SerializeToString,
            response_deserializer=MESSAGES["ModelStreamInferResponse"].FromString,
        )
        requests = [request(["dull"], id="1"), request(["dull"], "nobody", id="2"), request(["dull"], id="3")]
        return [answer async for answer in call(iter(requests))]

    first, second, third = client.run(stream)
    assert [answer.infer_response.id for answer in (first, second, third)] == ["1", "2", "3"]
    assert (first.error_message, third.error_message) == ("", "")
    assert "no model 'nobody' here" in second.error_message


def test_the_repository_is_changed_by_administrators_only(store: ModelStore, tiny: ModelId, tmp_path: Path) -> None:
    make_tiny_version(store, "other")
    keys = [entry(KEY, "admin"), entry("another", "infer")]
    for client in client_of(store, api_keys_file=write_keys(tmp_path / "keys.json", *keys, anonymous=("infer",))):
        unload = MESSAGES["RepositoryModelUnloadRequest"](model_name="tiny")
        assert client.refused("RepositoryModelUnload", unload).code() is grpc.StatusCode.UNAUTHENTICATED
        other = (("x-api-key", "another"),)
        assert client.refused("RepositoryModelUnload", unload, metadata=other).code() is (
            grpc.StatusCode.PERMISSION_DENIED
        )
        token = tuple(BEARER.items())
        client.call("RepositoryModelUnload", unload, metadata=token)
        listed = client.call("RepositoryIndex", MESSAGES["RepositoryIndexRequest"]()).models
        assert {entry.name: entry.state for entry in listed} == {"tiny": "UNAVAILABLE", "other": "READY"}
        ready = client.call("RepositoryIndex", MESSAGES["RepositoryIndexRequest"](ready=True)).models
        assert [entry.name for entry in ready] == ["other"]
        load = MESSAGES["RepositoryModelLoadRequest"](model_name="tiny")
        client.call("RepositoryModelLoad", load, metadata=token)
        assert client.call("ModelInfer", request(["dull"])).model_version == "1"


async def asked(channel: Any, blocked: FakeClassifier) -> Any:  # noqa: ANN401 - a call
    """A call that a worker is busy with until `blocked` is released."""
    call = stub(channel, "ModelInfer")(request(["dull"], "blocked"))
    await asyncio.to_thread(blocked.started.acquire)
    return call


def block(client: GrpcClient) -> FakeClassifier:
    blocked = FakeClassifier(blocked=True)
    client.web.service.registry.table.routes["blocked"] = Route(served(blocked), "default")
    return blocked


def test_a_full_queue_says_when_to_come_again(store: ModelStore, tiny: ModelId) -> None:
    async def fill(channel: Any, blocked: FakeClassifier) -> grpc.aio.AioRpcError:  # noqa: ANN401 - gRPC has no types
        first = await asked(channel, blocked)
        try:
            await stub(channel, "ModelInfer")(request(["dull"], "blocked"))
        except grpc.aio.AioRpcError as error:
            return error
        finally:
            blocked.release()
            await first
        raise AssertionError("not refused")

    for client in client_of(store, max_wait_ms=1):
        blocked = block(client)
        error = client.run(functools.partial(fill, blocked=blocked))
        assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        metadata = dict(error.trailing_metadata())
        assert metadata["x-request-id"]
        assert int(metadata["retry-after-ms"]) == int(metadata["grpc-retry-pushback-ms"]) > 0


def test_work_whose_caller_has_gone_is_dropped(store: ModelStore, tiny: ModelId) -> None:
    async def leave(channel: Any, blocked: FakeClassifier, engine: Engine) -> Job:  # noqa: ANN401 - gRPC has no types
        call = await asked(channel, blocked)
        (job,) = engine._jobs
        call.cancel()
        await asyncio.wait([job.future], timeout=10)
        return job

    for client in client_of(store):
        blocked = block(client)
        job: Job = client.run(functools.partial(leave, blocked=blocked, engine=client.web.service.engine))
        blocked.release()
        assert job.future.cancelled()
        assert job.departed


def seconds_left(client: GrpcClient, message: Any, **options: float) -> float:  # noqa: ANN401 - a message
    """How long the work of a request for the model `blocked` has, once it is with a worker."""
    blocked, engine = block(client), client.web.service.engine

    async def ask(channel: Any) -> float:  # noqa: ANN401 - gRPC has no types
        call = stub(channel, "ModelInfer")(message, **options)
        await asyncio.to_thread(blocked.started.acquire)
        (job,) = engine._jobs
        seconds = job.deadline - engine.clock()
        blocked.release()
        await call
        return seconds

    return float(client.run(ask))


def test_the_callers_own_deadline_is_that_of_the_work(store: ModelStore, tiny: ModelId) -> None:
    for client in client_of(store):
        assert 0 < seconds_left(client, request(["dull"], "blocked"), timeout=9) <= 9


def test_a_failure_of_the_server_is_logged_with_its_reason(store: ModelStore, tiny: ModelId) -> None:
    for client in client_of(store):
        failing = FakeClassifier(errors={"dull": InferenceError("the engine is broken")})
        client.web.service.registry.table.models[tiny].classifier = failing
        with structlog.testing.capture_logs() as logs:
            error = client.refused("ModelInfer", request(["dull"]))
        assert error.code() is grpc.StatusCode.INTERNAL
        (entry,) = logs
        assert (entry["event"], entry["error"]) == ("request failed", "the engine is broken")
        assert entry["path"] == "/inference.GRPCInferenceService/ModelInfer"
        assert entry["request_id"] == dict(error.trailing_metadata())["x-request-id"]


def test_an_unexpected_error_is_answered_without_its_details(store: ModelStore, tiny: ModelId) -> None:
    for client in client_of(store):
        client.web.service.registry.table.routes["haunted"] = Route(None, "haunted")  # type: ignore[arg-type]
        with structlog.testing.capture_logs() as logs:
            error = client.refused("ModelInfer", request(["dull"], "haunted"))
        (entry,) = logs
        assert entry["event"] == "unexpected error"
        assert entry["request_id"] == dict(error.trailing_metadata())["x-request-id"]
        assert error.code() is grpc.StatusCode.INTERNAL
        assert "NoneType" not in (error.details() or "")
        assert 'successor_refusals_total{reason="internal_error"} 1.0' in client.web.get("/metrics").text


@pytest.mark.parametrize("name", ["inputs", "outputs", "parameters", "input parameters"])
def test_a_message_of_empty_parts_is_refused_before_they_are_looked_at(client: GrpcClient, name: str) -> None:
    message = request(["dull"])
    if name == "parameters":
        for index in range(65):
            message.parameters[f"p{index}"].int64_param = 1
    elif name == "input parameters":
        for index in range(65):
            message.inputs[0].parameters[f"p{index}"].int64_param = 1
    else:
        getattr(message, name).extend([getattr(message, name).add()] * 100)
    error = client.refused("ModelInfer", message)
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "more than" in (error.details() or "") or "at most" in (error.details() or "")


def test_no_more_connections_are_open_than_over_http(store: ModelStore, tiny: ModelId) -> None:
    for client in client_of(store, max_connections=3):
        host, _, port = client.address.partition(":")
        with contextlib.ExitStack() as stack:
            peers = [stack.enter_context(socket.create_connection((host, int(port)), timeout=20)) for _ in range(6)]
            for peer in peers:
                peer.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
            first = [_first_byte(peer) for peer in peers]
        assert [bool(byte) for byte in first].count(True) == 3
        assert client.call("ServerLive", MESSAGES["ServerLiveRequest"]()).live


def _first_byte(peer: socket.socket) -> bytes:
    try:
        return peer.recv(1)
    except ConnectionError:
        return b""


def test_a_connection_without_calls_is_closed(store: ModelStore, tiny: ModelId) -> None:
    for client in client_of(store, keep_alive_ms=1_000):
        host, _, port = client.address.partition(":")
        with socket.create_connection((host, int(port)), timeout=20) as peer, peer.makefile("rb") as file:
            peer.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0")
            assert file.read()  # until it is closed


def half_call(address: str, method: str, **settings: Any) -> Any:  # noqa: ANN401 - gRPC has no types
    """The code and sentence that a call ends with whose client sends no message and does not say that there is none."""

    async def ask(channel: Any) -> tuple[str, str]:  # noqa: ANN401 - as above
        call = channel.stream_stream(f"/{SERVICE}/{method}")(**settings)
        with contextlib.suppress(grpc.aio.AioRpcError):
            await asyncio.wait_for(call.read(), 20)
        return (await call.code()).name, await call.details()

    return ask


@pytest.mark.parametrize("method", ["ModelInfer", "ModelReady", "ModelStreamInfer"])
def test_a_call_whose_message_does_not_come_is_given_up(store: ModelStore, tiny: ModelId, method: str) -> None:
    for client in client_of(store, receive_timeout_ms=50):
        code, sentence = client.run(half_call(client.address, method))
        assert (code, sentence) == ("DEADLINE_EXCEEDED", "no message came within 50 ms: call again")
        assert 'successor_refusals_total{reason="request_timeout"} 1.0' in client.web.get("/metrics").text


@pytest.mark.parametrize("method", ["ServerLive", "ServerReady", "ServerMetadata"])
def test_what_anybody_may_ask_is_answered_without_a_message(client: GrpcClient, method: str) -> None:
    assert client.run(half_call(client.address, method)) == ("OK", "")


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer"])
def test_only_so_many_messages_are_waited_for_as_may_all_be_large(
    store: ModelStore, tiny: ModelId, method: str
) -> None:
    small = {"max_body_bytes": 2**20, "max_arriving_bytes": 2**21}
    for client in client_of(store, receive_timeout_ms=300, **small):
        half = half_call(client.address, method)

        async def all_three(channel: Any, half: Callable[[Any], Any] = half) -> list[tuple[str, str]]:  # noqa: ANN401 - as above
            return sorted(await asyncio.gather(half(channel), half(channel), half(channel)))

        ended = client.run(all_three)
        # The first one's place is the second one's when it is given up, which takes as long as the third one waits.
        assert {code for code, _ in ended} == {"DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
        assert "SUCCESSOR_MAX_ARRIVING_BYTES" in ended[-1][1]
        assert client.call("ModelInfer", request(["a"])).outputs  # there is room again


def test_what_is_said_of_a_request_is_cut(client: GrpcClient) -> None:
    message = request(["a"])
    message.inputs[0].name = "x" * 20_000
    message.inputs[0].contents.bytes_contents.append(b"a")
    error = client.refused("ModelInfer", message)
    assert error.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert len(error.details()) == 2_001
    assert "x-request-id" in dict(error.trailing_metadata())


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer", "RepositoryModelUnload"])
def test_a_caller_without_a_key_is_refused_before_a_message_comes(
    store: ModelStore, tiny: ModelId, tmp_path: Path, method: str
) -> None:
    for client in client_of(store, api_keys_file=write_keys(tmp_path / "keys.json", entry(KEY, "infer", "admin"))):
        code, sentence = client.run(half_call(client.address, method))
        assert code == "UNAUTHENTICATED"
        assert "send an API key" in sentence


def test_a_stream_that_asks_for_nothing_more_is_closed(store: ModelStore, tiny: ModelId) -> None:
    async def ask_once(channel: Any) -> list[str]:  # noqa: ANN401 - as above
        call = channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            request_serializer=MESSAGES["ModelInferRequest"].SerializeToString,
            response_deserializer=MESSAGES["ModelStreamInferResponse"].FromString,
        )()
        await call.write(request(["dull"]))
        answer = await call.read()
        with contextlib.suppress(grpc.aio.AioRpcError):
            await asyncio.wait_for(call.read(), 20)
        return [answer.error_message, (await call.code()).name]

    for client in client_of(store, keep_alive_ms=1_000):
        assert client.run(ask_once) == ["", "OK"]
        assert 'successor_refusals_total{reason="request_timeout"} 0.0' in client.web.get("/metrics").text


@pytest.mark.parametrize(
    ("data", "expected", "sentence"),
    [(b"\xff", "INVALID_ARGUMENT", "is no ModelInferRequest"), (None, "CANCELLED", "before its message")],
)
def test_what_is_no_message_is_refused(client: GrpcClient, data: bytes | None, expected: str, sentence: str) -> None:
    async def ask(channel: Any) -> tuple[str, str]:  # noqa: ANN401 - as above
        call = channel.stream_unary(f"/{SERVICE}/ModelInfer")(iter([] if data is None else [data]))
        return (await call.code()).name, await call.details()

    code, said = client.run(ask)
    assert code == expected
    assert sentence in said


def test_a_stream_goes_on_after_what_is_no_message(client: GrpcClient) -> None:
    async def stream(channel: Any) -> list[str]:  # noqa: ANN401 - as above
        call = channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer", response_deserializer=MESSAGES["ModelStreamInferResponse"].FromString
        )
        return [answer.error_message async for answer in call(iter([b"\xff", request(["dull"]).SerializeToString()]))]

    assert client.run(stream) == ["the message is no ModelInferRequest", ""]


@pytest.mark.parametrize("method", ["ModelInfer", "ModelStreamInfer"])
def test_clients_that_retry_by_themselves_do(store: ModelStore, tiny: ModelId, method: str) -> None:
    """They do so only where the answer has no message."""
    retrying = {
        "methodConfig": [
            {
                "name": [{"service": SERVICE}],
                "retryPolicy": {
                    "maxAttempts": 3,
                    "initialBackoff": "0.01s",
                    "maxBackoff": "0.01s",
                    "backoffMultiplier": 1,
                    "retryableStatusCodes": ["RESOURCE_EXHAUSTED"],
                },
            }
        ]
    }

    async def ask(address: str) -> str:
        options = (("grpc.service_config", json.dumps(retrying)), ("grpc.enable_retries", 1))
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            call = channel.stream_stream(f"/{SERVICE}/{method}")(iter([request(["dull"]).SerializeToString()]))
            with contextlib.suppress(grpc.aio.AioRpcError):
                await call.read()
            return str((await call.code()).name)

    for client in client_of(store):
        engine = client.web.service.engine
        # More than is allowed by a moment: the pushback is that moment.
        engine._backlog_s = (client.web.service.settings.max_wait_ms / 1e3 + 0.01) * len(engine._pool.live)
        try:
            code = asyncio.run_coroutine_threadsafe(ask(client.address), client.web.loop).result(20)
        finally:
            engine._backlog_s = 0.0
        assert code == "RESOURCE_EXHAUSTED"
        assert 'successor_refusals_total{reason="overloaded"} 3.0' in client.web.get("/metrics").text


def test_an_overloaded_server_refuses_before_a_message_comes(store: ModelStore, tiny: ModelId) -> None:
    for client in client_of(store):
        engine = client.web.service.engine
        engine._backlog_s = 1.2 * len(engine._pool.live)
        try:
            for method in ("ModelInfer", "ModelStreamInfer"):
                code, sentence = client.run(half_call(client.address, method, timeout=1))
                assert code == "RESOURCE_EXHAUSTED"
                assert "the deadline would be missed" in sentence
        finally:
            engine._backlog_s = 0.0


def test_each_request_of_a_stream_counts_for_the_rate_of_its_key(
    store: ModelStore, tiny: ModelId, tmp_path: Path
) -> None:
    async def stream(channel: Any) -> list[str]:  # noqa: ANN401 - as above
        call = channel.stream_stream(
            f"/{SERVICE}/ModelStreamInfer",
            request_serializer=Request.SerializeToString,
            response_deserializer=MESSAGES["ModelStreamInferResponse"].FromString,
        )
        three = iter([request(["dull"])] * 3)
        return [answer.error_message async for answer in call(three, metadata=(("x-api-key", "slow"),))]

    keys = write_keys(tmp_path / "keys.json", entry("slow", "infer", requests_per_second=0.001))
    for client in client_of(store, api_keys_file=keys):
        first, second, third = client.run(stream)
        assert first == ""
        assert "requests a second: wait" in second
        assert "requests a second: wait" in third


def test_what_was_refused_is_let_go_of_at_once(store: ModelStore, tiny: ModelId) -> None:
    def kept() -> int:
        return sum(type(one).__name__ == "_Call" for one in gc.get_objects())

    for client in client_of(store):
        client.refused("ModelInfer", request([""], "nobody"))
        gc.collect()
        gc.disable()
        try:
            before = kept()
            for name, text in (("nobody", "dull"), ("tiny", "")) * 10:
                client.refused("ModelInfer", request([text], name))
            assert kept() <= before + 1
        finally:
            gc.enable()


@pytest.mark.parametrize("options", [{"timeout": 90}, {}])
def test_a_deadline_of_its_own_may_be_longer_than_that_of_requests_that_state_none(
    store: ModelStore, tiny: ModelId, options: dict[str, float]
) -> None:
    message = request(["dull"], "blocked")
    if "timeout" not in options:
        message.parameters["timeout"].int64_param = 90_000_000
    for client in client_of(store, request_timeout_ms=10_000):
        assert 80 < seconds_left(client, message, **options) <= 90


def test_calls_are_logged_and_continue_their_trace_as_over_http(store: ModelStore, tiny: ModelId) -> None:
    trace = "0af7651916cd43dd8448eb211c80319c"

    async def ask(channel: Any, name: str) -> dict[str, str]:  # noqa: ANN401 - as above
        metadata = (("traceparent", f"00-{trace}-b7ad6b7169203331-01"),)
        call = stub(channel, "ModelInfer")(request(["dull"], name), metadata=metadata)
        await call.code()
        return dict(await call.trailing_metadata())

    for client in client_of(store, log_requests=True):
        with structlog.testing.capture_logs() as logs:
            told = [client.run(functools.partial(ask, name=name)) for name in ("tiny", "nobody")]
            while len(logs) < 2:  # a caller may hear of the end before the log does
                threading.Event().wait(0.005)
        assert [entry["status"] for entry in logs] == ["OK", "NOT_FOUND"]
        assert {entry["path"] for entry in logs} == {f"/{SERVICE}/ModelInfer"}
        assert [entry["request_id"] for entry in logs] == [one["x-request-id"] for one in told]
        assert all(one["traceparent"].startswith(f"00-{trace}-") for one in told)


def test_a_port_that_is_taken_is_said_in_one_line(store: ModelStore, tiny: ModelId) -> None:
    for client in client_of(store):

        async def again() -> None:
            async with serving(client.web.service):  # noqa: B023 - used in this turn
                pass

        with pytest.raises(ListenError, match="SUCCESSOR_GRPC_PORT"):
            asyncio.run_coroutine_threadsafe(again(), client.web.loop).result(10)


def test_without_a_port_grpc_is_not_needed(tmp_path: Path) -> None:
    assert check_installation(load_settings(store_dir=tmp_path)) == "CPUExecutionProvider"


def test_with_a_port_of_their_own_operations_are_not_on_this_one(
    store: ModelStore, tiny: ModelId, tmp_path: Path
) -> None:
    for client in client_of(store, api_keys_file=write_keys(tmp_path / "keys.json"), operations_port=1):
        unload = MESSAGES["RepositoryModelUnloadRequest"](model_name="tiny")
        token = tuple(BEARER.items())
        error = client.refused("RepositoryModelUnload", unload, metadata=token)
        assert error.code() is grpc.StatusCode.NOT_FOUND
        assert error.details() == "administration is at the server's operations port, over HTTP"
        assert client.call("ModelInfer", request(["dull"]), metadata=token).model_version == "1"


def test_with_a_certificate_it_speaks_tls_and_nothing_else(store: ModelStore, tiny: ModelId, tmp_path: Path) -> None:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(tmp_path / "key.pem")
    for index, blob in enumerate(issued.cert_chain_pems):
        blob.write_to_path(tmp_path / "cert.pem", append=index > 0)
    settings = {"tls_cert_file": tmp_path / "cert.pem", "tls_key_file": tmp_path / "key.pem"}
    trusted = grpc.ssl_channel_credentials(authority.cert_pem.bytes())

    async def ask(address: str) -> Any:  # noqa: ANN401 - a message
        async with grpc.aio.secure_channel(address, trusted) as channel:
            return await stub(channel, "ModelInfer")(request(["dull"]))

    for client in client_of(store, **settings):
        answer = asyncio.run_coroutine_threadsafe(ask(client.address), client.web.loop).result(20)
        assert answer.model_version == "1"
        assert client.refused("ModelInfer", request(["dull"])).code() is grpc.StatusCode.UNAVAILABLE
