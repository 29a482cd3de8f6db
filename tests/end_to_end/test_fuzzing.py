"""Schemathesis against the real server, over the whole OpenAPI document, with all checks: no 5xx, nothing undocumented.

`API_CASES` says how many cases there must be at least; `make fuzz` asks for 10,000.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from model_store.store import ModelStore
from tests.keys import KEY, write_keys
from tests.test_server import server
from tests.tiny import make_tiny_version

pytestmark = pytest.mark.slow

# What no schema can say, and is refused all the same: a pair for a model that reads texts, a text that is blank, a name
# that is none, more texts than there may be. Requests that ask for a 5xx are left out, see `HOOKS`.
NAMES = """
"path.model" = "pairs"
"path.version" = "1"
"""
CONFIGURATION = """
[parameters]
{names}

[checks.positive_data_acceptance]
expected-statuses = ["2xx", "400", "404", "409", "413", "422", "424"]
"""

ROOT = Path(__file__).parents[2]
HOOKS = "tests.end_to_end.schemathesis_hooks"
CASES = int(os.environ.get("API_CASES", "300"))


def test_no_generated_request_gets_an_undocumented_answer_or_finds_a_fault_of_the_server(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    make_tiny_version(store, aliases=("production",))
    make_tiny_version(store, "pairs", pair=True, labels=("no", "perhaps", "yes"))
    keys = write_keys(tmp_path / "keys.json")
    cases = 0
    with server(store, tmp_path, api_keys_file=str(keys), default_model="tiny", log_level="error") as running:
        document = running.request("GET", "/openapi.json")[2]
        paths = document["paths"]
        assert isinstance(paths, dict)
        operations = sum(len(methods) for methods in paths.values())
        examples = max(1, round(CASES / operations))
        attempt = 0
        # By turns with names that are made up, most of which nothing has, and with those of a model that is there.
        while cases < CASES or attempt < 2:
            (tmp_path / "schemathesis.toml").write_text(CONFIGURATION.format(names=NAMES if attempt % 2 else ""))
            report = tmp_path / f"events-{attempt}.ndjson"
            done = subprocess.run(
                [
                    str(Path(sys.executable).with_name("schemathesis")),
                    "run",
                    f"http://127.0.0.1:{running.port}/openapi.json",
                    "--checks=all",
                    "--phases=examples,coverage,fuzzing",
                    f"--max-examples={examples}",
                    f"--seed={1 + attempt}",
                    f"--header=X-API-Key: {KEY}",
                    # Two headers may carry a key: one generated beside the right one would do no harm.
                    "--generation-with-security-parameters=false",
                    "--generation-database=none",
                    "--suppress-health-check=all",
                    "--request-timeout=20",
                    f"--report-ndjson-path={report}",
                    "--no-color",
                ],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": str(ROOT), "SCHEMATHESIS_HOOKS": HOOKS},
                capture_output=True,
                text=True,
                check=False,
                timeout=3_600,
            )
            assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-5_000:]
            found = cases_in(report)
            assert found
            cases += found
            attempt += 1
        code, log = running.stop()
    assert code == 0
    assert cases >= CASES
    assert "unexpected error" not in log
    assert "Traceback" not in log


def cases_in(report: Path) -> int:
    """How many requests were sent."""
    count = 0
    with report.open(encoding="utf-8") as lines:
        for line in lines:
            event = json.loads(line)
            recorder = event.get("ScenarioFinished", {}).get("recorder", {})
            count += len(recorder.get("cases", {}))
    return count
