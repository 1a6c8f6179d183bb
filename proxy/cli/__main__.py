"""`python -m strop.proxy.cli`: the `strop` command."""

from strop.proxy.cli.root import main

main()
