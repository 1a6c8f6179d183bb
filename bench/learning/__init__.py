"""What ratings teach: a small model learns from simulated people, beside other learners.

Run from the repository's root as `python -m bench.learning`; `docs/learning-results.md` is made of
its results. Is no part of the installed package.
"""
