"""The third voter where there are two IDCs: a registry, probes and a vote; no traffic."""
