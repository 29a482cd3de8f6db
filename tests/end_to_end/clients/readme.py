"""A piece of code that README shows, run as it stands, on the top level of a program where `await` is allowed."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
from typing import Any

from common import main


def answer(task: dict[str, Any]) -> object:
    code = compile(task["code"], "README", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        result = eval(code, {"__name__": "__main__"})
        if inspect.iscoroutine(result):
            asyncio.run(_wait_for(result))
    return printed.getvalue()


async def _wait_for(work: Any) -> None:
    await work


main(answer)
