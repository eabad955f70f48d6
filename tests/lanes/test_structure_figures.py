"""benchmarks/structure.py counts what it says it counts."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

PATH = Path(__file__).parents[2] / "benchmarks" / "structure.py"
SPEC = importlib.util.spec_from_file_location("benchmarks_structure", PATH)
assert SPEC is not None
assert SPEC.loader is not None
structure = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = structure
SPEC.loader.exec_module(structure)

SOURCE = '''
def documented():
    """Says what is true afterwards."""

    def nested():  # not public: nobody can name it
        return 1

    return nested


class Public:
    def bare(self):
        return "# no comment"


def _private():
    pass
'''


def test_the_shape_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "module.py").write_text(SOURCE)
    shape = structure.measure(tmp_path)
    assert (shape.files, shape.longest_file, shape.longest_function) == (1, 17, 7)
    assert shape.median == 2
    assert shape.docstrings == pytest.approx(100 / 3)
    assert shape.comments == pytest.approx(100 / 17)


def test_a_folder_without_python_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no Python function below"):
        structure.measure(tmp_path)


@pytest.mark.slow
def test_the_table_has_ours_beside_the_models() -> None:
    ours = [structure.measure(structure.ROOT / name) for name in structure.OURS]
    text = structure.table([*ours, *structure.MODELS])
    names = [line.split("|")[1].strip() for line in text.splitlines()[2:]]
    assert names == ["lifecycle", "adapters", "h11", "httpcore", "dramatiq", "mini-sglang", "kopf"]
