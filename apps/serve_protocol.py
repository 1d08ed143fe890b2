"""uvicorn's WebSocket protocol, which takes an answer to a handshake for an answer.

An application may answer a handshake by an HTTP response instead of accepting it (ASGI's `websocket.http.response`): a wrong key gets its
401 that way. uvicorn sends the response, and then logs an error as if nothing had been sent, since it counts accepted handshakes only (its
pull request 3138). With every refused client in the log, nobody would see what is wrong in earnest.
"""

from __future__ import annotations

from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol


class AnsweredProtocol(WebSocketsSansIOProtocol):
    """A connection."""

    async def send(self, message: Any) -> None:
        """See ASGI. Cancelling loses the message."""
        await super().send(message)
        if self.initial_response is not None and self.close_sent:  # the whole response has been written
            self.handshake_complete = True
