"""What every client's program does: read its task, and print what it was answered as one line of JSON."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any


def main(answer: Callable[[dict[str, Any]], object]) -> None:
    """Call `answer` with the task (`url`, `grpc`, `texts`, `pairs`) and print what it returns."""
    sys.stdout.write(json.dumps(answer(json.loads(sys.argv[1]))) + "\n")
