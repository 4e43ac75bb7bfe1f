"""Refuse requests that are too long before they fill the memory. gradio bounds uploads alone, which it writes to the disk."""

from typing import Any

from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

# The longest request: pictures as ``data:`` URLs. A longer file is uploaded.
MOST_MB = 64

# gradio bounds these itself, by ``max_file_size``.
UPLOAD = "/gradio_api/upload"


class TooLong(Exception):
    """More has come than a request may have."""


class BodyLimit:
    """Answer 413, in words, to a request of more than ``MOST_MB`` that is no upload."""

    def __init__(self, app: ASGIApp, most_mb: float = MOST_MB) -> None:
        self.app, self.most = app, int(most_mb * 1e6)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].rstrip("/").endswith(UPLOAD):
            return await self.app(scope, receive, send)
        got, begun = 0, False

        async def counted() -> Message:
            nonlocal got
            message = await receive()
            got += len(message.get("body", b""))
            if got > self.most:
                raise TooLong
            return message

        async def watched(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            if announced(scope) > self.most:
                raise TooLong
            await self.app(scope, counted, watched)
        except TooLong:
            if not begun:
                await self._refuse()(scope, receive, send)

    def _refuse(self) -> PlainTextResponse:
        words = f"The request is longer than {self.most / 1e6:g} MB. Upload larger files first: POST them to {UPLOAD}, and name what that answers."
        return PlainTextResponse(words, status_code=413, headers={"connection": "close"})


def announced(scope: dict[str, Any]) -> int:
    """Return the length that a request says it has, 0 where it says none."""
    text = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
    return int(text) if text.isdigit() else 0
