"""A real Kubernetes cluster on this machine, for tests: one node, in namespaces of its own."""
