"""Measurements of the running product, printed as a table and written as JSON. Not tests: nothing here passes or fails.

make bench CASES="events first_event" OUT=figures.json
"""
