"""One module a target; each says in its docstring what must hold for every input."""
