"""The manifests in scripts/deploy: valid by the published Kubernetes schemas, and their commands by our own and vLLM's.

KServe publishes its schema in a package that asks for other versions of ours, so what KServe adds to a pod is listed
here; with KSERVE_CRD=…/serving.kserve.io_inferenceservices.yaml the whole InferenceService is checked against that.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from harness.cli.run import run

ROOT = Path(__file__).parent.parent
DEPLOY = ROOT / "scripts" / "deploy"

# Fields that KServe's predictor has beside those of a pod (kserve/kserve, pkg/apis/serving/v1beta1/component.go).
PREDICTOR = {"minReplicas", "maxReplicas", "timeout", "containerConcurrency", "labels", "annotations", "scaleMetric"}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def refuse_invalid(document: dict[str, Any]) -> None:
    version = kubernetes_validate.latest_version()
    kubernetes_validate.validate(document, version, strict=True)


def service() -> dict[str, Any]:
    (document,) = documents("inferenceservice.yaml")
    return document


def pod(predictor: dict[str, Any]) -> dict[str, Any]:
    spec = {key: value for key, value in predictor.items() if key not in PREDICTOR}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "replica"}, "spec": spec}


@pytest.mark.parametrize("name", ["claims.yaml", "client-job.yaml"])
def test_manifests_are_valid(name: str) -> None:
    for document in documents(name):
        refuse_invalid(document)


def test_the_predictor_is_a_valid_pod_but_for_what_kserve_adds() -> None:
    document = service()
    assert (document["apiVersion"], document["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    assert document["spec"].keys() == {"predictor"}
    refuse_invalid(pod(document["spec"]["predictor"]))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda predictor: predictor["containers"][0].update(imag="x"),
        lambda predictor: predictor["containers"][0]["resources"].update(limit={}),
        lambda predictor: predictor.update(maxReplica=2),
    ],
    ids=["a misspelt image", "a misspelt limit", "a field that neither a pod nor KServe has"],
)
def test_a_misspelt_field_is_found(spoil: Any) -> None:
    predictor = service()["spec"]["predictor"]
    spoil(predictor)
    with pytest.raises(kubernetes_validate.ValidationError):
        refuse_invalid(pod(predictor))


@pytest.mark.skipif("KSERVE_CRD" not in os.environ, reason="KSERVE_CRD names no file with KServe's own schema")
def test_the_inference_service_is_valid_by_kserves_own_schema() -> None:
    import jsonschema

    definition = yaml.safe_load(Path(os.environ["KSERVE_CRD"]).read_text())
    (schema,) = [v["schema"]["openAPIV3Schema"] for v in definition["spec"]["versions"] if v["name"] == "v1beta1"]
    jsonschema.validate(service(), closed(schema))


def closed(schema: Any) -> Any:
    """A structural schema that takes no unknown fields, as the API server prunes them without a word."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    inner = {key: closed(value) for key, value in schema.items()}
    if (
        isinstance(inner.get("properties"), dict)
        and inner.get("type") == "object"
        and "additionalProperties" not in inner
    ):
        known = "x-kubernetes-preserve-unknown-fields" in inner or not inner["properties"]
        inner["additionalProperties"] = known
    return inner


def test_the_client_and_the_service_agree() -> None:
    (job,) = documents("client-job.yaml")
    words = job["spec"]["template"]["spec"]["containers"][0]["args"]
    with run.make_context("run", words[1:]) as context:
        options = context.params
    container = service()["spec"]["predictor"]["containers"][0]
    said = dict(word.removeprefix("--").partition("=")[::2] for word in container["args"])
    assert options["served_model"] == said["served-model-name"]
    assert options["model"] == said["model"]
    # KServe's Service listens on port 80 and leads to the container's first port.
    assert options["endpoint"][0] == f"http://{service()['metadata']['name']}-predictor"
    assert container["ports"][0]["containerPort"] == int(said["port"])
    assert "no-enable-prefix-caching" in said and said["generation-config"] == "vllm"
    gpus = int(container["resources"]["limits"]["nvidia.com/gpu"])
    assert int(said["tensor-parallel-size"]) == gpus


def test_the_client_is_never_run_twice() -> None:
    (job,) = documents("client-job.yaml")
    assert job["spec"]["backoffLimit"] == 0
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"


@pytest.mark.engine
def test_vllm_knows_every_argument_of_the_service() -> None:
    container = service()["spec"]["predictor"]["containers"][0]
    program = "import sys; from sut.backends.serve import _refuse_unreadable; _refuse_unreadable(sys.argv[1:])"
    words = [sys.executable, "-c", program, *container["command"], *container["args"]]
    process = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert process.returncode == 0, process.stderr


def test_the_image_copies_what_the_install_needs() -> None:
    lines = (DEPLOY / "Containerfile").read_text().splitlines()
    copied = {word for line in lines if line.startswith("COPY") for word in shlex.split(line)[1:-1]}
    assert all((ROOT / name).exists() for name in copied)
    setup = (ROOT / "setup.cfg").read_text()
    needed = set(re.findall(r"file: (\S+)", setup)) | {"setup.py", "setup.cfg", "sut", "harness", "LICENSE"}
    needed |= {"user.conf", "mlperf.conf"}  # data_files
    assert needed <= copied
