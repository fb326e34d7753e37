"""The outside world: Kafka, PostgreSQL, exchanges, embedded servers, settings and logs."""
