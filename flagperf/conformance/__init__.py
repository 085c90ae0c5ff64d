"""The conformance kit: what an adapter has to do, as checks that pytest runs.

`flagperf vendor check NAME`, or `pytest -p flagperf.conformance.plugin --pyargs flagperf.conformance --vendor NAME`.
"""
