"""The rules of the rooms, read from the syntax trees, and the package map."""

import ast
import configparser
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Each may import only those before it.
CORE = ["columns", "store", "draws", "shares", "plan", "retrieval", "buffer"]

# room: prefixes of modules that its files must never import
FORBIDDEN = {
    "replaykit/*.py": ["avalanche", "wandb", "torchvision", "replaykit.strategies", "replaykit.benchmarks"],
    "replaykit/losses/**/*.py": ["avalanche", "wandb", "torchvision", "replaykit.strategies"],
    "replaykit/policies/**/*.py": ["avalanche", "wandb", "torchvision", "replaykit.strategies"],
    "replaykit/selectors/**/*.py": ["avalanche", "wandb", "torchvision", "replaykit.strategies"],
    "replaykit/gradients/**/*.py": ["avalanche", "wandb", "torchvision", "replaykit.strategies"],
    "replaykit/avalanche*/**/*.py": ["replaykit.strategies", "replaykit.benchmarks", "wandb"],
    "replaykit/loggers/**/*.py": ["avalanche", "replaykit.strategies", "replaykit.benchmarks"],
    "strategies/**/*.py": ["replaykit.benchmarks", "wandb"],
    "benchmarks/**/*.py": [
        *("replaykit.policies", "replaykit.strategies", "replaykit.buffer", "replaykit.avalanche", "wandb")
    ],
}
RULES = [
    (path, forbidden)
    for pattern, forbidden in FORBIDDEN.items()
    for path in sorted(ROOT.glob(pattern))
    if path != ROOT / "replaykit" / "avalanche.py"
]

pytestmark = pytest.mark.skipif(not (ROOT / "replaykit").is_dir(), reason="runs in a checkout, not on a wheel")


def imports(path: Path, top_level: bool = False) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    for node in ast.iter_child_nodes(tree) if top_level else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def within(module: str, prefix: str) -> bool:
    return module == prefix or module.startswith(prefix + ".")


@pytest.mark.parametrize(("path", "forbidden"), RULES, ids=lambda value: getattr(value, "name", ""))
def test_a_room_imports_only_what_it_may(path: Path, forbidden: list[str]) -> None:
    bad = [m for m in imports(path, top_level="loggers" in path.parts) if any(within(m, f) for f in forbidden)]
    assert not bad, f"{path.relative_to(ROOT)} imports {bad}"


@pytest.mark.parametrize("position", range(len(CORE)))
def test_core_files_import_only_those_before_them(position: int) -> None:
    name = CORE[position]
    files = [*(ROOT / "replaykit").glob(f"{name}.py"), *(ROOT / "replaykit" / name).glob("*.py")]
    found = {
        m.split(".")[1] for path in files for m in imports(path, top_level=True) if m.startswith("replaykit.")
    }
    assert files and found <= {*CORE[:position], name}, f"{name} imports {found - set(CORE[:position])}"


def test_policies_do_not_import_models() -> None:
    for path in (ROOT / "replaykit" / "policies").glob("*.py"):
        assert not any(within(m, "torch.nn") for m in imports(path)), path


def test_nobody_imports_a_script() -> None:
    scripts = {path.stem for path in (ROOT / "scripts").glob("*.py")}
    for folder in ("replaykit", "strategies", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            assert not {m for m in imports(path) if within(m, "scripts") or m in scripts}, path


def test_every_folder_with_code_is_in_the_package_list() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    listed = set(config["options"]["packages"].split())
    homes = {
        "replaykit": "replaykit",
        "strategies": "replaykit.strategies",
        "benchmarks": "replaykit.benchmarks",
    }
    found = set()
    for folder, package in homes.items():
        for path in (ROOT / folder).rglob("*.py"):
            parts = path.parent.relative_to(ROOT / folder).parts
            found.add(".".join([package, *parts]))
    assert listed == found


@pytest.mark.parametrize("name", ["strategies", "benchmarks"])
def test_mapped_folders_refuse_their_bare_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    with pytest.raises(ImportError, match=f"replaykit.{name}"):
        __import__(name)
