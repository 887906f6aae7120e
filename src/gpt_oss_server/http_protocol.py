"""What is not HTTP is refused like everything else: in the error envelope, with a request id.

Knows: uvicorn's protocol class, which answers such requests before any application sees them
(two lengths, a negative one, a line that is none). Does not know: the application.
"""

from __future__ import annotations

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from gpt_oss_server.api.exchange import refusal
from gpt_oss_server.api.services import UNDECIDED
from gpt_oss_server.errors import BadRequest


class EnvelopeProtocol(HttpToolsProtocol):
    """uvicorn's protocol over httptools, with an answer of ours where it makes one itself."""

    def send_400_response(self, msg: str) -> None:
        """Refuse what could not be parsed and close the connection."""
        if self.cycle is None or not self.cycle.response_started or self.cycle.response_complete:
            offered_id = dict(self.headers or ()).get(b"x-request-id")
            headers, body = refusal(BadRequest(msg), offered_id, UNDECIDED)
            lines = [*self.server_state.default_headers, *headers, (b"connection", b"close")]
            head = b"".join([b"%b: %b\r\n" % line for line in lines])
            self.transport.write(STATUS_LINE[400] + head + b"\r\n" + body)
        # Else the answer to an earlier request is half written: nothing may be put into it.
        self.transport.close()
