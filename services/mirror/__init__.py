"""Replication of op logs between IDCs: ``serve`` (the source's side), ``follow`` (the copy's)."""
