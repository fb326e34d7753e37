"""The steps: one batch of records of one input partition, decided, stored and published exactly once."""
