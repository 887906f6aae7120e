"""The rows of the metric catalogue, by subject; `telemetry.catalog` joins them."""
