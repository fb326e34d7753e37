"""PostgreSQL: the schema, and the one database transaction of a step. Start with `step`."""
