"""The HTTP routes for everything but completions, one module per noun: parse, call, render.

Does not relay: what is POSTed to the paths in `operations.RELAYED` never arrives here.
"""
