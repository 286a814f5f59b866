"""`python -m dipsim`"""

from dipsim.cli.main import main

main()
