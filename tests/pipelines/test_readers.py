"""Laws of readers: every source gives its documents in one order, says what it left out, and refuses what is wrong."""

from __future__ import annotations

import datetime
import gzip
import json
import subprocess
import sys
import tracemalloc
import zipfile
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from langchain_core.documents import Document as LangChainDocument

from ragq.errors import InvalidArgumentError, MissingExtraError, StorageError
from ragq.pipelines.readers import office, read
from ragq.pipelines.readers.base import MAX_ID_BYTES
from ragq.pipelines.readers.html import html_text
from ragq.types import Document


def write(root: Path, files: dict[str, str | bytes]) -> Path:
    for name, content in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return root


def ids(reader) -> list[str]:
    return [document.id for document in reader]


# --- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_gives_its_text_files_in_the_order_of_their_paths(tmp_path):
    files = {"b.txt": "bees", "a/z.py": "x = 1", "a.md": "# Title here\nbody", "a/b/c.rst": "deep", "Makefile": "all:"}
    reader = read(write(tmp_path, files))
    documents = list(reader)
    assert [d.id for d in documents] == ["Makefile", "a/b/c.rst", "a/z.py", "a.md", "b.txt"]
    assert ids(reader) == [d.id for d in documents]
    assert reader.total == reader.counts.read == 5
    by_id = {d.id: d for d in documents}
    assert by_id["a.md"].title == "Title here"
    assert by_id["a.md"].text == "# Title here\nbody"
    assert by_id["a/z.py"] == Document(
        "a/z.py", "x = 1", "", {"path": "a/z.py", "suffix": ".py"}, str(tmp_path / "a/z.py")
    )


def test_what_is_left_out_of_a_folder_is_counted_by_reason(tmp_path):
    files = {
        "kept.txt": "kept",
        ".hidden": "no",
        ".git/config": "no",
        "image.png": b"\x89PNG\0\0",
        "latin.txt": "é".encode("latin-1"),
        "wide.txt": "wide".encode("utf-16"),
        "empty.txt": " \n",
        "big.txt": "x" * 200,
        "old.ragq/manifest.json": "{}",
        "build/out.txt": "no",
        ".gitignore": "build/\n",
    }
    reader = read(write(tmp_path, files), max_bytes=100)
    assert ids(reader) == ["kept.txt"]
    assert reader.skipped == {
        "hidden": 3,
        "binary": 1,
        "not UTF-8": 2,
        "empty": 1,
        "larger than 9.53674e-05 MiB": 1,
        "index": 1,
        "gitignored": 1,
    }
    assert reader.counts.examples["binary"] == [str(tmp_path / "image.png")]
    assert "1 read" in str(reader.counts)


@pytest.mark.parametrize("name", ["latin.txt", "big.txt"])
def test_strict_refuses_what_should_be_readable(tmp_path, name):
    write(tmp_path, {"a.txt": "a", "latin.txt": b"\xe9", "big.txt": "x" * 200, ".hidden": "", "b.bin": b"\0"})
    (tmp_path / ("big.txt" if name == "latin.txt" else "latin.txt")).unlink()
    assert ids(read(tmp_path, max_bytes=100)) == ["a.txt"]
    with pytest.raises(InvalidArgumentError, match=name):
        list(read(tmp_path, strict=True, max_bytes=100))


def test_gitignore_agrees_with_git(tmp_path):
    files = {
        ".gitignore": "*.log\n/top.txt\nskip/\n!keep.log\ndocs/*.txt\n",
        "a.log": "-",
        "keep.log": "+",
        "top.txt": "-",
        "sub/top.txt": "+",
        "skip/a.txt": "-",
        "docs/a.txt": "-",
        "docs/deep/a.txt": "+",
        "sub/.gitignore": "!b.log\nlocal.txt\n",
        "sub/b.log": "+",
        "sub/c.log": "-",
        "sub/local.txt": "-",
        "local.txt": "+",
        "sub/deep/local.txt": "-",
    }
    write(tmp_path, files)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    listed = subprocess.run(
        ["git", "-C", str(tmp_path), "ls-files", "--others", "--exclude-standard"],
        check=True,
        capture_output=True,
        text=True,
    )
    expected = {name for name in listed.stdout.split() if not Path(name).name.startswith(".")}
    assert set(ids(read(tmp_path))) == expected == {name for name, sign in files.items() if sign == "+"}
    below = {name.removeprefix("sub/") for name in expected if name.startswith("sub/")}
    assert set(ids(read(tmp_path / "sub"))) == below


