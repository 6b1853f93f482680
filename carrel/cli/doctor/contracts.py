"""``carrel doctor --contracts``: each layer's contract from the code, and how the deployment keeps it where it tells.

docs/contracts.md is made from ``described`` by tools/contracts.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from google.protobuf.json_format import MessageToDict

from carrel.cli.doctor.access import Access, find_access
from carrel.cli.doctor.http import User
from carrel.cli.doctor.report import SkipCheck
from carrel.cli.doctor.services import SERVICES, Services
from carrel.cli.doctor.settings import DoctorSettings
from carrel.cli.output import EXIT_OK, EXIT_USAGE, Printer
from carrel.errors import CarrelError
from servicekit.layers import LAYER_NAMES, layer_contract
from servicekit.settings import load_settings

if TYPE_CHECKING:
    from carrel.cli.doctor.command import Wishes

__all__ = ["described", "kept", "show_contracts"]

_EMPTY = ("measured", "exceeded", "p50_ms", "p95_ms")


def described() -> list[dict[str, Any]]:
    """Every layer's contract as this release has it, in the order of the chain."""
    told = (layer_contract(name).to_dict() for name in LAYER_NAMES)
    return [{key: value for key, value in one.items() if key not in _EMPTY} for one in told]


async def kept(access: Access) -> tuple[dict[str, list[dict[str, Any]]], dict[str, str]]:
    """What each process tells of its layer, by the layer's name; and, by service, why it cannot be read."""
    found: dict[str, list[dict[str, Any]]] = {}
    skipped: dict[str, str] = {}
    async with Services(access.addresses, access.operator, access.credentials) as services:
        for service in SERVICES:
            try:
                counts = await services.statistics(service)
            except SkipCheck as reason:
                skipped[service] = str(reason)
                continue
            for address, one in zip(services.addresses[service], counts, strict=True):
                contract = MessageToDict(one.contract, preserving_proto_field_name=True)
                found.setdefault(str(contract.get("name", service)), []).append({"at": address, **_numbers(contract)})
    async with User("operator", access.operator_headers, access.urls, "") as operator:
        for url in access.urls:
            answer = await operator.get("/api/operator/gateway")
            if answer.status != 200:
                skipped["gateway"] = str(answer)
                continue
            found.setdefault("gateway", []).append({"at": url, **_numbers(answer.json.get("contract", {}))})
    return found, skipped


async def show_contracts(wishes: Wishes) -> int:
    """Print them; 0, or 2 when a deployment was named that cannot be asked."""
    printer = Printer()
    found: dict[str, list[dict[str, Any]]] = {}
    skipped = {"deployment": "no gateway is known: give --url, or --state of a stack that runs"}
    try:
        access = find_access(load_settings(DoctorSettings, "doctor"), wishes.url, wishes.token_files, wishes.state)
        found, skipped = await kept(access)
    except CarrelError as error:
        if wishes.url:
            printer.error(error)
            return EXIT_USAGE
    layers = [{**layer, "processes": found.get(layer["name"], [])} for layer in described()]
    if wishes.as_json:
        printer.say(json.dumps({"schema": "carrel.contracts/1", "layers": layers, "not_asked": skipped}))
        return EXIT_OK
    for layer in layers:
        for line in _lines(layer):
            printer.say(line)
    for service, reason in skipped.items():
        printer.say(f"{service} was not asked: {reason}")
    return EXIT_OK


def _lines(layer: Mapping[str, Any]) -> Iterator[str]:
    yield layer["name"]
    for title, key in (("needs", "input_requirements"), ("gives", "output_guarantees")):
        yield from (f"  {title:<7}{text}" for text in layer[key])
    yield f"  raises {', '.join(layer['error_conditions'])}"
    for operation, bound in layer["performance_bounds_ms"].items():
        yield f"  bound  {operation} in {bound:g} ms"
        for process in layer["processes"]:
            yield f"         {process['at']}: {_measured(process, operation)}"
    yield ""


def _measured(process: Mapping[str, Any], operation: str) -> str:
    count = process["measured"].get(operation, 0)
    if not count:
        return "not measured yet"
    p50, p95 = process["p50_ms"].get(operation, 0.0), process["p95_ms"].get(operation, 0.0)
    late = process["exceeded"].get(operation, 0)
    return f"{count} times, {late} over the bound; median {p50:.2f} ms, p95 {p95:.2f} ms"


def _numbers(contract: Mapping[str, Any]) -> dict[str, Any]:
    numbers: dict[str, Any] = {"version": contract.get("version", "")}
    for key in _EMPTY:
        kind = int if key in {"measured", "exceeded"} else float
        numbers[key] = {name: kind(value) for name, value in contract.get(key, {}).items()}
    return numbers
