"""One simulated replica: admission, queue, scheduler, blocks."""
