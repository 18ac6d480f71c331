"""The fields that a package's JSON files must have.

Source: SYSTEM_DESC_* and SYSTEM_IMP_REQUIRED_FILES in tools/submission/submission_checker/constants.py of
mlcommons/inference (round v6.1). The checker takes a required value that Python holds for false (an empty string, an
integer 0) for missing, so counts that can be zero are strings: "0".
"""

from __future__ import annotations

STATUSES = ("available", "preview", "rdi")
SYSTEM_TYPES = ("datacenter", "edge", "datacenter,edge", "edge,datacenter")

# systems/<system>.json: a value is needed ...
SYSTEM_FILLED = (
    "division",
    "submitter",
    "status",
    "system_type",
    "system_name",
    "number_of_nodes",
    "host_processor_model_name",
    "host_processors_per_node",
    "host_processor_core_count",
    "host_memory_capacity",
    "host_memory_configuration",
    "host_storage_type",
    "host_storage_capacity",
    "host_networking",
    "host_networking_topology",
    "host_network_card_count",
    "accelerators_per_node",
    "accelerator_model_name",
    "accelerator_memory_capacity",
    "accelerator_memory_configuration",
    "accelerator_host_interconnect",
    "accelerator_interconnect",
    "cooling",
    "framework",
    "operating_system",
    "other_software_stack",
)
# ... or the key alone.
SYSTEM_PRESENT = (
    "system_type_detail",
    "host_processor_frequency",
    "host_processor_caches",
    "host_processor_interconnect",
    "accelerator_frequency",
    "accelerator_interconnect_topology",
    "accelerator_on-chip_memories",
    "hw_notes",
    "sw_notes",
)
SYSTEM_FIELDS = SYSTEM_FILLED + SYSTEM_PRESENT

# systems/<system>.json of the network division; `is_network` is a string, "true", and elsewhere it is left out.
NETWORK_FLAG = "is_network"
NETWORK_FIELDS = (
    NETWORK_FLAG,
    "network_type",
    "network_media",
    "network_rate",
    "nic_loadgen",
    "number_nic_loadgen",
    "net_software_stack_loadgen",
    "network_protocol",
    "number_connections",
    "nic_sut",
    "number_nic_sut",
    "net_software_stack_sut",
    "network_topology",
)
NETWORK_SUT = "Network SUT"

# measurements.json
MEASUREMENTS = (
    "input_data_types",
    "retraining",
    "starting_weights_filename",
    "weight_data_types",
    "weight_transformations",
)
