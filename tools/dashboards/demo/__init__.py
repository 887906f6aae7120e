"""A real server under load on a machine without GPUs, with recorded GPU readings."""
