"""Drills: Chaos Toolkit experiments, run on a deployment and judged (docs/drills.md)."""