def test_links_that_leave_the_folder_are_not_followed(tmp_path):
    write(tmp_path, {"in/a.txt": "a", "in/sub/b.txt": "b", "secret.txt": "secret", "other/c.txt": "c"})
    root = tmp_path / "in"
    (root / "inside.txt").symlink_to("a.txt")
    (root / "leaves.txt").symlink_to("../secret.txt")
    (root / "folder").symlink_to("../other")
    (root / "loop").symlink_to(".")
    (root / "gone.txt").symlink_to("nowhere")
    reader = read(root)
    assert ids(reader) == ["a.txt", "inside.txt", "sub/b.txt"]
    assert reader.skipped == {"symbolic link": 4}


def test_an_unreadable_file_is_counted_or_refused(tmp_path, monkeypatch):
    write(tmp_path, {"a.txt": "a", "b.txt": "b"})

    def refuse(self: Path) -> bytes:
        if self.name == "b.txt":
            raise PermissionError(13, "Permission denied")
        return b"a"

    monkeypatch.setattr(Path, "read_bytes", refuse)
    reader = read(tmp_path)
    assert ids(reader) == ["a.txt"]
    assert reader.skipped == {"unreadable": 1}
    with pytest.raises(StorageError, match=r"b\.txt cannot be read: Permission denied"):
        list(read(tmp_path, strict=True))


def test_one_file_is_one_document_even_when_hidden(tmp_path):
    write(tmp_path, {".notes.txt": "\ufeffline\r\nline"})
    (document,) = read(tmp_path / ".notes.txt")
    assert (document.id, document.text) == (".notes.txt", "line\nline")


def test_html_is_reduced_to_what_a_browser_shows(tmp_path):
    page = """<!doctype html><html><head><title> Bees &amp;\n wasps </title><style>p {color: red}</style></head>
    <body><script>var x = "<p>no</p>";</script><h1>On bees</h1><p>They <b>fly</b>
    far.</p><ul><li>one<li>two</ul><pre>a
  b</pre><noscript>no</noscript></body></html>"""
    (document,) = read(write(tmp_path, {"a.html": page}) / "a.html")
    assert document.title == "Bees & wasps"
    assert document.text.split("\n") == ["On bees", "", "They fly far.", "", "one", "two", "", "a", "  b"]
    assert html_text("<head><meta charset=utf-8><body>no end of head") == ("", "no end of head")
    assert html_text("just text <3") == ("", "just text <3")


def docx(path: Path, text: str) -> None:
    kind = "http://schemas.openxmlformats.org/officeDocument/2006/relationships/officeDocument"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(
            "[Content_Types].xml",
            '<Types xmlns="http://schemas.openxmlformats.org/package/2006/content-types">'
            '<Default Extension="rels" ContentType="application/vnd.openxmlformats-package.relationships+xml"/>'
            '<Override PartName="/word/document.xml" ContentType='
            '"application/vnd.openxmlformats-officedocument.wordprocessingml.document.main+xml"/></Types>',
        )
        archive.writestr(
            "_rels/.rels",
            '<Relationships xmlns="http://schemas.openxmlformats.org/package/2006/relationships">'
            f'<Relationship Id="r" Type="{kind}" Target="word/document.xml"/></Relationships>',
        )
        archive.writestr(
            "word/document.xml",
            '<w:document xmlns:w="http://schemas.openxmlformats.org/wordprocessingml/2006/main"><w:body><w:p><w:r>'
            f"<w:t>{text}</w:t></w:r></w:p></w:body></w:document>",
        )


