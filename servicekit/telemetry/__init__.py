"""Traces and metrics of a service: what is measured, how it is read, where it goes. Loads no library until told to."""
