"""Requests that are too long, announced or not, against a small server in this process."""

import pytest

from kd.ui.body_limit import BodyLimit
from tests.support.loops import run_apart


async def echo(scope, receive, send) -> None:
    """Answer with how many bytes have come."""
    got, more = 0, True
    while more:
        message = await receive()
        got, more = got + len(message["body"]), message["more_body"]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"%d" % got})


def asked(parts: list[bytes], path: str = "/gradio_api/queue/join", **headers: str) -> tuple[int, bytes]:
    """Status and body of the answer to a POST whose body comes in ``parts``, where 1 kB is the most."""
    left, sent = list(parts), []

    async def receive() -> dict:
        return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

    async def send(message: dict) -> None:
        sent.append(message)

    named = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": path, "headers": named}
    run_apart(BodyLimit(echo, most_mb=0.001)(scope, receive, send))
    return sent[0]["status"], sent[1]["body"]


def test_a_request_within_the_limit_is_passed_on_whole():
    assert asked([b"x" * 500, b"x" * 500], content_length="1000") == (200, b"1000")


@pytest.mark.parametrize(
    "headers", [{}, {"content_length": "1001"}, {"content_length": "many"}, {"content_length": "5"}]
)
def test_a_longer_one_is_refused_in_words_whatever_length_it_says_it_has(headers):
    status, words = asked([b"x" * 500, b"x" * 501], **headers)
    assert status == 413 and b"longer than 0.001 MB. Upload larger files first" in words


def test_uploads_are_left_to_gradio_which_bounds_them_itself():
    assert asked([b"x" * 5000], "/gradio_api/upload", content_length="5000") == (200, b"5000")
