"""The IM services: cores without I/O beside the thin asyncio shells that drive them."""
