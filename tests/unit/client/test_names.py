"""What `carrel.client` gives: each thing under one name, and each name there is."""

from __future__ import annotations

from collections import Counter

import carrel.client


def test_every_name_can_be_had_and_names_something_of_its_own() -> None:
    things = Counter(id(getattr(carrel.client, name)) for name in carrel.client.__all__)
    assert len(things) == len(carrel.client.__all__)
    assert not hasattr(carrel.client, "CarrelClient")
