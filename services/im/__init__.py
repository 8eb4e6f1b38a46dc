"""The business role: sequencing, folding, reading.

The cores (``sequencer``, ``fold``, ``reader``, ``replication``, ``incarnation``) do no I/O and read
no clock; ``applier``, ``partition`` and ``server`` are the thin shells that drive them.
"""
