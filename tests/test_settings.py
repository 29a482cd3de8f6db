"""Settings: the environment, their limits, and what they say when they are wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from service.settings import PREFIX, InvalidSettingsError, Settings, load_settings


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for field in Settings.model_fields:
        monkeypatch.delenv((PREFIX + field).upper(), raising=False)


def test_the_environment_sets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUCCESSOR_PORT", "9000")
    monkeypatch.setenv("SUCCESSOR_MODELS", '["sentiment", "sentiment@2"]')
    settings = load_settings()
    assert (settings.port, settings.models) == (9000, ("sentiment", "sentiment@2"))


def test_models_may_be_given_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUCCESSOR_MODELS", "sentiment, sentiment@2,")
    assert load_settings().models == ("sentiment", "sentiment@2")


def test_what_is_chosen_in_the_call_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUCCESSOR_PORT", "9000")
    assert load_settings(port=9001, store_dir=Path("there")).port == 9001


def test_an_unknown_variable_is_refused_by_its_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUCCESSOR_PROT", "9000")
    with pytest.raises(
        InvalidSettingsError, match="unknown environment variables: SUCCESSOR_PROT: did you mean SUCCESSOR_PORT"
    ):
        load_settings()


def test_variables_of_other_parts_of_the_project_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUCCESSOR_CACHE_DIR", "somewhere")
    load_settings()


def test_an_unknown_setting_is_refused_with_the_one_that_it_looks_like() -> None:
    with pytest.raises(InvalidSettingsError, match=r"^unknown setting 'prot': did you mean 'port'\?$"):
        load_settings(prot=1)
    with pytest.raises(InvalidSettingsError, match=r"^unknown setting 'xyzzy'$"):
        load_settings(xyzzy=1)


@pytest.mark.parametrize(
    ("name", "value"),
    [("PORT", "many"), ("PROCESSES", "0"), ("PROVIDER", "tpu"), ("MAX_WAIT_MS", "0"), ("MODELS", "[x")],
)
def test_a_value_that_cannot_be_is_refused_in_one_line_that_names_it(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(f"SUCCESSOR_{name}", value)
    with pytest.raises(InvalidSettingsError) as caught:
        load_settings()
    assert name.lower() in str(caught.value).lower()
    assert "\n" not in str(caught.value)


def test_they_never_change() -> None:
    with pytest.raises(ValidationError):
        load_settings().port = 1  # type: ignore[misc]


def test_workers_are_the_cores_divided_by_the_processes_unless_said() -> None:
    assert load_settings(threads=3).workers(on_cpu=True) == load_settings(threads=3).workers(on_cpu=False) == 3
    assert load_settings(processes=64).workers(on_cpu=True) == 1
    assert load_settings().workers(on_cpu=True) >= 1
    assert load_settings(processes=64).workers(on_cpu=False) == 2


@pytest.mark.parametrize(("cores", "processes", "workers"), [(2.0, 1, 2), (2.5, 1, 2), (0.5, 1, 1), (4.0, 2, 2)])
def test_workers_are_no_more_than_the_cores_that_a_container_may_use(
    monkeypatch: pytest.MonkeyPatch, cores: float, processes: int, workers: int
) -> None:
    monkeypatch.setattr("service.settings.usable_cores", lambda: cores)
    assert load_settings(processes=processes).workers(on_cpu=True) == workers


@pytest.mark.parametrize(
    "link", ["SERVICE_HOST", "SERVICE_PORT_HTTP", "PORT_80_TCP", "CANARY_PORT", "A_B_SERVICE_HOST"]
)
def test_kubernetes_links_to_services_are_not_taken_for_settings(monkeypatch: pytest.MonkeyPatch, link: str) -> None:
    monkeypatch.setenv(f"SUCCESSOR_{link}", "tcp://10.0.0.1:80")
    assert load_settings().port == 8000


def test_a_port_that_is_no_link_is_still_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUCCESSOR_GRCP_PORT", "8001")
    with pytest.raises(InvalidSettingsError, match="SUCCESSOR_GRCP_PORT: did you mean SUCCESSOR_GRPC_PORT"):
        load_settings()


def test_a_link_in_place_of_the_port_is_refused_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUCCESSOR_PORT", "tcp://10.0.0.1:80")
    with pytest.raises(InvalidSettingsError, match=r"SUCCESSOR_PORT: .* enableServiceLinks: false"):
        load_settings()


def test_a_gpu_is_given_larger_batches() -> None:
    assert load_settings().batch_texts(on_cpu=False) > load_settings().batch_texts(on_cpu=True)
    assert load_settings(max_batch_texts=7).batch_texts(on_cpu=False) == 7


def test_every_setting_is_described_and_times_and_sizes_name_their_unit() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        if name.endswith(("wait", "timeout", "poll", "drain", "body")):
            pytest.fail(f"{name} does not name its unit")


def test_what_arrives_must_have_room_for_one_body() -> None:
    assert load_settings(max_body_bytes=2**21, max_arriving_bytes=2**21).max_arriving_bytes == 2**21
    with pytest.raises(InvalidSettingsError, match="SUCCESSOR_MAX_BODY_BYTES"):
        load_settings(max_body_bytes=2**21, max_arriving_bytes=2**20)


def test_an_empty_variable_is_one_that_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUCCESSOR_API_KEYS_FILE", "")
    assert load_settings().api_keys_file is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"port": 9000, "operations_port": 9000}, "must be another than SUCCESSOR_PORT"),
        ({"grpc_port": 0, "processes": 2}, "must be a number where there are several processes"),
    ],
)
def test_ports_that_could_not_be_told_apart_or_shared_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(InvalidSettingsError, match=message):
        load_settings(**changes)
    assert load_settings(port=0, operations_port=0).operations_port == 0
