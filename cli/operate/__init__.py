"""Operating: halts, decisions, what is in doubt or set aside."""
