"""What the server says about itself: models, health, life, version.

Knows: the engine's state and the model's names. Does not know: what makes an engine ready.
"""

from __future__ import annotations

from gpt_oss_server.api import wire
from gpt_oss_server.api.exchange import Exchange
from gpt_oss_server.api.services import Services


async def list_models(exchange: Exchange, services: Services) -> None:
    """`GET /v1/models`: the one model, once per name it answers to."""
    data = [_model(services, name) for name in services.model.ids]
    await exchange.reply(wire.ModelList(data=data))


async def get_model(exchange: Exchange, services: Services) -> None:
    """`GET /v1/models/{id}`; 404 for a model not served."""
    services.model.resolve(exchange.rest)
    await exchange.reply(_model(services, exchange.rest))


def _model(services: Services, name: str) -> wire.Model:
    ready = services.engine.state().ready
    return wire.Model(
        id=name,
        created=services.model.created,
        owned_by=services.model.owned_by,
        max_model_len=services.engine.info().max_model_len if ready else None,
    )


async def health(exchange: Exchange, services: Services) -> None:
    """`GET /health`: 200 if a request sent now would be taken, else 503 with the reason."""
    state = services.engine.state()
    if services.draining():
        await exchange.reply(wire.Health("not_ready", "shutting down"), status=503)
    elif state.ready:
        await exchange.reply(wire.Health("ready"))
    else:
        await exchange.reply(wire.Health("not_ready", state.reason), status=503)


async def live(exchange: Exchange, services: Services) -> None:
    """`GET /live`: 200 for as long as the process answers at all."""
    await exchange.reply(wire.Health("live"))


async def version(exchange: Exchange, services: Services) -> None:
    """`GET /version`."""
    await exchange.reply(wire.Version(services.version))
