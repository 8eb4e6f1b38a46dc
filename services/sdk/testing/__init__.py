"""Test doubles for users of the SDK: a small region that speaks the real protocol."""
