"""The Log on Apache Kafka (docs/engines.md)."""
