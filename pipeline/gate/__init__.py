"""The gate: every check that a trade request passes before anything is executed. Start with `ladder`, then `context`."""
