"""Between the API and an engine: decide, admit, hold the lease, record.

The pure rooms say what should happen; this room makes it happen on an event loop.
"""
