"""Grafana dashboards of the server, written as tables and generated as JSON.

`python -m tools.dashboards` writes `deploy/grafana/`; `--check` only says what is out of date.
`python -m tools.dashboards.preview` draws `docs/images/` from a real run.
"""
