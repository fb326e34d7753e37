"""Evidence for verification/promises: read_committed topics, the database and the exchange's own log. Reads everything, changes nothing.

Start with `evidence`.
"""
