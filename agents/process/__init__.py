"""The worker process: composition, start, end, and what watches over it."""
