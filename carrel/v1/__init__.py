"""Stubs generated from protos/carrel/v1 by `make protos`. Nothing here is written by hand."""
