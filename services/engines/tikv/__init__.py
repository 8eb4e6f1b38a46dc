"""The Kv on TiKV (docs/engines.md)."""
