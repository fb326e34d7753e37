"""What commands change in the database, with its audit events."""
