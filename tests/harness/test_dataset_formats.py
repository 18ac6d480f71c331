"""The file formats of datasets: the same rows from each, every fault one sentence, and no pickle runs anything."""

from __future__ import annotations

import base64
import copyreg
import gzip
import hashlib
import io
import json
import os
import pickle
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness import dataset, tables
from harness.dataset import Tokenizer, load
from harness.demo import MODEL
from harness.unpickle import ALLOWED, read_frame
from sut.errors import SetupError

TOKENIZER = Tokenizer(MODEL)

RAW = [
    {"id": "q0", "system_prompt": "", "question": "What is 0?", "response": "Zero, é."},
    {"id": "q1", "system_prompt": "Be brief.", "question": "What is 1?", "response": "One."},
]
PROCESSED = [
    {"id": "p0", "tok_input": [1, 1, 300, 5], "output": "Zero, é.", "tok_input_length": 4, "score": 0.5},
    {"id": "p1", "tok_input": [1, 900], "output": "One.", "tok_input_length": 2, "score": 1.5},
]

Rows = list[dict[str, Any]]
Write = Callable[[Path, Rows], None]


def write_jsonl(path: Path, rows: Rows) -> None:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))


def write_json(path: Path, rows: Rows) -> None:
    path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), encoding="utf-8")


def write_parquet(path: Path, rows: Rows) -> None:
    pq.write_table(pa.Table.from_pylist(rows), path)


def write_pickle(path: Path, rows: Rows) -> None:
    pd.DataFrame(rows).to_pickle(path)


WRITERS: dict[str, Write] = {
    "rows.jsonl": write_jsonl,
    "rows.json": write_json,
    "lines.json": write_jsonl,  # many a .json file is JSONL
    "rows.parquet": write_parquet,
    "rows.pkl": write_pickle,
    "rows.pkl.gz": write_pickle,  # pandas compresses by the name's ending
}


def refusal(source: Path | str, **options: Any) -> str:
    """The one sentence that a dataset is refused with."""
    with pytest.raises(SetupError) as refused:
        load(str(source), TOKENIZER, **options)
    assert "\n" not in str(refused.value)
    return str(refused.value)


# -- good files ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WRITERS)
def test_raw_rows_are_the_same_from_every_format(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path, RAW)
    samples = load(str(path), TOKENIZER, suffix=(7,))
    texts = [dataset.chat_prompt(row["system_prompt"], row["question"]) for row in RAW]
    assert [samples.prompt(i).tolist() for i in (0, 1)] == [[*ids, 7] for ids in TOKENIZER.encode(texts)]
    assert (samples.ids, samples.references) == (["q0", "q1"], ["Zero, é.", "One."])
    assert samples.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert load(str(path), TOKENIZER, limit=1).ids == ["q0"]


@pytest.mark.parametrize("name", WRITERS)
def test_processed_prompts_are_their_ids_as_they_are(tmp_path: Path, name: str) -> None:
    """No second beginning-of-sequence id, no suffix, no decoding: the ids hold what the template and 29871 made."""
    path = tmp_path / name
    WRITERS[name](path, PROCESSED)
    samples = load(str(path), TOKENIZER, suffix=(7,))
    assert [samples.prompt(i).tolist() for i in (0, 1)] == [[1, 1, 300, 5], [1, 900]]
    assert (samples.ids, samples.references) == (["p0", "p1"], ["Zero, é.", "One."])
    assert samples.tokens.dtype == np.int32
    assert samples.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert load(str(path), TOKENIZER, limit=1).tokens.tolist() == [1, 1, 300, 5]


@pytest.mark.parametrize("name", WRITERS)
def test_rows_without_an_id_are_called_by_their_number(tmp_path: Path, name: str) -> None:
    """cnn_eval.json has the columns input, tok_input and output."""
    WRITERS[name](tmp_path / name, [{"input": "Why?", "tok_input": [1, 2], "output": "So."}])
    assert load(str(tmp_path / name), TOKENIZER).ids == ["0"]


