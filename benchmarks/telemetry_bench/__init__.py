"""What telemetry costs: see `benchmarks/telemetry_cost.py`."""
