"""Imports go downwards only, and what can work without TensorFlow does."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "segment"

# Lowest first. A module may import from its own row and from the rows above it; within `data` the order is DATA_ORDER.
LAYERS = (
    ("errors",),
    ("files", "progress", "memory_use"),
    ("config_base",),
    ("config_data", "config_inference", "config_loss", "config_model", "config_train", "config_weighting"),
    ("config",),
    ("data",),
    ("evaluation",),
    ("data.pipeline",),
    ("model",),
    ("losses",),
    ("inference",),
    ("training",),
    ("commands",),
    ("cli",),
)
DATA_ORDER = (
    ("nifti", "orientation", "mapped", "components", "grid"),
    ("lesion_maps", "case"),
    ("scan",),
    ("folder_names", "manifest", "dataset_json"),
    ("msd", "bids"),
    ("inputs",),
    ("cases", "census"),
    ("splits", "label_files"),
    ("phantom_objects", "normalization", "geometry"),
    ("inspection",),
    ("checks",),
    ("phantom_anatomy", "phantom_lesions"),
    ("phantoms",),
    ("sample_data",),
    ("fingerprint", "lesion_table", "axes"),
    ("planning",),
    ("memory_model", "preprocessing"),
    ("budget",),
    ("audit",),
    ("audit_file", "plan_file"),
    ("sampling", "spatial", "intensity", "slice_augmentation", "lesion_shapes", "lesion_removal"),
    ("lesion_paste",),
    ("augmentation",),
    ("patches",),
    ("preview",),
    ("pipeline",),
)
WITH_TENSORFLOW = {"data.pipeline", "model", "losses", "inference", "training"}


def _modules() -> dict[str, Path]:
    names = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        names[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return names


MODULES = _modules()


def _imports(path: Path) -> set[str]:
    """Dotted names below `segment` that a file imports anywhere, inside functions too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                pytest.fail(f"{path}: imports are written in full, found a relative one")
            found |= {f"{node.module}.{alias.name}" for alias in node.names} | {str(node.module)}
    return {name.removeprefix("segment.") for name in found if name.startswith("segment.")}


def _layer(module: str) -> int:
    for index in reversed(range(len(LAYERS))):
        if any(module == name or module.startswith(name + ".") for name in LAYERS[index]):
            return index
    pytest.fail(f"segment/{module.replace('.', '/')}.py stands in no layer; add it to LAYERS")


def _data_rank(module: str) -> int:
    name = module.split(".")[1]
    for index, row in enumerate(DATA_ORDER):
        if name in row:
            return index
    pytest.fail(f"segment/data/{name}.py stands in no row; add it to DATA_ORDER")


@pytest.mark.parametrize("module", [name for name in MODULES if name])
def test_imports_go_downwards(module: str) -> None:
    for imported in _imports(MODULES[module]) & set(MODULES):
        assert _layer(imported) <= _layer(module), f"{module} imports {imported}, which stands above it"
        inside_data = module.startswith("data.") and imported.startswith("data.")
        if inside_data:
            assert _data_rank(imported) <= _data_rank(module), f"{module} imports {imported}, which stands above it"


def test_what_needs_no_tensorflow_does_not_import_it() -> None:
    free = [
        name
        for name in MODULES
        if name and not any(name == heavy or name.startswith(heavy + ".") for heavy in WITH_TENSORFLOW)
    ]
    code = ";".join(f"import segment.{name}" for name in free)
    code += ";import sys;heavy={'tensorflow','keras'}&set(sys.modules);sys.exit(f'imported {heavy}' if heavy else 0)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_tensorflow_comes_with_its_own_keras() -> None:
    for module, path in MODULES.items():
        names = {
            alias.name.split(".")[0]
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
            if isinstance(node, ast.Import)
            for alias in node.names
        }
        assert "keras" not in names, f"{module} imports keras; use tf.keras"


def test_no_bare_or_broad_except_and_no_assert_in_the_library() -> None:
    for module, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not isinstance(node, ast.Assert), f"{module} line {node.lineno}: assert in the library"
            if isinstance(node, ast.ExceptHandler):
                name = node.type.id if isinstance(node.type, ast.Name) else None
                broad = node.type is None or name in {"Exception", "BaseException"}
                assert not broad, f"{module} line {node.lineno}: broad except"