@pytest.mark.parametrize("column", ["tok_input", "input_tokens"])
@pytest.mark.parametrize("name", WRITERS)
def test_prompts_may_come_without_references(tmp_path: Path, name: str, column: str) -> None:
    """deepseek-r1's and gpt-oss-120b's answers are graded, not compared; the second name is gpt-oss-120b's."""
    WRITERS[name](tmp_path / name, [{column: [1, 2], "question": "Why?"}, {column: [3], "question": "How?"}])
    samples = load(str(tmp_path / name), TOKENIZER)
    assert (samples.tokens.tolist(), samples.references, samples.referenced) == ([1, 2, 3], ["", ""], False)


def test_an_id_before_two_prompts_is_no_fault_of_a_processed_file(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", [PROCESSED[0], PROCESSED[1] | {"id": "p0"}])
    assert load(str(tmp_path / "a.parquet"), TOKENIZER).ids == ["p0", "p0"]


@pytest.mark.parametrize(
    "kind", [pa.list_(pa.int64()), pa.list_(pa.int32()), pa.large_list(pa.uint16()), pa.list_(pa.int64(), 2)]
)
def test_parquet_prompts_may_be_any_list_of_integers(tmp_path: Path, kind: pa.DataType) -> None:
    lists = [[number, number + 1] for number in range(300)]  # more than are decoded at once
    pq.write_table(
        pa.table({"tok_input": pa.array(lists, kind), "output": ["x"] * 300}), tmp_path / "a.parquet", row_group_size=70
    )
    samples = load(str(tmp_path / "a.parquet"), TOKENIZER)
    assert samples.tokens.tolist() == [token for ids in lists for token in ids]
    assert samples.ids[299] == "299"


@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_a_json_list_may_be_cut_anywhere_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(tables, "JSON_CHUNK", chunk)
    for indent in (None, 2):
        (tmp_path / "a.json").write_text(json.dumps(PROCESSED, indent=indent))
        assert load(str(tmp_path / "a.json"), TOKENIZER).tokens.tolist() == [1, 1, 300, 5, 1, 900]


# -- bad files -------------------------------------------------------------------------------------------------


def with_last(rows: Rows, **changes: Any) -> Rows:
    return [*rows[:-1], rows[-1] | changes]


@pytest.mark.parametrize("name", ["rows.json", "rows.parquet", "rows.pkl"])
@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (
            [{"id": "a", "text": "?"}],
            "{path} has the columns id, text; needed are id, system_prompt, question, response (raw rows) or tok_input "
            "and output (processed ones).",
        ),
        (
            [{"id": "a", "question": "Why?", "response": "So."}],
            "{path}, row 0: no text in column 'system_prompt'; raw rows have the columns id, system_prompt, question, "
            "response.",
        ),
        ([RAW[0], RAW[1], RAW[0]], "{path}, row 2: the id 'q0' stands already in row 0."),
        (with_last(RAW, question=" \n"), "{path}, row 1: the question is empty."),
        (with_last(PROCESSED, tok_input=[]), "{path}, row 1: the prompt in column 'tok_input' is empty."),
        (with_last(PROCESSED, tok_input=None), "{path}, row 1: no list of token ids in column 'tok_input'."),
        ([PROCESSED[0] | {"tok_input": "1, 2"}], "{path}, row 0: no list of token ids in column 'tok_input'."),
        ([PROCESSED[0] | {"tok_input": [1.0, 2.5]}], "{path}, row 0: no list of token ids in column 'tok_input'."),
        ([PROCESSED[0] | {"tok_input": [[1], [2, 3]]}], "{path}, row 0: no list of token ids in column 'tok_input'."),
        (
            with_last(PROCESSED, tok_input=[1, -1]),
            "{path}, row 1: the token id -1 is outside the tokenizer's vocabulary of 1024: was the dataset tokenised "
            "for another model?",
        ),
        (
            with_last(PROCESSED, tok_input=[1024, 1]),
            "{path}, row 1: the token id 1024 is outside the tokenizer's vocabulary of 1024: was the dataset tokenised "
            "for another model?",
        ),
        (
            with_last(PROCESSED, output=None),
            "{path}, row 1: no text in column 'output'; processed rows have tok_input and output.",
        ),
        (
            [*PROCESSED, PROCESSED[0]],
            "{path}: the rows 0 and 2 have the same id 'p0' and prompt.",
        ),
    ],
)
def test_a_bad_row_is_one_sentence(tmp_path: Path, name: str, rows: Rows, sentence: str) -> None:
    path = tmp_path / name
    WRITERS[name](path, rows)
    assert refusal(path) == sentence.format(path=path)


