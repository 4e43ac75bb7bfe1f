"""Run a coroutine in a test."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def run_apart(work: Coroutine) -> Any:
    """Run a coroutine in a thread of its own: in this one a browser's loop may be running, left by the tests of the page."""
    with ThreadPoolExecutor() as thread:
        return thread.submit(asyncio.run, work).result()
