"""Traces of sampled messages, from the sender's SDK to the receivers' (docs/metrics.md)."""
