"""What a front (gateway and state) and the core of its IDC say to each other, each a process of
its own: both sides of one stream, behind the same ports as in one process."""
