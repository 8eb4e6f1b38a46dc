"""Where clients connect: geo shards, the ranking of IDCs and gateways, and the HTTPS API."""
