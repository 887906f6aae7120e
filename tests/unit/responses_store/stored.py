"""Responses to store, and a clock to steer."""

from __future__ import annotations

from dataclasses import dataclass

from gpt_oss_server.responses_store.records import StoreBounds, StoredResponse

BOUNDS = StoreBounds(max_count=100, max_bytes=2**20, max_age_s=1000.0)
OWNER = "somebody"


@dataclass
class SteeredClock:
    """Unix seconds as a test wants them."""

    now_s: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now_s


def response(
    id: str,
    previous: str | None = None,
    *,
    owner: str = OWNER,
    created_s: float = 1_000_000.0,
    body: bytes = b'{"output":[]}',
    item_ids: tuple[str, ...] = (),
) -> StoredResponse:
    return StoredResponse(
        id=id,
        owner=owner,
        previous=previous,
        created_s=created_s,
        body=body,
        input=b"[]",
        item_ids=item_ids,
    )