def test_a_processed_prompt_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    write_parquet(tmp_path / "a.parquet", PROCESSED)
    assert "the first, 'p0', has 4 tokens and there is room for 3" in refusal(tmp_path / "a.parquet", longest=3)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.json", b"", "the dataset {path} is empty."),
        ("a.json", b" [ ] ", "the dataset {path} is empty."),
        ("a.json", b'[{"tok_input": [1], "output": "a"}', "{path}, row 0: not a JSON object (Expecting ',' delimiter)"),
        ("a.json", b'[{"tok_input": [1], "output": "a"},', "{path}, row 1: not a JSON object (Expecting value)"),
        ("a.json", b'[{"tok_input": [1], "out', "{path}, row 0: not a JSON object (Unterminated string starting at)"),
        ("a.json", b'[{"tok_input": [1], "output": "\xe9"}]', "the dataset {path} is not UTF-8 text"),
        ("a.json", b"[1, 2]", "{path}, row 0: not a JSON object but int."),
        ("a.json", b"[" * 100_000, "{path}, row 0: not a JSON object that can be read ("),
        ("a.jsonl", b"[" * 100_000, "{path}, line 1: not a JSON object that can be read ("),
        ("a.jsonl", b'{"a": ' + b"1" * 5000 + b"}", "{path}, line 1: not a JSON object that can be read ("),
        ("a.parquet", b"", "cannot read {path} as parquet ("),
        ("a.parquet", b"PAR1 no such thing PAR1", "cannot read {path} as parquet ("),
        ("a.pkl", b"", "cannot read {path} as a pickled table: it is cut off; save it as parquet, or get it again"),
        ("a.pkl", b'{"not": "a pickle"}', "cannot read {path} as a pickled table: "),
        ("a.pkl.gz", b"no gzip", "cannot read {path} as a pickled table: "),
        ("a.pkl", pickle.dumps([1, 2]), "cannot read {path} as a pickled table: it is not laid out as a DataFrame (it"),
        ("a.pkl", pickle.dumps({"_mgr": 1}), "cannot read {path} as a pickled table: it is not laid out as"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path, name: str, content: bytes, sentence: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert refusal(tmp_path / name).startswith(sentence.format(path=tmp_path / name))


@pytest.mark.parametrize("name", ["rows.json", "rows.parquet", "rows.pkl", "rows.pkl.gz"])
def test_a_file_cut_off_anywhere_is_one_sentence(tmp_path: Path, name: str) -> None:
    WRITERS[name](tmp_path / name, PROCESSED)
    whole = (tmp_path / name).read_bytes()
    for share in (0.1, 0.5, 0.9, 0.99):
        (tmp_path / name).write_bytes(whole[: int(len(whole) * share)])
        assert refusal(tmp_path / name).startswith(("cannot read", str(tmp_path / name)))


@pytest.mark.parametrize("name", ["rows.json", "rows.parquet", "rows.pkl"])
def test_a_missing_file_is_one_sentence(tmp_path: Path, name: str) -> None:
    assert refusal(tmp_path / name).startswith(f"cannot read the dataset {tmp_path / name}: No such file or directory;")


def test_an_empty_table_is_one_sentence(tmp_path: Path) -> None:
    empty = pd.DataFrame({"tok_input": pd.Series([], dtype=object), "output": pd.Series([], dtype=object)})
    empty.to_pickle(tmp_path / "a.pkl")
    empty.to_parquet(tmp_path / "a.parquet")
    for name in ("a.pkl", "a.parquet"):
        assert refusal(tmp_path / name) == f"the dataset {tmp_path / name} is empty."


def test_half_a_surrogate_pair_is_no_text(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", [RAW[0] | {"question": "half \ud800 a pair"}])
    assert refusal(tmp_path / "a.jsonl").endswith(
        "a.jsonl, line 1: half a surrogate pair in column 'question', which is no text: repair the row."
    )


# -- the hub ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "meant"),
    [
        ("Open-Orca/OpenOrca", True),
        ("owner/name:validation", True),
        ("data/questions.jsonl", False),  # a file that is not there
        ("/data/questions", False),
        ("./data/questions", False),
        ("questions", False),
        ("a/b/c", False),
    ],
)
def test_what_may_be_a_hub_id(source: str, meant: bool) -> None:
    assert tables.is_hub_id(source) == meant


def test_a_folder_of_that_name_is_no_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert not tables.is_hub_id("owner/name")


@pytest.mark.filterwarnings("ignore")  # what `datasets` warns about is its own affair
def test_a_hub_dataset_is_loaded_by_id_and_split(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[tuple[str, str]] = []

    def load_dataset(name: str, split: str) -> Any:
        asked.append((name, split))
        if name == "owner/none":
            raise ConnectionError("offline\nin two lines")
        return datasets.Dataset.from_list(RAW if split == "train" else PROCESSED)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load("owner/name", TOKENIZER).ids == ["q0", "q1"]
    samples = load("owner/name:test", TOKENIZER)
    assert samples.tokens.tolist() == [1, 1, 300, 5, 1, 900]
    assert samples.sha256 == hashlib.sha256(b"p0\np1\n" + samples.tokens.tobytes()).hexdigest()
    assert asked == [("owner/name", "train"), ("owner/name", "test")]
    assert refusal("owner/none") == (
        "the dataset owner/none is neither a file here nor to be had from the hub (ConnectionError): name a file with "
        "--dataset, or owner/name:split."
    )


# -- pickles of all ages ---------------------------------------------------------------------------------------

OLD = {
    "pandas 1.5.3, numpy 1.26, protocol 4": (
        "eNptks1u1DAQxzfZpKWAaCsEFFVCHMtlzxxQQS1Cgqip1BOXlTVJ3CRax4lsR8tKVIIDSyv51uEheA4eDMbeXdgCOdh/OzPj33x8"
        "ir7tDwf+s7sdyAL0KG8VH50raDjarddg4I3X1/jsM17ggY1YUyq0T9bNa2m4kiD0qAEJJVca7d0j0eaTk8WZ3O3DpQcTdab/uKDd"
        "Zr3s6nwiOMucjzN+IPummy2iN70wNSgFM4rKFM9bqY3qc+MMY2+IdpNie5NrTAZf8DjI8Cue4UESJMMknGO1bePCzDqXiQ1Pn+PV"
        "5eL/0AYfMU3Tdz/p80vy0mB2NaZcA0BLgcY+TJxsca9O3ofcbvz4/rSVVKOhmbbIycPeyvqaSCWlFGtR59yz0POBeykJ3Vrdqe5V"
        "u46wur/iCzzfng3rG1Qv/qIaOKrjnWW/BuFyR7quyCGJ1t+ZO2i7d7NJBf/A9SgDTdi3meRT9tbdEWZ1aOOV9k0uqPH4L2pEh31f"
        "mrAuaD5MO2G17HqDdqPtjRc7vy+Z4LI01aI6kXRjlPZzV4VX9vH/0BTI0rGduX2NpzpNqaQGlKGC2kibtqM8neAkAh+Tu4Wmk3pM"
        "YI5/NcSs4QZ8QmPqDBhD43lBwOxcQOnlIxCinWpW9B31DQxnAjJOs3mp+2z0CxMKOPk="
    ),
    "pandas 2.2.3, numpy 1.26, protocol 5": (
        "eNptUk1v00AQjZ24UIpoCwKKkBDHcMkZqUigFiGB1SB64hKt1vYmtrJeW/uhEIlKcCC00tw68B/4HfwwmN0kkCJ82H27npl9b+Z9"
        "Sr4ddjvhg/2Wq4KbQd5oMRhrXguE7Zfc8lcBX+KTz3iGfeixeqIRHm2GV8oKrbg0g5orPhHaINw8kk0+PVmeKR3urTKYrDLzNwVh"
        "lznVVvlUCpb5HB98V7m6nS+r107aimvN51SVaZE3yljtcusDkxCIcI1qh5BLTDtf8DjK8CueYj+N0m4aL7DchaSw89YrgfjtU7w4"
        "X/7vQvQRh8Phm1/0hSV9bjG7GJHWiCNQoVEok6TbIqCT97GArZ8/HjeKetS1swYFZcD1zFXEVJGkxMgqF4ELPR/5l9LYr+UO3N6Q"
        "RlDoKkfYYWPd1Jkbj0Oz+t/3lmPprMbTiVc7lgcQV1foP/uHfofIEF8SDdExWv8qxaW9TR4LLwoOrg6xEB+EGWTckKwbTIkZe+3v"
        "iE/5ApI1DiYoyBhY3ir3fbPLO+tW9+jwMLQurgryj22mrFKtswhbjbMB7P25ZFKoiS2X3espb7OhW3i+R/Dgf9Q0VxPP7dTvG3zK"
        "d0NqueXaUsOhZ2zTkk4PBIEo1BR+IfeSB4iY5782OauF5UHQiCbHrSX7nhFhNpZ8EuB9LmUzM6xwLc2VW8EkzwR599y4bPAbkapE"
        "+Q=="
    ),
}


@pytest.mark.parametrize("writer", OLD)
def test_pickles_of_older_pandas_are_read(tmp_path: Path, writer: str) -> None:
    (tmp_path / "a.pkl").write_bytes(zlib.decompress(base64.b64decode(OLD[writer])))
    samples = load(str(tmp_path / "a.pkl"), TOKENIZER)
    assert (samples.ids, samples.references) == (["a", "b"], ["é one", "two"])
    assert samples.tokens.tolist() == [1, 5, 9, 1, 600]


FRAME = pd.DataFrame(PROCESSED)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(FRAME, id="plain"),
        pytest.param(FRAME.astype({"id": object, "output": object}), id="object text"),
        pytest.param(FRAME.astype({"output": pd.StringDtype("python")}), id="python text"),
        pytest.param(FRAME.astype({"output": pd.StringDtype("pyarrow")}), id="pyarrow text"),
        pytest.param(pd.concat([FRAME, FRAME.assign(id=None)])[:2].copy(), id="pieces"),
        pytest.param(FRAME.assign(tok_input=[np.array(ids) for ids in FRAME.tok_input]), id="arrays"),
        pytest.param(FRAME.assign(tok_input=[list(np.array(ids)) for ids in FRAME.tok_input]), id="numpy ints"),
        pytest.param(FRAME.iloc[[1, 0]].sort_index().set_axis([5, 3]), id="numbered rows"),
    ],
)
def test_pickles_of_this_pandas_are_read_in_every_protocol(tmp_path: Path, frame: pd.DataFrame, protocol: int) -> None:
    frame.to_pickle(tmp_path / "a.pkl", protocol=protocol)
    samples = load(str(tmp_path / "a.pkl"), TOKENIZER)
    assert (samples.ids, samples.references) == (["p0", "p1"], ["Zero, é.", "One."])
    assert samples.tokens.tolist() == [1, 1, 300, 5, 1, 900]


