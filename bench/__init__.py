"""The benchmark: strop beside other proxies, in paired rounds on pinned cores.

Run from the repository's root as `python -m bench`. Is no part of the installed package, and no
test asserts a time.
"""
