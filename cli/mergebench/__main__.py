"""``python -m mergebench``."""

from mergebench import main

main()
