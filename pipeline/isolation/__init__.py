"""Setting aside what cannot be decided."""
