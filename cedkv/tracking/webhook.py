"""Warnings sent to a webhook while a run trains: posted by a thread of its own, so that training never waits for it.

The address may hold a secret, so it comes from the environment (`CEDKV_WEBHOOK`) and is neither logged nor shown.
"""

from __future__ import annotations

import contextlib
import json
import queue
import threading
import urllib.request
from collections.abc import Callable, Mapping
from typing import Any, Final, Self
from urllib.parse import urlsplit

from cedkv.core.errors import UserError

VARIABLE: Final = "CEDKV_WEBHOOK"
TIMEOUT_S: Final = 5.0
MOST_WAITING: Final = 32


class Webhook:
    """Posts JSON to an address; what fails or does not fit is dropped, and said once.

    Args:
        url: ``http`` or ``https``; ``UserError`` for anything else.
        complain: called with one line when something could not be delivered.
        timeout_s: of one post, and of the wait for the last ones at the end.
    """

    def __init__(self, url: str, complain: Callable[[str], None], timeout_s: float = TIMEOUT_S) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise UserError(
                f"{VARIABLE} is no http(s) address; set it to the whole address of a webhook, or unset it"
            )
        self._url, self._host, self._complain, self._timeout_s = url, parts.hostname, complain, timeout_s
        self._waiting: queue.Queue[bytes | None] = queue.Queue(MOST_WAITING)
        self._complained = False
        self._thread = threading.Thread(target=self._post_all, name="cedkv webhook", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def send(self, content: Mapping[str, Any]) -> None:
        """Queue one post and return at once."""
        try:
            self._waiting.put_nowait(json.dumps(dict(content)).encode())
        except queue.Full:
            self._say("too many warnings are waiting")

    def close(self) -> None:
        """Wait for what is queued, as long as one post may take."""
        with contextlib.suppress(queue.Full):
            self._waiting.put_nowait(None)
        self._thread.join(self._timeout_s)

    def _post_all(self) -> None:
        while (body := self._waiting.get()) is not None:
            asked = urllib.request.Request(  # noqa: S310 - the scheme was checked
                self._url, data=body, headers={"Content-Type": "application/json"}, method="POST"
            )
            try:
                with urllib.request.urlopen(asked, timeout=self._timeout_s):  # noqa: S310
                    pass
            except (OSError, ValueError) as error:
                self._say(f"{type(error).__name__}")

    def _say(self, reason: str) -> None:
        if not self._complained:
            self._complained = True
            self._complain(
                f"the webhook at {self._host} was not reached ({reason}); the run goes on without it"
            )