def test_office_files_are_read_by_markitdown(tmp_path):
    docx(tmp_path / "a.docx", "Bees fly far")
    write(tmp_path, {"b.txt": "b", "broken.docx": b"PK no zip", "broken.pdf": b"%PDF-1.4 broken"})
    reader = read(tmp_path)
    assert {d.id: d.text.strip() for d in reader} == {"a.docx": "Bees fly far", "b.txt": "b"}
    assert reader.skipped == {"unreadable": 2}
    with pytest.raises(InvalidArgumentError, match=r"broken\.docx cannot be converted"):
        list(read(tmp_path, strict=True))


def test_a_missing_extra_is_counted_and_told_once(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "markitdown", None)
    office._converter.cache_clear()
    write(tmp_path, {"a.pdf": b"%PDF", "b.docx": b"PK", "c.txt": "c"})
    reader = read(tmp_path)
    assert ids(reader) == ["c.txt"]
    assert reader.skipped == {"needing ragq[files]": 2}
    assert len(reader.notes) == 1
    assert "pip install 'ragq[files]'" in reader.notes[0]
    with pytest.raises(MissingExtraError, match=r"a\.pdf.*pip install 'ragq\[files\]'"):
        list(read(tmp_path, strict=True))


# --- files of records ------------------------------------------------------------------------------------------------

RECORDS = [
    {"_id": "one", "title": "First", "text": "bees", "metadata": {"year": 2020}},
    {"id": "two", "text": "wasps", "lang": "en", "metadata": None},
    {"_id": 3, "title": None, "text": "ants"},
]
EXPECTED = [
    ("one", "First", "bees", {"year": 2020}),
    ("two", "", "wasps", {"lang": "en"}),
    ("3", "", "ants", {}),
]


def fields(documents) -> list[tuple]:
    return [(d.id, d.title, d.text, dict(d.metadata)) for d in documents]


@pytest.mark.parametrize("name", ["corpus.jsonl", "x.ndjson", "x.jsonl.gz"])
def test_json_lines(tmp_path, name):
    data = "\ufeff" + "\n\n".join(map(json.dumps, RECORDS))
    write(tmp_path, {name: gzip.compress(data.encode()) if name.endswith("gz") else data})
    reader = read(tmp_path / name)
    documents = list(reader)
    assert fields(documents) == EXPECTED
    assert documents[1].source == f"{tmp_path / name}:3"
    assert reader.kind == "jsonl"
    assert reader.chunked
    assert reader.notes == ["Ids that are numbers are stored as strings."]


def test_a_beir_folder_is_its_corpus(tmp_path, shared):
    reader = read(shared / "beir" / "limit-small")
    documents = list(reader)
    assert (reader.kind, reader.chunked, reader.total, len(documents)) == ("beir", False, 46, 46)
    assert any(" " in d.id for d in documents)
    write(tmp_path, {"corpus.jsonl": json.dumps(RECORDS[0]), "queries.jsonl": "not read", "notes.txt": "not read"})
    assert ids(read(tmp_path)) == ["one"]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{broken", r"x\.jsonl:2: not valid JSON"),
        (b'["list"]', r"x\.jsonl:2: must be a JSON object. Got list"),
        (b'{"id": "a", "body": "b"}', r"x\.jsonl:2: no field 'text'. Found 'id', 'body'"),
        (b'{"id": 1.5, "text": "b"}', r"x\.jsonl:2: an id must be a string. Got float"),
        (b'{"id": true, "text": "b"}', r"x\.jsonl:2: an id must be a string. Got bool"),
        (b'{"id": "", "text": "b"}', r"x\.jsonl:2: an id must have 1 byte to 64 KiB"),
        (b'{"id": "%s", "text": "b"}' % (b"x" * (MAX_ID_BYTES + 1)), r"x\.jsonl:2: an id must have .* 64 KiB"),
        (b'{"id": "a", "text": ["b"]}', r"x\.jsonl:2: 'text' must be a string. Got list"),
        (b'{"id": "a", "text": "b", "metadata": [1]}', r"x\.jsonl:2: 'metadata' must be an object. Got list"),
        (b'{"id": "a", "text": "b", "score": NaN}', r"x\.jsonl:2: not valid JSON: JSON has no NaN"),
        (b"[" * 100_000, r"x\.jsonl:2: not valid JSON"),
    ],
)
def test_a_bad_line_is_named_with_path_and_line(tmp_path, line, message):
    write(tmp_path, {"x.jsonl": b'{"id": "ok", "text": "fine"}\n' + line})
    with pytest.raises(InvalidArgumentError, match=message) as caught:
        list(read(tmp_path / "x.jsonl"))
    assert "\n" not in str(caught.value)


