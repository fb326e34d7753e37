"""What looks and asks in its own time: exchanges for what is open, the database for what is due."""
