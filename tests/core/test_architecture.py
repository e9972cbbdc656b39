"""Imports point one way: ingest, consumers, gateway -> clickhouse -> core, and the first three never meet."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
ALLOWED = {
    "core": {"core"},
    "clickhouse": {"clickhouse", "core"},
    "ingest": {"ingest", "clickhouse", "core"},
    "consumers": {"consumers", "clickhouse", "core"},
    "gateway": {"gateway", "clickhouse", "core"},
}
OURS = {*ALLOWED, "loadtests", "tests"}


def imports(path: Path) -> set[str]:
    """First parts of all absolute imports of a module, wherever in it they stand."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"relative import in {path}"
            found.add((node.module or "").partition(".")[0])
    return found & OURS


def modules(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


@pytest.mark.parametrize("package", sorted(ALLOWED))
def test_package_imports_only_what_lies_below_it(package: str) -> None:
    composition_root = ROOT / "core" / "cli.py"  # starts the others by name
    found = {
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(package)
        if path != composition_root
        for name in imports(path) - ALLOWED[package]
    }
    assert not found


def test_command_line_imports_services_only_inside_its_commands() -> None:
    tree = ast.parse((ROOT / "core" / "cli.py").read_text())
    at_import = {
        node.module.partition(".")[0] for node in tree.body if isinstance(node, ast.ImportFrom) and node.module
    }
    assert at_import & OURS == {"core"}


def test_only_the_command_line_knows_core_local() -> None:
    found = [
        str(path.relative_to(ROOT))
        for package in ALLOWED
        for path in modules(package)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("core.local")
    ]
    assert {path for path in found if not path.startswith("core/local/")} == {"core/cli.py"}


def test_nothing_but_the_settings_reads_the_environment() -> None:
    """Handing the environment on to children (`core.local`), or prometheus_client's own switch, is no setting."""
    metrics_of_several_workers = {"core/metrics.py", "gateway/workers.py"}
    found = {
        str(path.relative_to(ROOT))
        for package in ALLOWED
        for path in modules(package)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in ("environ", "environb", "getenv")
    }
    assert {path for path in found if not path.startswith("core/local/")} - metrics_of_several_workers == {
        "core/settings.py"
    }