def test_lines_that_are_not_utf8_are_counted_or_refused(tmp_path):
    data = b'{"id": "a", "text": "a"}\n{"id": "b", "text": "\xe9"}\n{"id": "c", "text": "\\ud800"}\n{"text": ""}'
    write(tmp_path, {"x.jsonl": data, "y.csv": b"id,text\na,a\nb,\xe9\nd,\n"})
    reader = read(tmp_path / "x.jsonl")
    assert ids(reader) == ["a"]
    assert reader.skipped == {"not UTF-8": 2, "empty": 1}
    for options in ({"strict": True}, {"aligned": True}):
        with pytest.raises(InvalidArgumentError, match=r"x\.jsonl:2: not UTF-8"):
            list(read(tmp_path / "x.jsonl", **options))
    reader = read(tmp_path / "y.csv")
    assert ids(reader) == ["a"]
    assert reader.skipped == {"not UTF-8": 1, "empty": 1}


def test_aligned_keeps_empty_records(tmp_path):
    write(tmp_path, {"x.jsonl": '{"id": "a", "text": "a"}\n{"id": "b", "text": ""}\n'})
    assert ids(read(tmp_path / "x.jsonl", aligned=True)) == ["a", "b"]


def test_a_record_without_an_id_keeps_its_id_when_others_come(tmp_path):
    one, two = {"text": "one", "k": 1}, {"text": "two", "k": 1}
    (first,) = ids(read([one]))
    assert ids(read([two, one]))[1] == first
    assert ids(read(["one", "one"]))[0] == ids(read(["one"]))[0] != first
    write(tmp_path, {"x.jsonl": json.dumps(one)})
    assert ids(read(tmp_path / "x.jsonl")) == [first]


def test_csv_and_tsv(tmp_path):
    table = (
        'id,title,text,year,share,code,note\n007,First,"two\nlines, one field",2020,0.5,0123,\n8,,b,-3,1e5,x,"""q"""\n'
    )
    write(tmp_path, {"x.csv": "\ufeff" + table, "x.tsv": "id\ttext\n1\ta, b\n", "semi.csv": "id;text\n1;a, b\n"})
    assert fields(read(tmp_path / "x.csv")) == [
        ("007", "First", "two\nlines, one field", {"year": 2020, "share": 0.5, "code": "0123", "note": None}),
        ("8", "", "b", {"year": -3, "share": "1e5", "code": "x", "note": '"q"'}),
    ]
    assert fields(read(tmp_path / "x.tsv")) == fields(read(tmp_path / "semi.csv")) == [("1", "", "a, b", {})]


