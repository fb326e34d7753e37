"""Verification: what the system promised, compared with what topics, database and the exchange's own books say. Pure comparisons.

Nothing here asks a worker: the evidence is read afterwards by verification/evidence and handed in. Each promise is one named `Finding`.

Start with `finding`, then `answers` (requests and results), `dead_letters`, `books` (the exchange), `accounts` (the ledger), `trail` (the
audit trail and the state), `progress` (offsets and what is unfinished); `promises` puts them together.
"""
