"""The operator: brings what IDC and Witness objects say to a cluster, and keeps it so."""
