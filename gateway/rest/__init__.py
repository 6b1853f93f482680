"""REST: every route in one table (``routes``), handlers by what they are about, errors in one place (``http``)."""
