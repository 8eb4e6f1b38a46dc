"""A chat page for a browser, and what serves it on this machine (``imctl web``)."""
