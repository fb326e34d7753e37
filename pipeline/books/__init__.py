"""What is written down: ledger, audit chain, and everything one batch changes."""