def test_texts_that_are_missing_are_none(tmp_path: Path) -> None:
    for storage in ("pyarrow", "python"):
        frame = FRAME.assign(output=pd.array(["one", None], pd.StringDtype(storage)))
        frame.to_pickle(tmp_path / "a.pkl")
        assert refusal(tmp_path / "a.pkl").endswith(
            "row 1: no text in column 'output'; processed rows have tok_input and output."
        )


def test_reading_a_pickle_needs_no_pandas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing that the file names is imported."""
    FRAME.to_pickle(tmp_path / "a.pkl")
    for name in [name for name in sys.modules if name.split(".")[0] == "pandas"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert load(str(tmp_path / "a.pkl"), TOKENIZER).ids == ["p0", "p1"]


# -- hostile pickles -------------------------------------------------------------------------------------------
#
# Each would leave a file, the canary, behind it. Some do so under the plain unpickler too, which shows that the attack
# is one; the others differ between versions of what they call.


def name(module: str, attribute: str) -> bytes:
    return b"c%b\n%b\n" % (module.encode(), attribute.encode())


def dotted(module: str, attribute: str) -> bytes:
    """STACK_GLOBAL, which alone takes a path of attributes."""
    return text(module) + text(attribute) + b"\x93"


def text(value: str) -> bytes:
    return b"X" + len(value.encode()).to_bytes(4, "little") + value.encode()


def call(function: bytes, *args: bytes) -> bytes:
    return function + b"(" + b"".join(args) + b"tR"


def whole(body: bytes) -> bytes:
    return b"\x80\x04" + body + b"."


CODE = "open('canary', 'w').close()"
SHELL = "touch canary"
FILE = ("canary", "w")

# what it does -> (its pickle, whether the plain unpickler is shown to fall for it)
HOSTILE: dict[str, tuple[bytes, bool]] = {
    "a shell": (call(name("os", "system"), text(SHELL)), True),
    "a shell by its other name": (call(name("posix", "system"), text(SHELL)), True),
    "a process": (call(name("subprocess", "getoutput"), text(SHELL)), True),
    "eval": (call(name("builtins", "eval"), text(CODE)), True),
    "exec": (call(name("builtins", "exec"), text(CODE)), True),
    "eval, as Python 2 spelt it": (call(name("__builtin__", "eval"), text(CODE)), False),
    "open": (call(name("builtins", "open"), *map(text, FILE)), True),
    "getattr of an allowed class": (
        call(name("builtins", "getattr"), name("pandas", "DataFrame"), text("to_csv")) + text("canary") + b"\x85R",
        False,
    ),
    "attributes of an allowed class": (call(name("operator", "attrgetter"), text("__class__")), False),
    "a method called by name": (call(name("operator", "methodcaller"), *map(text, FILE)), False),
    "a partial of a shell": (call(call(name("functools", "partial"), name("os", "system"), text(SHELL))), True),
    "pandas.eval": (call(name("pandas", "eval"), text("1 + 1")), False),
    "pandas.read_pickle": (call(name("pandas", "read_pickle"), text("inner.pkl")), True),
    "pandas' file handles": (call(name("pandas.io.common", "get_handle"), *map(text, FILE)), True),
    "pandas.read_csv": (call(name("pandas", "read_csv"), text("inner.pkl")), False),
    "what pandas imports, by its module": (call(name("pandas.core.frame", "sys.exit"), text("gone")), False),
    "what pandas imports, by a path": (call(dotted("pandas", "io.common.os.system"), text(SHELL)), True),
    "a function of pandas, by a path": (call(dotted("pandas", "core.common.pipe"), text("x")), False),
    "a method of an allowed class, by a path": (call(dotted("pandas", "DataFrame.from_dict"), b"}"), False),
    "a dunder of an allowed class, by a path": (call(dotted("numpy", "ndarray.__class__.mro"), b"}"), False),
    "numpy.load": (call(name("numpy", "load"), text("inner.pkl"), b"N", b"\x88"), True),
    "numpy.memmap": (call(name("numpy", "memmap"), text("canary"), text("u1"), text("w+"), b"K\x00", b"K\x01"), True),
    "numpy's runner of strings": (call(name("numpy.testing._private.utils", "runstring"), text(CODE), b"}"), True),
    "numpy's Fortran compiler": (call(name("numpy.f2py", "compile"), text("end")), False),
    "numpy's ctypes": (call(name("numpy.ctypeslib", "load_library"), text("libc"), text("/")), False),
    "a class beside an allowed one": (call(name("pandas.core.frame", "read_csv"), text("inner.pkl")), False),
    "a module that is none": (call(name("pandas.core.frame.DataFrame", "query"), text("x")), False),
    "a name of two lines": (call(dotted("os\nline", "system"), text(SHELL)), False),
    "an instance the old way": (b"(" + text(SHELL) + b"ios\nsystem\n", True),
    "an instance by object": (b"(" + name("os", "system") + text(SHELL) + b"o", True),
}

# Allowed names, put to uses that they are not for.
ODD = {
    "a state where there is none": name("pandas", "DataFrame") + b")\x81}b",
    "a state of another kind": name("pandas", "DataFrame") + b")\x81K\x01b",
    "attributes set on an allowed class": name("pandas", "DataFrame") + b"N}" + text("kind") + text("x") + b"s\x86b",
    "an allowed class set up by itself": name("pandas", "DataFrame") + name("pandas", "DataFrame") + b")\x81b",
    "keywords": name("pandas", "DataFrame") + b")}" + text("a") + b"K\x01s\x92",
    "a function that is none": call(text("x"), text("y")),
    "a frame of no blocks": name("pandas", "DataFrame") + b")\x81}" + text("_mgr") + b"]sb",
    "a frame in itself": name("pandas", "DataFrame") + b")\x81q\x00}" + text("_mgr") + b"h\x00sb",
    "a frame by the old constructor, of itself": call(
        name("copyreg", "_reconstructor"), name("copyreg", "_reconstructor"), name("builtins", "object"), b"N"
    ),
    "a persistent object": text(SHELL) + b"Q",
    "an extension that nobody registered": b"\x82\x7b",
    "an item of the memo that is not there": b"h\x09",
    "a stack without a mark": b"t",
    "bytes beyond the end": b"\x8e" + (1 << 40).to_bytes(8, "little") + b"x",
    "an integer of many digits": b"I" + b"9" * 5000 + b"\n",
}


@pytest.fixture
def canary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a second pickle in it, for those that load another."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "inner.pkl").write_bytes(whole(call(name("os", "system"), text(SHELL))))
    yield tmp_path / "canary"


@pytest.mark.parametrize("attack", HOSTILE)
def test_a_hostile_pickle_is_refused_and_does_not_run(canary: Path, attack: str) -> None:
    body, _ = HOSTILE[attack]
    Path("a.pkl").write_bytes(whole(body))
    Path("b.pkl.gz").write_bytes(gzip.compress(whole(body)))
    for path in ("a.pkl", "b.pkl.gz"):
        assert refusal(path).startswith(f"cannot read {path} as a pickled table: it names ")
    assert not canary.exists()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("attack", [attack for attack, (_, shown) in HOSTILE.items() if shown])
def test_the_plain_unpickler_falls_for_it(canary: Path, attack: str) -> None:
    pickle.loads(whole(HOSTILE[attack][0]))
    assert canary.exists()


@pytest.mark.parametrize("use", ODD)
def test_an_odd_use_of_allowed_names_is_refused(canary: Path, use: str) -> None:
    Path("a.pkl").write_bytes(whole(ODD[use]))
    assert refusal("a.pkl").startswith("cannot read a.pkl as a pickled table: ")
    FRAME.to_pickle("good.pkl")
    assert load("good.pkl", TOKENIZER).ids == ["p0", "p1"]  # nothing is left of it for the next file
    assert not canary.exists()


class Evil:
    """An object that runs a shell when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (SHELL,)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_hostile_cell_of_an_honest_table_is_refused(canary: Path, protocol: int) -> None:
    for frame in (
        FRAME.assign(tok_input=[[1, 2], [3, Evil()]]),
        FRAME.assign(origin=[Evil(), "cot"]),  # in a column that nobody reads
        FRAME.set_axis([Evil(), "b"]),
    ):
        Path("a.pkl").write_bytes(pickle.dumps(frame, protocol=protocol))
        assert refusal("a.pkl").startswith("cannot read a.pkl as a pickled table: it names ")
    assert not canary.exists()


