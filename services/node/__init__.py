"""One IDC's process: the composition root. It picks adapters from the region file, starts the roles
in order (registry, identity, logs, im, state, gateways, ipconf, controller) and stops them in the
reverse order. No other module knows which adapter is behind a port."""
