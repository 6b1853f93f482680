"""A layer's contract as a message, for the calls with which operators read a service's counts. Nothing else."""

from __future__ import annotations

from carrel import __version__
from carrel.v1 import contracts_pb2
from servicekit.contracts import FactoryLayerContract

__all__ = ["contract_to_proto"]


def contract_to_proto(contract: FactoryLayerContract) -> contracts_pb2.LayerContract:
    """What it says, and how its bounds were kept."""
    told = contract.to_dict()
    return contracts_pb2.LayerContract(version=__version__, **told)
