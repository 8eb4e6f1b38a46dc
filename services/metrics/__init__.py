"""What is measured on the way of requests, without I/O or clocks, and the list of all metrics."""
