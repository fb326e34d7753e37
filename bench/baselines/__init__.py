"""What the orchestrator is measured against: the plain way to write the same thing, and the floor that Kafka's transactions set."""
