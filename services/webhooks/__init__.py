"""What an IDC tells the operator's own servers: at least once, from its op log."""
