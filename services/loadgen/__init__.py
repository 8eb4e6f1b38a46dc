"""Open-loop load from many SDK clients in one process, with a history of what they were shown."""
