"""The Registry on etcd (docs/engines.md)."""
