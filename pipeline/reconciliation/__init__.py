"""The ledger against what exchanges say that accounts hold."""
