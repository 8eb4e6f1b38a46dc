"""What the SDK decides, without I/O, clocks or asyncio: outbox, views, reconnects, liveness."""
