"""Columns written piece by piece and mapped equal the pieces put together."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mmrlhf_engine.run.mapped import MappedColumn

VALUES = {
    pa.uint32(): st.one_of(st.none(), st.integers(0, 2**32 - 1)),
    pa.float64(): st.one_of(st.none(), st.floats(allow_nan=False)),
    pa.large_string(): st.one_of(st.none(), st.text(max_size=9)),
    pa.large_list(pa.uint32()): st.one_of(
        st.none(), st.lists(st.integers(0, 2**32 - 1), max_size=4)
    ),
}


@st.composite
def pieces(draw: st.DrawFn) -> tuple[pa.DataType, list[pa.Array]]:
    type = draw(st.sampled_from(list(VALUES)))
    lists = draw(st.lists(st.lists(VALUES[type], max_size=20), max_size=4))
    cut = draw(st.integers(0, 3))
    return type, [pa.array(values, type).slice(min(cut, len(values))) for values in lists]


@given(pieces())
def test_mapped_columns_equal_their_pieces(given: tuple[pa.DataType, list[pa.Array]]) -> None:
    type, arrays = given
    with TemporaryDirectory() as folder, MappedColumn(Path(folder) / "column", type) as column:
        for array in arrays:
            column.append(array)
        mapped = column.map()
        mapped.validate(full=True)
        expected = pa.chunked_array(arrays, type).combine_chunks()
        assert column.rows == len(expected)
        assert mapped.equals(expected)


def test_other_types_are_refused(tmp_path: Path) -> None:
    refused = pytest.raises(TypeError, match="found rows of int64, expected uint32")
    with MappedColumn(tmp_path / "column", pa.uint32()) as column, refused:
        column.append(pa.array([1]))
