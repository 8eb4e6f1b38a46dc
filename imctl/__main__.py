"""``python -m imctl``."""

from imctl.main import main

main()
