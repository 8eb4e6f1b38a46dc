"""Coverage-guided fuzzing of whatever reads what others wrote (docs/testing.md): ``make fuzz``.

One target is one module of ``fuzz.targets``. ``fuzz.engine`` runs one of them under Atheris,
``fuzz.__main__`` all of them in turn. Inputs that were found stand in ``fuzz/corpus`` and are
tests from then on (tests/unit/test_fuzz_corpus.py), which need no fuzzer.
"""