def test_an_extension_code_is_a_name_like_any_other(canary: Path) -> None:
    copyreg.add_extension("os", "system", 123)
    try:
        Path("a.pkl").write_bytes(whole(call(b"\x82\x7b", text(SHELL))))
        assert "it names os.system" in refusal("a.pkl")
    finally:
        copyreg.remove_extension("os", "system", 123)
    assert not canary.exists()


@pytest.mark.parametrize(
    "change",
    [
        (b"\x02\x00\x00\x00\x00\x00\x00\x00", b"\xff\xff\xff\xff\xff\xff\xff\x7f"),
        (b"i8", b"O8"),
        (b"i8", b"V8"),
        (b"large_string", b"large_strong"),
        (b"_mgr", b"_mgx"),
    ],
)
def test_damage_inside_a_table_is_no_crash(tmp_path: Path, change: tuple[bytes, bytes]) -> None:
    """Lengths, types and offsets that lie are noticed, or concern a column that nobody reads."""
    for protocol in (2, 4, 5):
        honest = pickle.dumps(FRAME, protocol=protocol)
        for at in (at for at in range(len(honest)) if honest.startswith(change[0], at)):
            damaged = honest[:at] + change[1] + honest[at + len(change[0]) :]
            (tmp_path / "a.pkl").write_bytes(damaged)
            try:
                load(str(tmp_path / "a.pkl"), TOKENIZER)
            except SetupError:
                continue


