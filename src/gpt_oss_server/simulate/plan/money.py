"""What GPUs cost: prices per GPU-hour as data, and what a fleet's tokens cost at them.

Knows: price files and lists, GPU-hours, currency per million tokens. Does not know: how many
tokens a fleet makes. A fleet is paid for whether it is busy or not.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from gpt_oss_server.errors import ConfigError
from gpt_oss_server.simulate.fleet.pools import Fleet
from gpt_oss_server.simulate.plan.inventory import Inventory

_PACKAGED = "prices.yaml"
_MILLION = 1e6
_HOUR_S = 3600.0
DEFAULT_CURRENCY = "USD"
MOST_PRICE = 1e12


@dataclass(frozen=True)
class Prices:
    """Currency per GPU-hour by type, where they are from and of when."""

    per_gpu_hour: Mapping[str, float]
    currency: str = DEFAULT_CURRENCY
    source: str = "as given"

    def __post_init__(self) -> None:
        for name, price in self.per_gpu_hour.items():
            if not price >= 0:
                raise ConfigError(f"--price {name}: a price must not be negative, not {price:g}")

    def per_hour(self, fleet: Fleet) -> float | None:
        """The fleet's price; None where a type of it has none."""
        shapes = ((pool.replica.shape, pool.count) for pool in fleet.pools)
        return self._total((shape.gpu.name, count * shape.gpus) for shape, count in shapes)

    def of_stock(self, inventory: Inventory) -> float | None:
        """The same of GPUs, whatever is on them."""
        return self._total((gpu.name, count) for gpu, count in inventory.stock)

    def _total(self, gpus: Iterable[tuple[str, int]]) -> float | None:
        total = 0.0
        for name, count in gpus:
            price = self.per_gpu_hour.get(name)
            if price is None:
                return None
            total += price * count
        return total


@dataclass(frozen=True)
class Cost:
    """What a fleet costs at some load. Per million tokens that are answered (`output`) and of
    prompts and answers (`all`); money is None without a price."""

    gpu_hours_per_million_output: float
    gpu_hours_per_million_all: float
    per_hour: float | None
    per_million_output: float | None
    per_million_all: float | None


def cost(
    fleet: Fleet, prices: Prices | None, input_tokens_s: float, output_tokens_s: float
) -> Cost | None:
    """At so many tokens per second; None where there are none."""
    if not output_tokens_s > 0:
        return None
    hours_output = fleet.gpus * _MILLION / (output_tokens_s * _HOUR_S)
    part = output_tokens_s / (output_tokens_s + input_tokens_s)
    per_hour = prices.per_hour(fleet) if prices is not None else None
    each = None if per_hour is None else per_hour / fleet.gpus
    return Cost(
        gpu_hours_per_million_output=hours_output,
        gpu_hours_per_million_all=hours_output * part,
        per_hour=per_hour,
        per_million_output=None if each is None else hours_output * each,
        per_million_all=None if each is None else hours_output * part * each,
    )


def read_prices(given: str | None) -> Prices | None:
    """The packaged list (None), none at all (`none`), `h100=2.5,l40s=0.9` (`EUR:h100=2.5` in
    another currency), or a YAML file like the packaged one.

    Raises ConfigError for what is not understood, or a negative price.
    """
    if given == "none":
        return None
    if given is None:
        text = (resources.files(__package__) / _PACKAGED).read_text(encoding="utf-8")
        return _parsed(_PACKAGED, yaml.safe_load(text))
    if given.endswith((".yaml", ".yml")):
        try:
            content = yaml.safe_load(Path(given).read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(f"--price: cannot read {given}: {error.strerror}") from error
        except (yaml.YAMLError, ValueError, RecursionError) as error:  # also: no such date
            raise ConfigError(f"--price {given}: {str(error).splitlines()[0]}") from error
        return _parsed(given, content)
    return _listed(given)


def _listed(text: str) -> Prices:
    currency, colon, rest = text.partition(":")
    if not colon:
        currency, rest = DEFAULT_CURRENCY, text
    prices: dict[str, float] = {}
    for part in rest.split(","):
        name, equals, price = part.partition("=")
        if not equals or not name.strip():
            raise ConfigError(f"--price {part.strip()}: write TYPE=PRICE,…, a .yaml file, or none")
        prices[name.strip()] = _price(name.strip(), price)
    return Prices(prices, currency.strip())


def _parsed(name: str, content: object) -> Prices:
    if not isinstance(content, Mapping) or not isinstance(content.get("per_gpu_hour"), Mapping):
        raise ConfigError(f"--price {name}: it has no per_gpu_hour with prices by GPU type")
    unknown = sorted(str(key) for key in content if key not in _FIELDS)
    if unknown:
        raise ConfigError(f"--price {name}: unknown field {', '.join(unknown)}")
    prices = {str(gpu): _price(str(gpu), price) for gpu, price in content["per_gpu_hour"].items()}
    parts = [str(content[key]) for key in ("source", "date") if content.get(key)]
    return Prices(
        prices, str(content.get("currency", DEFAULT_CURRENCY)), ", ".join(parts) or "as given"
    )


_FIELDS = ("currency", "source", "date", "per_gpu_hour")


def _price(gpu: str, value: Any) -> float:
    try:
        price = float(value)
    except (TypeError, ValueError, OverflowError):
        raise ConfigError(f"--price {gpu}: {value} is no number") from None
    if not price <= MOST_PRICE:
        raise ConfigError(f"--price {gpu}: {value} is no price")
    return price
