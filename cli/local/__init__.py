"""Running here: `up`, `demo` and what they start."""
