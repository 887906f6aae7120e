"""Pictures of what the dashboards show of a real run."""