def test_a_long_csv_field_is_read(tmp_path):
    write(tmp_path, {"x.csv": f"id,text\n1,{'word ' * 50_000}\n"})
    (document,) = read(tmp_path / "x.csv")
    assert len(document.text) == 250_000


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("id,text\na,b,c\n", r"x\.csv:2: must have 2 columns. Got 3"),
        ("id,id,text\n", r"x\.csv:1: the first line must name the columns"),
        ("", r"x\.csv:1: the first line"),
        ("id,body\na,b\n", r"x\.csv:2: no field 'text'. Found 'id', 'body'"),
        ('id,text\na,"b\n', r"x\.csv:2: not valid CSV"),
    ],
)
def test_a_bad_table_is_named_with_path_and_line(tmp_path, table, message):
    with pytest.raises(InvalidArgumentError, match=message):
        list(read(write(tmp_path, {"x.csv": table}) / "x.csv"))


def rich_table() -> pa.Table:
    return pa.table(
        {
            "id": [1, 2],
            "text": ["bees", "wasps"],
            "title": ["First", None],
            "when": pa.array([datetime.datetime(2020, 1, 2), None], pa.timestamp("us")),
            "price": [Decimal("1.50"), None],
            "score": [float("nan"), 0.5],
            "metadata": ['{"lang": "en"}', None],
            "tags": [["a"], []],
            "embedding": [[0.1, 0.2], [0.3, 0.4]],
        }
    )


RICH = [
    (
        "1",
        "First",
        "bees",
        {"when": "2020-01-02T00:00:00", "price": "1.50", "score": None, "tags": ["a"], "lang": "en"},
    ),
    ("2", "", "wasps", {"when": None, "price": None, "score": 0.5, "tags": []}),
]


def test_parquet_arrow_and_tables(tmp_path):
    table = rich_table()
    pq.write_table(table, tmp_path / "x.parquet")
    with pa.ipc.new_file(tmp_path / "x.arrow", table.schema) as writer:
        writer.write_table(table)
    with pa.ipc.new_stream(tmp_path / "y.arrow", table.schema) as writer:
        writer.write_table(table)
    for name in ("x.parquet", "x.arrow", "y.arrow"):
        reader = read(tmp_path / name)
        assert reader.total == 2
        assert fields(reader) == RICH
    assert fields(read(table)) == RICH
    assert fields(read(table.to_pandas()))[0][:3] == RICH[0][:3]


def test_columns_can_be_named(tmp_path):
    pq.write_table(pa.table({"key": ["a"], "body": ["b"], "head": ["h"], "id": ["other"]}), tmp_path / "x.parquet")
    reader = read(tmp_path / "x.parquet", id_field="key", text_field="body", title_field="head")
    assert fields(reader) == [("a", "h", "b", {"id": "other"})]
    with pytest.raises(InvalidArgumentError, match="no field 'nope' for the id"):
        list(read(tmp_path / "x.parquet", id_field="nope", text_field="body"))


@pytest.mark.parametrize("name", ["x.parquet", "x.arrow"])
def test_a_broken_table_is_named(tmp_path, name):
    write(tmp_path, {name: b"PAR1 not really"})
    with pytest.raises(InvalidArgumentError, match=rf"{name} cannot be read as"):
        list(read(tmp_path / name))


def test_binary_metadata_is_refused(tmp_path):
    pq.write_table(pa.table({"id": ["a"], "text": ["b"], "raw": [b"\0"]}), tmp_path / "x.parquet")
    with pytest.raises(InvalidArgumentError, match=r"x\.parquet:0: 'raw': metadata must be JSON. Got bytes"):
        list(read(tmp_path / "x.parquet"))


def test_a_folder_of_files_of_records_is_one_source(tmp_path):
    for i in (1, 0):
        pq.write_table(pa.table({"id": [f"{i}a", f"{i}b"], "text": ["x", "y"]}), tmp_path / f"part-{i}.parquet")
    reader = read(tmp_path)
    assert (reader.kind, reader.total) == ("parquet", 4)
    assert ids(reader) == ["0a", "0b", "1a", "1b"]
    write(tmp_path, {"README.md": "now it is a folder of text"})
    reader = read(tmp_path)
    assert ids(reader) == ["README.md"]
    assert reader.skipped == {"binary": 2}


# --- iterables -------------------------------------------------------------------------------------------------------


