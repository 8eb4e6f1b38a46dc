"""Adapters of the ports in services.ports that need nothing installed but packages."""
