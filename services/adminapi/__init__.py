"""What the operator's own servers do on behalf of the product: the admin API over HTTPS."""
