"""`python -m dipsim`"""

from dipsim.cli import main

main()
