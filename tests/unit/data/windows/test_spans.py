import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from timellama_dist.data.windows.spans import RowSpans

first_rows = st.lists(st.integers(-5, 200), min_size=1, max_size=20)


@given(first_rows=first_rows, length=st.integers(1, 12))
def test_spans_hold_each_row_that_a_window_needs_once(first_rows, length):
    spans = RowSpans.of_windows(np.array(first_rows), length)

    needed = {first + row for first in first_rows for row in range(length)}
    assert spans.rows().tolist() == sorted(needed)
    assert len(spans) == len(needed)


@given(first_rows=first_rows, length=st.integers(1, 12))
def test_places_say_where_a_row_lies_among_them(first_rows, length):
    spans = RowSpans.of_windows(np.array(first_rows), length)

    assert spans.rows()[spans.places(np.array(first_rows))].tolist() == first_rows


@given(first_rows=first_rows, length=st.integers(1, 12), data=st.data())
def test_a_part_is_the_rows_at_its_places(first_rows, length, data):
    spans = RowSpans.of_windows(np.array(first_rows), length)
    first = data.draw(st.integers(0, len(spans) - 1))
    last = data.draw(st.integers(first + 1, len(spans)))
    part = spans.part(first, last)

    assert part.rows().tolist() == spans.rows()[first:last].tolist()
    assert len(part) == last - first


def test_no_windows_need_no_rows():
    assert RowSpans.of_windows(np.empty(0, np.int64), 5).rows().tolist() == []
