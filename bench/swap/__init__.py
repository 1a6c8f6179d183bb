"""The benchmark of the swap: strop on its embedded engine beside a stock mlx_lm.server.

Run from the repository's root as `python -m bench.swap`. Is no part of the installed package, and
no test asserts a time.
"""
