"""What came of runs: columns, promises, sweeps, intervals, text and JSON."""
