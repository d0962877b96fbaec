"""Sources: the same files give the same bytes; what cannot be read says so in one line."""

from pathlib import Path

import pytest

from p2ptrain.data.sources import gather
from p2ptrain.errors import DataError
from p2ptrain.run import Data

TEXT = Data(source="text")
JSONL = Data(source="jsonl")


def test_the_library_is_at_hand_and_deterministic() -> None:
    once = gather(Data(), None)
    assert once == gather(Data(), None)
    assert once.file_count > 50
    assert 1 << 20 < len(once.corpus) < 16 << 20
    assert b"def " in once.corpus


def test_a_folder_is_read_in_the_order_of_its_paths(tmp_path: Path) -> None:
    for name, text in {
        "b.txt": "2",
        "a/z.txt": "1",
        "B": "0",
        ".git/x": "no",
        "c/.y": "no",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    found = gather(TEXT, tmp_path)
    assert found.corpus == b"012"
    assert found.file_count == 3


def test_one_file_is_a_corpus(tmp_path: Path) -> None:
    file = tmp_path / ".hidden"
    file.write_bytes(b"\x00\xff any bytes")
    assert gather(TEXT, file).corpus == b"\x00\xff any bytes"


def test_jsonl_takes_the_strings_of_one_field(tmp_path: Path) -> None:
    (tmp_path / "one.jsonl").write_text('{"text": "a\\nb", "n": 1}\n\n{"text": "\u00e9"}\n')
    (tmp_path / "notes.txt").write_text("not taken")
    assert gather(JSONL, tmp_path).corpus == "a\nb\n\u00e9\n".encode()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": 3}', '2: no string "text"; set data.jsonl_field'),
        ("[1]", "2: no JSON object"),
        ("{", "2: no JSON object"),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: str, reason: str) -> None:
    file = tmp_path / "one.jsonl"
    file.write_text(f'{{"text": "fine"}}\n{line}\n')
    with pytest.raises(DataError, match=reason):
        gather(JSONL, file)


def test_what_is_missing_or_empty_says_what_to_give(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    cases = [
        (TEXT, None, "give --data PATH"),
        (TEXT, tmp_path / "nowhere", "no such file or folder"),
        (TEXT, tmp_path / "empty", "no text in it"),
        (JSONL, tmp_path, "no file .*jsonl in this folder"),
        (Data(), tmp_path, "trains on the standard library"),
    ]
    for data, path, reason in cases:
        with pytest.raises(DataError, match=reason) as caught:
            gather(data, path)
        assert "\n" not in str(caught.value)
