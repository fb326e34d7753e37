"""Wiring: when things happen. Start with `app` (the only composition root), then `batch` (the exactly-once step), then `intake`."""
