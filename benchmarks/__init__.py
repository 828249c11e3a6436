"""Benchmarks: programs that measure, the results they gave, and the page of the docs made from those.

``python -m benchmarks`` lists them with what each needs.
"""