def test_any_byte_may_be_wrong() -> None:
    """What is made of a damaged table is a table or a reason."""
    honest = pickle.dumps(FRAME, protocol=4)
    dice = np.random.default_rng(7)
    for _ in range(2000):
        damaged = bytearray(honest)
        damaged[dice.integers(len(honest))] = byte = dice.integers(256)
        if byte == ord("r"):
            continue  # LONG_BINPUT: CPython makes a memo of as many gigabytes as the next four bytes ask for
        try:
            read_frame(io.BytesIO(damaged), tables.WANTED)
        except pickle.UnpicklingError as error:
            assert "\n" not in str(error)


def test_the_list_is_of_exact_pairs() -> None:
    """No path of attributes, and few modules."""
    assert all(attribute.isidentifier() for _, attribute in ALLOWED)
    roots = {module.split(".")[0] for module, _ in ALLOWED}
    assert roots == {"pandas", "numpy", "pyarrow", "builtins", "__builtin__", "_codecs", "copyreg", "copy_reg"}


def test_a_frame_of_pandas_before_1_3_is_read(tmp_path: Path) -> None:
    """Its blocks stand in the state of the manager: arrays and column numbers, under the version of that layout."""

    def packed(value: Any) -> bytes:
        return pickle.dumps(value, protocol=2)[2:-1]  # without its head and its end

    def objects(cells: list[Any], shape: tuple[int, ...]) -> bytes:
        array = np.empty(len(cells), object)
        array[:] = cells
        return packed(array.reshape(shape))

    def index(cells: list[str]) -> bytes:
        state = b"}" + text("data") + objects(cells, (len(cells),)) + b"s" + text("name") + b"Ns"
        return call(name("pandas.core.indexes.base", "_new_Index"), name("pandas.core.indexes.base", "Index"), state)

    block = b"}" + text("values") + objects(["one", "two", [1, 5], [1, 9]], (2, 2)) + b"s"
    block += text("mgr_locs") + call(name("builtins", "slice"), b"K\x00", b"K\x02", b"K\x01") + b"s"
    axes = b"](" + index(["output", "tok_input"]) + index(["a", "b"]) + b"e"
    layout = b"}" + text("axes") + axes + b"s" + text("blocks") + b"](" + block + b"es"
    state = b"(" + axes + b"]]}" + text("0.14.1") + layout + b"st"
    manager = name("pandas.core.internals.managers", "BlockManager") + b")\x81" + state + b"b"
    frame = name("pandas.core.frame", "DataFrame") + b")\x81}" + text("_data") + manager + b"sb"
    (tmp_path / "a.pkl").write_bytes(whole(frame))
    samples = load(str(tmp_path / "a.pkl"), TOKENIZER)
    assert samples.references == ["one", "two"]
    assert samples.tokens.tolist() == [1, 5, 1, 9]
