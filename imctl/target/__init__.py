"""Where a deployment runs: behind one interface, so that the commands do not know."""
