"""The dashboards, a file each. Only here and in `deploy/prometheus/` are metrics queried."""

from __future__ import annotations

from tools.dashboards.boards.admission import ADMISSION
from tools.dashboards.boards.engine import ENGINE
from tools.dashboards.boards.overview import OVERVIEW
from tools.dashboards.boards.requests import REQUESTS
from tools.dashboards.boards.routing import ROUTING
from tools.dashboards.panels import Dashboard

DASHBOARDS: tuple[Dashboard, ...] = (OVERVIEW, ROUTING, REQUESTS, ENGINE, ADMISSION)