def test_items_of_any_kind():
    items = [
        Document("a", "text a", "A", {"n": np.int64(1)}, "a.txt"),
        {"_id": "b", "text": "text b", "n": 2, "tags": ("x", "y")},
        LangChainDocument(page_content="text c", metadata={"n": 3, "source": "c.txt"}, id="c"),
    ]
    documents = list(read(items))
    assert fields(documents) == [
        ("a", "A", "text a", {"n": 1}),
        ("b", "", "text b", {"n": 2, "tags": ["x", "y"]}),
        ("c", "", "text c", {"n": 3, "source": "c.txt"}),
    ]
    assert [d.source for d in documents] == ["a.txt", "item 1", "c.txt"]
    assert read(items).total == 3
    assert ids(read(iter(items))) == ["a", "b", "c"]


def test_ids_go_with_items():
    assert ids(read(["x", "y"], ids=["a", "b"])) == ["a", "b"]
    assert ids(read([{"_id": "old", "text": "x"}], ids=(n for n in ["new"]))) == ["new"]
    assert fields(read({"a": "x", "b": {"title": "B", "text": "y"}})) == [("a", "", "x", {}), ("b", "B", "y", {})]
    for given in (["a"], ["a", "b", "c"]):
        with pytest.raises(InvalidArgumentError, match="one id an item"):
            list(read(["x", "y"], ids=given))
    with pytest.raises(InvalidArgumentError, match="'ids'"):
        read({"a": "x"}, ids=["b"])


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (7, "item 1: must be a str, a dict or a Document. Got int"),
        ({"text": b"x"}, "item 1: 'text' must be a string. Got bytes"),
        ({"text": "x", "when": datetime.date(2020, 1, 1)}, "item 1.*metadata must be JSON. Got date"),
        ({"text": "x", "score": float("inf")}, "item 1.*which has no inf"),
        ({"text": "x", "metadata": {1: 2}}, "item 1.*keys of metadata must be strings"),
        ({"text": "x", "id": b"a"}, "item 1: an id must be a string. Got bytes"),
    ],
)
def test_a_bad_item_is_named(item, message):
    with pytest.raises(InvalidArgumentError, match=message):
        list(read(["fine", item]))


# --- all sources -----------------------------------------------------------------------------------------------------


def test_skip_passes_over_the_first_documents(tmp_path, shared):
    write(tmp_path, {"a.txt": "a", "b.txt": "b", "c.txt": "c"})
    for source in (tmp_path, shared / "beir" / "limit-small", ["x", "y", "z"]):
        everything = ids(read(source))
        assert ids(read(source, skip=2)) == everything[2:]
        assert [d.id for d in read(source).documents(skip=2)] == everything[2:]
        reader = read(source, skip=2)
        list(reader)
        assert reader.counts.read == len(everything)


@pytest.mark.parametrize("source", ["no/such/place", 7])
def test_a_source_that_is_none_is_refused(source):
    with pytest.raises(
        InvalidArgumentError, match=r"No such file or folder: 'no/such/place'|must be a path or an iterable"
    ):
        read(source)


def test_an_empty_source_is_refused_with_what_was_left_out(tmp_path):
    for source in (tmp_path, []):
        with pytest.raises(InvalidArgumentError, match="holds no documents"):
            list(read(source))
    write(tmp_path, {".hidden": "x", "empty.txt": ""})
    with pytest.raises(InvalidArgumentError, match=r"holds no documents\. Skipped: 1 hidden, 1 empty\."):
        list(read(tmp_path))


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    def peak(count: int) -> int:
        path = tmp_path / f"{count}.jsonl"
        path.write_text("".join(f'{{"id": "{i}", "text": "{"x" * 500}"}}\n' for i in range(count)))
        tracemalloc.start()
        for _ in read(path):
            pass
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(10)
    assert peak(4000) < peak(400) + 100_000  # the file has 2 MB; what waits for the garbage collector differs
