"""The tree is an order: a module imports only modules above it, and what is heavy only where it is needed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Every module of the tree, each above those that may import it.
ORDER = [
    "sut",
    "sut.errors",
    "sut.query",
    "sut.guard",
    "sut.backend",
    "sut.dispatch",
    "sut.health",
    "sut.backends",
    "sut.backends.echo",
    "sut.backends.vllm_engine",
    "sut.backends.ray_host",
    "sut.backends.ray_cluster",
    "sut.backends.ray_engine",
    "sut.backends.http",
    "sut.backends.dialects",
    "sut.backends.probe",
    "sut.backends.serve",
    "sut.backends.remote",
    "sut.work",
    "sut.sut",
    "harness",
    "harness.demo",
    "harness.benchmarks",
    "harness.conf",
    "harness.audits",
    "harness.config",
    "harness.unpickle",
    "harness.tables",
    "harness.dataset",
    "harness.openorca",
    "harness.histogram",
    "harness.profile",
    "harness.environment",
    "harness.recorder",
    "harness.results",
    "harness.exposition",
    "harness.devices",
    "harness.scraper",
    "harness.sensors",
    "harness.telemetry",
    "harness.journal",
    "harness.early_stopping",
    "harness.schedule",
    "harness.tally",
    "harness.loadgen",
    "harness.answers",
    "harness.rouge",
    "harness.accuracy",
    "harness.folder",
    "harness.compliance",
    "harness.drift",
    "harness.progress",
    "harness.preparation",
    "harness.signals",
    "harness.run",
    "harness.report",
    "harness.parts",
    "harness.tracking",
    "harness.checkup",
    "harness.doctor",
    "harness.figures",
    "harness.studies",
    "harness.studies.findings",
    "harness.studies.study",
    "harness.studies.rig",
    "harness.studies.replay",
    "harness.studies.search",
    "harness.studies.peak",
    "harness.studies.edge",
    "harness.studies.context",
    "harness.studies.makers",
    "harness.studies.looks",
    "harness.studies.readiness",
    "harness.studies.readiness_findings",
    "harness.studies.sweep",
    "harness.studies.change",
    "harness.studies.variants",
    "harness.studies.spread",
    "harness.studies.front",
    "harness.studies.layouts",
    "harness.studies.fleet_findings",
    "harness.studies.member",
    "harness.studies.fleet",
    "harness.studies.blocks",
    "harness.studies.gate",
    "harness.studies.unlike",
    "harness.studies.releases",
    "harness.studies.comparison",
    "harness.studies.forest",
    "harness.studies.compare",
    "harness.page",
    "harness.page.source",
    "harness.page.charts",
    "harness.page.gauges",
    "harness.page.listing",
    "harness.page.pieces",
    "harness.page.texts",
    "harness.page.view",
    "harness.page.document",
    "harness.page.plates",
    "harness.submission",
    "harness.submission.tree",
    "harness.submission.fields",
    "harness.submission.problem",
    "harness.submission.contents",
    "harness.submission.logs",
    "harness.submission.claim",
    "harness.submission.layout",
    "harness.submission.description",
    "harness.submission.form",
    "harness.submission.figures",
    "harness.submission.performance",
    "harness.submission.user_conf",
    "harness.submission.scores",
    "harness.submission.audits",
    "harness.submission.provenance",
    "harness.submission.check",
    "harness.submission.runs",
    "harness.submission.verdicts",
    "harness.submission.refusals",
    "harness.submission.system",
    "harness.submission.documents",
    "harness.submission.pack",
    "harness.cli.pack",
    "harness.cli.submission",
    "harness.cli.run",
    "harness.cli.track",
    "harness.cli.doctor",
    "harness.cli.study",
    "harness.cli.peak",
    "harness.cli.context",
    "harness.cli.variants",
    "harness.cli.layouts",
    "harness.cli.fleet",
    "harness.cli.readiness",
    "harness.cli.sweep",
    "harness.cli.compliance",
    "harness.cli.compare",
    "harness.cli.accuracy",
    "harness.cli.dataset",
    "harness.cli.report",
    "harness.cli",
    "harness.__main__",
]

HEAVY = {"vllm", "ray", "torch", "transformers"}


def path_of(module: str) -> Path:
    path = ROOT.joinpath(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def walk(node: ast.AST, at_top: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        top = at_top and not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield child, top
        yield from walk(child, top)


def imports(module: str) -> Iterator[tuple[str, bool]]:
    """(imported module, whether at the module's level); a name out of a package is the module of that name, if any."""
    for node, at_top in walk(ast.parse(path_of(module).read_text()), True):
        if isinstance(node, ast.Import):
            yield from ((alias.name, at_top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield (whole if whole in ORDER else node.module), at_top


def test_every_module_has_its_place_in_the_order() -> None:
    found = {name_of(path) for top in ("sut", "harness") for path in (ROOT / top).rglob("*.py")}
    assert sorted(found) == sorted(ORDER)


@pytest.mark.parametrize("module", ORDER)
def test_a_module_imports_only_modules_above_it(module: str) -> None:
    above = set(ORDER[: ORDER.index(module)])
    # A package's factory names its members, and imports them only when asked for one.
    lazily_named = {name for name in ORDER if name.startswith(f"{module}.")} if module == "sut.backends" else set()
    for imported, at_top in imports(module):
        if imported.split(".")[0] in ("sut", "harness"):
            allowed = above if at_top else above | lazily_named
            assert imported in allowed, f"{module} imports {imported}, which stands below it"


@pytest.mark.parametrize("module", [name for name in ORDER if name.split(".")[0] == "sut"])
def test_the_system_under_test_knows_no_harness(module: str) -> None:
    assert "harness" not in {imported.split(".")[0] for imported, _ in imports(module)}


def test_one_module_alone_imports_loadgen() -> None:
    importers = [m for m in ORDER if "mlperf_loadgen" in {imported.split(".")[0] for imported, _ in imports(m)}]
    assert importers == ["harness.loadgen"]


@pytest.mark.parametrize("module", ORDER)
def test_engines_and_tokenizers_are_imported_lazily(module: str) -> None:
    assert not HEAVY & {imported.split(".")[0] for imported, at_top in imports(module) if at_top}


def read_tree(text: str) -> list[str]:
    """The modules that the README's tree names, in its order."""
    modules, path = [], [""]
    for line in text[text.index("\nsut/ ") :].split("```")[0].strip().splitlines():
        depth = (len(line) - len(line.lstrip())) // 2
        for name in line.strip().split("  ")[0].split(", "):
            path[depth:] = [name.removesuffix("/").removesuffix(".py")]
            modules.append(".".join(path))
    return modules


def test_the_tree_in_the_readme_names_every_module_once_in_this_order() -> None:
    named = [name for name in read_tree((ROOT / "README.md").read_text()) if name.split(".")[0] in ("sut", "harness")]
    # `cli` itself imports its commands, and stands above them there.
    assert named.index("harness.cli") < named.index("harness.cli.pack")
    assert [name for name in named if name != "harness.cli"] == [name for name in ORDER if name != "harness.cli"]
