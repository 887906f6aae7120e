"""What is measured and how it is told: probes, metrics, traces, logs.

Only this room names a metric. The rest of the server emits facts.
"""
