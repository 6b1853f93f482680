"""What operators see of a running service: traces and metrics. Off unless one setting turns it on.

``tracing`` and ``meters`` are what the rest of the code speaks to; they import nothing heavy and do nothing by default.
``setup`` makes the real ones, and is the only way to OpenTelemetry.
"""
