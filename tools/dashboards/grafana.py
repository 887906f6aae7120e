"""Grafana's dashboard JSON out of our tables.

Knows: Grafana's dashboard schema (version 42, the classic one that file provisioning and import
take). Does not know: metrics. Source: https://grafana.com/docs/grafana/latest/dashboards/build-dashboards/view-dashboard-json-model/
"""

from __future__ import annotations

from typing import Any

from tools.dashboards.layout import Box, place
from tools.dashboards.panels import Dashboard, Panel, Query, Section

SCHEMA_VERSION = 42
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}
_NOTHING = "–"
# What a quantile of no observations is.
_NAN_IS_NOTHING = {
    "type": "special",
    "options": {"match": "nan", "result": {"text": _NOTHING, "color": "text", "index": 0}},
}
_UNITS = {"tokens": "suffix: tokens"}


def render(dashboard: Dashboard) -> dict[str, Any]:
    """The dashboard as Grafana imports it."""
    return {
        "uid": dashboard.uid,
        "title": f"gpt-oss-server / {dashboard.title}",
        "description": dashboard.description,
        "tags": ["gpt-oss-server"],
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "id": None,
        "editable": True,
        "fiscalYearStartMonth": 0,
        "graphTooltip": 1,
        "preload": False,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "timepicker": {},
        "timezone": "browser",
        "weekStart": "",
        "annotations": {"list": [_alert_marks()]},
        "links": [_siblings()],
        "templating": {"list": _variables()},
        "panels": [
            _row(number, what, box) if isinstance(what, Section) else _panel(number, what, box)
            for number, (what, box) in enumerate(place(dashboard), start=1)
        ],
    }


def _alert_marks() -> dict[str, Any]:
    """Firing alerts as marks on every graph."""
    return {
        "name": "Alerts",
        "datasource": DATASOURCE,
        "enable": True,
        "hide": False,
        "iconColor": "red",
        "expr": 'ALERTS{alertname=~"GptOss.+", alertstate="firing"}',
        "titleFormat": "{{alertname}}",
        "textFormat": "{{slo}} {{route}} {{gpu}} {{instance}}",
        "step": "60s",
        "useValueForTime": False,
    }


def _siblings() -> dict[str, Any]:
    return {
        "type": "dashboards",
        "title": "gpt-oss-server",
        "tags": ["gpt-oss-server"],
        "asDropdown": False,
        "includeVars": True,
        "keepTime": True,
        "targetBlank": False,
        "icon": "external link",
        "tooltip": "",
        "url": "",
    }


def _variables() -> list[dict[str, Any]]:
    """The data source; the model, which narrows the instances; the instances."""
    return [
        {
            "name": "datasource",
            "label": "Data source",
            "type": "datasource",
            "query": "prometheus",
            "regex": "",
            "current": {},
            "hide": 0,
            "includeAll": False,
            "multi": False,
            "options": [],
            "refresh": 1,
            "skipUrlSync": False,
        },
        _choice("model", "Model", "label_values(gpt_oss_build_info, model_id)"),
        _choice(
            "instance",
            "Instance",
            'label_values(gpt_oss_build_info{model_id=~"$model"}, instance)',
        ),
    ]


def _choice(name: str, label: str, query: str) -> dict[str, Any]:
    return {
        "name": name,
        "label": label,
        "type": "query",
        "datasource": DATASOURCE,
        "definition": query,
        "query": {"query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery"},
        "current": {"text": "All", "value": "$__all"},
        "hide": 0,
        "includeAll": True,
        "multi": True,
        "options": [],
        "refresh": 2,
        "regex": "",
        "skipUrlSync": False,
        "sort": 1,
    }


def _row(number: int, section: Section, box: Box) -> dict[str, Any]:
    return {
        "id": number,
        "type": "row",
        "title": section.title,
        "collapsed": False,
        "gridPos": _grid(box),
        "panels": [],
    }


def _panel(number: int, panel: Panel, box: Box) -> dict[str, Any]:
    build = {"stat": _stat, "buckets": _heatmap, "rows": _heatmap}.get(panel.kind, _timeseries)
    return {
        "id": number,
        "title": panel.title,
        "description": panel.description,
        "datasource": DATASOURCE,
        "gridPos": _grid(box),
        "targets": [_target(panel, n, query) for n, query in enumerate(panel.queries)],
        **build(panel),
    }


def _grid(box: Box) -> dict[str, int]:
    return {"x": box.x, "y": box.y, "w": box.w, "h": box.h}


