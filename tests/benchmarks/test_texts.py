"""One file from wheels, the same in whatever order they came. Nothing is fetched here."""

import zipfile
from pathlib import Path

from benchmarks.texts import sources


def test_modules_are_taken_in_the_order_of_their_names(tmp_path: Path) -> None:
    for wheel, modules in {
        "b-1.whl": {"b/z.py": "z", "b/a.py": "a", "b/data.json": "{}"},
        "A-1.whl": {"a.py": "first"},
    }.items():
        with zipfile.ZipFile(tmp_path / wheel, "w") as archive:
            for name, text in modules.items():
                archive.writestr(name, text)
    assert list(sources(tmp_path)) == [b"first", b"a", b"z"]
