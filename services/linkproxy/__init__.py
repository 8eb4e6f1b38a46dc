"""Emulates the WAN links between the IDCs of the local target, and their faults."""
