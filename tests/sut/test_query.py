"""The travelling objects: token ids are int32 everywhere, queries are told apart by identity."""

from __future__ import annotations

import numpy as np

from sut.query import NO_TOKENS, Query, as_tokens


def test_token_ids_become_flat_int32():
    ids = as_tokens((5, 6, 7))
    assert ids.dtype == np.int32, "MLCommons' scripts read answers as int32"
    assert ids.shape == (3,)
    assert ids.tolist() == [5, 6, 7]


def test_no_tokens_is_an_empty_int32_array():
    assert NO_TOKENS.dtype == np.int32
    assert NO_TOKENS.shape == (0,)
    assert as_tokens([]).dtype == np.int32


def test_queries_with_the_same_content_are_different_queries():
    one, other = (Query(1, 2, NO_TOKENS, True, 3, 0.0) for _ in range(2))
    assert one != other
    assert len({one, other}) == 2
