"""Kafka: topics, the Faust transport that hands out micro-batches, and the one Kafka transaction of a step."""
