"""The failure of a test that no slow machine can be blamed for."""


class PromiseBroken(AssertionError):
    """A message was lost, doubled, reordered or altered."""
