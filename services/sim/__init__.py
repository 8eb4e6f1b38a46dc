"""The deterministic simulation: roles and SDK unchanged, the world around them simulated."""
