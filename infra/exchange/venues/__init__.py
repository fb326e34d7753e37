"""The venues: one module each, and their registry."""
