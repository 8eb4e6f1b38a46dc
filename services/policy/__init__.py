"""What roles share that steer traffic or follow it: the policy document, the copy of it that a
process holds, where it places a client, and a reader of all registries. It knows no role."""
