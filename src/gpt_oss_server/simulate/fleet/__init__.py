"""Replicas behind one dispatcher: pools, their notation, what the dispatcher knows, the events."""
