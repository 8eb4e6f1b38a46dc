"""``python -m imctl``."""

from imctl.entry import main

main()