def _target(panel: Panel, number: int, query: Query) -> dict[str, Any]:
    return {
        "refId": chr(ord("A") + number),
        "datasource": DATASOURCE,
        "editorMode": "code",
        "expr": query.expr,
        "legendFormat": query.legend or "__auto",
        # A row per series needs series; `heatmap` would look for buckets.
        "format": "heatmap" if panel.kind == "buckets" else "time_series",
        "instant": panel.kind == "stat",
        "range": panel.kind != "stat",
        "exemplar": panel.kind == "buckets",
    }


def _defaults(panel: Panel, **more: Any) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": panel.below, "value": None}]
    steps += [{"color": color, "value": value} for value, color in panel.thresholds]
    defaults: dict[str, Any] = {
        "unit": _UNITS.get(panel.unit, panel.unit),
        "min": 0,
        "thresholds": {"mode": "absolute", "steps": steps},
        "mappings": [],
        **more,
    }
    if panel.top is not None:
        defaults["max"] = panel.top
    if panel.decimals is not None:
        defaults["decimals"] = panel.decimals
    return defaults


def _stat(panel: Panel) -> dict[str, Any]:
    return {
        "type": "stat",
        "fieldConfig": {
            "defaults": _defaults(
                panel, color={"mode": "thresholds"}, noValue=_NOTHING, mappings=[_NAN_IS_NOTHING]
            ),
            "overrides": [],
        },
        "options": {
            "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
            "colorMode": "value",
            "graphMode": "none",
            "justifyMode": "auto",
            "orientation": "auto",
            "textMode": "auto" if len(panel.queries) == 1 else "value_and_name",
            "wideLayout": True,
            "showPercentChange": False,
            "percentChangeColorMode": "standard",
        },
    }


def _timeseries(panel: Panel) -> dict[str, Any]:
    stacked = panel.kind == "stacked"
    custom = {
        "drawStyle": "line",
        "lineInterpolation": "linear",
        "lineWidth": 1,
        "fillOpacity": 40 if stacked else 8,
        "gradientMode": "none",
        "showPoints": "never",
        "pointSize": 5,
        "spanNulls": False,
        "insertNulls": False,
        "stacking": {"group": "A", "mode": "normal" if stacked else "none"},
        "scaleDistribution": {"type": "log", "log": 10} if panel.log else {"type": "linear"},
        "axisPlacement": "auto",
        "axisLabel": "",
        "axisColorMode": "text",
        "axisBorderShow": False,
        "axisCenteredZero": False,
        "hideFrom": {"legend": False, "tooltip": False, "viz": False},
        "thresholdsStyle": {"mode": "dashed" if panel.thresholds else "off"},
    }
    defaults = _defaults(panel, custom=custom, color={"mode": "palette-classic"})
    if panel.log:
        del defaults["min"]
    return {
        "type": "timeseries",
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": {
            "legend": {
                "displayMode": "list",
                "placement": "bottom",
                "showLegend": True,
                "calcs": [],
            },
            "tooltip": {"mode": "multi", "sort": "desc", "hideZeros": False},
        },
    }


def _heatmap(panel: Panel) -> dict[str, Any]:
    """Of a histogram the axis has the unit, and a cell is a count; of series it is the reverse."""
    of_buckets = panel.kind == "buckets"
    color: dict[str, Any] = {
        "mode": "scheme",
        "scheme": "Turbo" if not of_buckets else "Oranges",
        "scale": "exponential",
        "exponent": 0.5 if of_buckets else 1,
        "fill": "dark-orange",
        "steps": 64,
        "reverse": False,
    }
    if not of_buckets:
        color["min"] = 0
        if panel.top is not None:
            color["max"] = panel.top
    return {
        "type": "heatmap",
        "fieldConfig": {
            "defaults": {
                "custom": {
                    "hideFrom": {"legend": False, "tooltip": False, "viz": False},
                    "scaleDistribution": {"type": "linear"},
                }
            },
            "overrides": [],
        },
        "options": {
            "calculate": False,
            "cellGap": 1,
            "cellValues": {"unit": "short" if of_buckets else _UNITS.get(panel.unit, panel.unit)},
            "color": color,
            "exemplars": {"color": "rgba(255,0,255,0.7)"},
            "filterValues": {"le": 1e-9} if of_buckets else {},
            "legend": {"show": True},
            "rowsFrame": {"layout": "auto"},
            "showValue": "never",
            "tooltip": {"mode": "single", "showColorScale": True, "yHistogram": of_buckets},
            "yAxis": {
                "axisPlacement": "left",
                "reverse": False,
                "unit": panel.unit if of_buckets and panel.unit not in _UNITS else "short",
            },
        },
    }
