"""How a command reaches an installation, and in whose name."""
