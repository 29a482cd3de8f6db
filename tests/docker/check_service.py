"""The service as the compose file runs it, seen from outside and from inside."""

from __future__ import annotations

import httpx
import pytest

from model_store.store import ModelStore
from tests.docker.commands import CommandError
from tests.docker.deployment import Deployment


def test_it_is_healthy_by_its_own_check(running: Deployment) -> None:
    running.await_healthy("service", within=20)


def test_it_classifies_through_the_published_port_with_every_model_of_the_store(
    running: Deployment, full_store: ModelStore
) -> None:
    names = full_store.names()
    assert len(names) == 2
    for name in names:
        answer = httpx.post(
            f"{running.url('service', 8000)}/v1/classify", json={"model": name, "input": ["a good film", "dull"]}
        )
        assert answer.status_code == 200
        assert [row["label"] in {"negative", "positive"} for row in answer.json()["data"]] == [True, True]


def test_it_runs_without_privileges_and_with_limits(running: Deployment) -> None:
    host = running.inspect("service")["HostConfig"]
    assert host["ReadonlyRootfs"] is True
    assert host["CapDrop"] == ["ALL"]
    assert not host["CapAdd"]
    assert not host["Privileged"]
    assert host["SecurityOpt"] == ["no-new-privileges:true"]
    assert (host["Memory"], host["NanoCpus"], host["PidsLimit"]) == (2 * 2**30, 2_000_000_000, 512)
    assert host["RestartPolicy"]["Name"] == "unless-stopped"
    status = running.execute("service", "cat", "/proc/self/status")
    fields = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert set(fields["Uid"].split()) == {"10001"}
    assert (int(fields["CapEff"], 16), int(fields["CapBnd"], 16), fields["NoNewPrivs"]) == (0, 0, "1")


@pytest.mark.parametrize("path", ["/file", "/opt/venv/file", "/store/file", "/etc/file"])
def test_it_can_write_nowhere_else(running: Deployment, path: str) -> None:
    with pytest.raises(CommandError, match="Read-only file system"):
        running.execute("service", "touch", path)


def test_its_workers_let_whoever_reads_and_answers_go_first(running: Deployment) -> None:
    # A thread may end while it is looked at.
    threads = running.execute("service", "sh", "-c", "cat /proc/[0-9]*/task/*/stat 2>/dev/null; true").splitlines()
    assert {thread.rpartition(")")[2].split()[16] for thread in threads} == {"0", "10"}


def test_it_keeps_what_outlives_it_in_its_state_folder_and_reports_to_nobody(running: Deployment) -> None:
    running.execute("service", "touch", "/var/lib/successor/writable", "/tmp/writable")
    assert "Microsoft" not in running.execute("service", "find", "/var/lib/successor", "/tmp")
