"""A connection to a client, which ends if the client sends no request, or takes nothing of an answer.

Without that, silent clients would take all connections that there can be, and answers that nobody reads the memory.
"""

import asyncio
import selectors
from contextlib import suppress
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from lit_gpt.serve.refusals import Refusal

_HEAD_SECONDS = 30
"""Seconds that the head of a request may take from its first byte on, that a new connection may be silent, and that the
rest of a body may take which is refused already: a client that still sends would not see why."""
_READ_SECONDS = 60
"""Seconds in which a client has to take something of what waits for it."""


class Connection(H11Protocol):
    """uvicorn's connection, which by itself waits for ever for a head and for a reader.

    An idle connection that has had an answer is closed by uvicorn after `timeout_keep_alive`.
    """

    _head_clock: asyncio.TimerHandle | None = None
    _read_clock: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_clock()
        if self._read_clock is not None:
            self._read_clock.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if not self._has_begun():
            self._stop_clock()
        elif self._head_clock is None:
            self._await_head()

    def _has_begun(self) -> bool:
        """Returns whether a part of a head has come, or of a body that is answered already."""
        if self.conn.their_state is h11.IDLE:
            return bool(self.conn.trailing_data[0])
        return self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reader()

    def timeout_keep_alive_handler(self) -> None:
        """Closes an idle connection in one moment, and not if a request has come that the loop was too busy to read.

        A request that comes before the client can see the end would be thrown away, and the client's connection reset:
        many clients keep connections for as many seconds as servers do. `close` alone ends the connection only in the
        next round of the loop.
        """
        if not self._has_unread():
            with suppress(OSError):  # the client is gone already
                self.transport.write_eof()
            super().timeout_keep_alive_handler()
            self._await_reader()  # a connection that is closing waits for its reader, too

    def _has_unread(self) -> bool:
        """Returns whether the client has sent something that is not read yet."""
        with suppress(OSError, ValueError), selectors.DefaultSelector() as selector:
            selector.register(self.transport.get_extra_info("socket").fileno(), selectors.EVENT_READ)
            return bool(selector.select(0))
        return False

    def send_400_response(self, msg: str) -> None:
        """Answers what is no HTTP, in the form of all errors, and closes the connection."""
        refusal = Refusal(400, f"{msg.rstrip('.')}: it is no HTTP/1.1, or its head is too long", code="invalid_http")
        response = refusal.response()
        headers = [*response.raw_headers, (b"connection", b"close")]
        head = h11.Response(status_code=refusal.status, headers=headers, reason=b"Bad Request")
        with suppress(h11.LocalProtocolError):  # there was an answer already, such as one to the head
            for event in (head, h11.Data(data=bytes(response.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        if self.cycle is not None:  # whoever is at work on the head has nobody to answer any more
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        self.transport.close()

    def _await_head(self) -> None:
        self._head_clock = self.loop.call_later(_HEAD_SECONDS, self._give_up)

    def _stop_clock(self) -> None:
        if self._head_clock is not None:
            self._head_clock.cancel()
            self._head_clock = None

    def _give_up(self) -> None:
        """Closes the connection, whose client may be told no more than that."""
        self._head_clock = None
        if not self.transport.is_closing():
            self.transport.close()

    def _await_reader(self) -> None:
        """Ends the connection unless the client takes something of what waits for it."""
        if self._read_clock is None and (n := self.transport.get_write_buffer_size()):
            self._read_clock = self.loop.call_later(_READ_SECONDS, self._leave_reader, n)

    def _leave_reader(self, n: int) -> None:
        """Ends the connection if `n` bytes wait for the client that waited before."""
        self._read_clock = None
        if self.transport.get_write_buffer_size() >= n:
            self.transport.abort()
        else:
            self._await_reader()
