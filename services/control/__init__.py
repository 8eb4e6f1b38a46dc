"""Who moves traffic: commits among the registries (CASPaxos), the geo policy and the one evaluator
of its changes, failure detection, the controller of each IDC and the mover of its sessions."""
