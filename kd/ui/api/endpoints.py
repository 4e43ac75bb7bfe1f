"""Make functions of this folder public: what ``gradio_client``, ``curl`` and an MCP client can call.

Their docstrings are what a caller reads of them, an agent too. Of an argument gradio takes one line, so each has one.
"""

import asyncio
import functools
import inspect
import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import gradio as gr

from kd.errors import UserError
from kd.ui.access import is_token, new_token, shared
from kd.ui.settings import FLAG_LABELS

# How long a call may wait for something to end, in seconds. Many clients give up after 60.
LONGEST_WAIT = 50

# Between two looks at what a call waits for, in seconds.
LOOK_SECONDS = 0.5

FLAG = re.compile(rf"({'|'.join(FLAG_LABELS)})(?![\w-])")
RESUME = re.compile(r"`python -m kd resume (\S+)`")


class Refusal(gr.Error):
    """What a caller is told instead of an answer: a sentence, without the quotes that gradio would put around it."""

    def __str__(self) -> str:
        return self.message


def endpoint(function: Callable[..., Any]) -> Callable[..., Any]:
    """Make a function ready for ``gr.api``.

    Errors that a caller can act on reach them as a sentence. A caller by MCP gets the answer as JSON text: gradio would
    write it as Python does.
    """

    @functools.wraps(function)
    def answer(*arguments: Any) -> Any:
        *own, request = arguments
        with caller_errors():
            return _for_caller(function(*own, **_with_request(function, request)), request)

    @functools.wraps(function)
    async def answer_later(*arguments: Any) -> Any:
        *own, request = arguments
        with caller_errors():
            return _for_caller(await function(*own, **_with_request(function, request)), request)

    public = answer_later if inspect.iscoroutinefunction(function) else answer
    signature = inspect.signature(function)
    shown = [one for one in signature.parameters.values() if one.name != "request"]
    asks = inspect.Parameter("request", inspect.Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=gr.Request)
    public.__signature__ = signature.replace(parameters=[*shown, asks])
    public.__annotations__ = {**function.__annotations__, "request": gr.Request}
    return public


def _with_request(function: Callable[..., Any], request: Any) -> dict[str, Any]:
    return {"request": request} if "request" in inspect.signature(function).parameters else {}


def _for_caller(value: dict[str, Any], request: Any) -> dict[str, Any] | str:
    return json.dumps(value, ensure_ascii=False) if is_mcp(request) else value


def is_mcp(request: Any) -> bool:
    """Tell whether a request has come by MCP: to its address, or from gradio's own client on behalf of it."""
    if request is None:
        return False
    path = getattr(getattr(request, "url", None), "path", "")
    return "/gradio_api/mcp" in path or request.headers.get("x-gradio-user") == "mcp"


@contextmanager
def caller_errors() -> Iterator[None]:
    """Turn errors that a caller can act on into a ``Refusal``, in the names that callers use."""
    try:
        yield
    except (ValueError, UserError, PermissionError) as problem:
        raise Refusal(in_callers_names(str(problem)), print_exception=False) from problem


def in_callers_names(message: str) -> str:
    """Return a message with the names of settings and functions for the flags and commands of the command line."""
    message = FLAG.sub(lambda flag: flag[0].removeprefix("--").replace("-", "_"), message)
    return RESUME.sub(lambda found: f"resume_run({found[1]!r})", message)


def token_for(token: Any) -> str:
    """Return the token that owns what a call makes: the given one or, where none is given, a new one.

    Raises ``UserError`` for one that is none; on one's own machine nobody is asked for it.
    """
    if not shared():
        return ""
    if token in ("", None):
        return new_token()
    if not is_token(token):
        raise UserError(
            "token is none of this server's. Leave it empty for a new one, which the answer has, and give that to every later call."
        )
    return token


async def wait_until(is_over: Callable[[], bool], timeout: Any) -> None:
    """Wait until ``is_over()`` is true, or for ``timeout`` seconds (0 to 50) if that is shorter.

    No thread is held meanwhile, so that any number of callers can wait. Raises ``ValueError`` for a time that is none.
    """
    try:
        seconds = float(timeout)
    except (TypeError, ValueError):
        seconds = -1.0
    if not 0 <= seconds <= LONGEST_WAIT:
        raise ValueError(
            f"timeout is {timeout!r}; expected seconds from 0 to {LONGEST_WAIT}. What takes longer goes on by itself: call again."
        )
    end = time.monotonic() + seconds
    while not await asyncio.to_thread(is_over) and (left := end - time.monotonic()) > 0:
        await asyncio.sleep(min(LOOK_SECONDS, left))
