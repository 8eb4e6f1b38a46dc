"""One target under Atheris: ``python -m fuzz.engine TARGET [libFuzzer's flags and folders]``.

Started by ``fuzz.__main__``; libFuzzer ends the process by itself.
"""

from __future__ import annotations

import logging
import sys

import atheris

from fuzz.target import load

INSTRUMENTED = ["imcore", "services", "yaml", "fuzz.targets"]  # the last: a check that branches


def main() -> None:
    name, flags = sys.argv[1], sys.argv[2:]
    with atheris.instrument_imports(include=INSTRUMENTED):
        target = load(name)
    logging.disable(logging.INFO)
    mutate = target.mutate
    if mutate is None:
        atheris.Setup([name, *flags], target.run)
    else:

        def mutated(data: bytes, bytes_max: int, seed: int) -> bytes:
            # Every fourth time bytes are changed blindly: what no well-formed input reaches.
            if seed % 4 == 0:
                blind: bytes = atheris.Mutate(data, bytes_max)
                return blind
            return mutate(data, seed, bytes_max)

        atheris.Setup([name, *flags], target.run, custom_mutator=mutated)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
