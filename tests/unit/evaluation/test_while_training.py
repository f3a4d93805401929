"""What a model in training is asked of a validation row."""

import numpy as np
import pytest

from scaleup.data.tokenization import IGNORE, PreferenceTokens, Tokens, UnpairedTokens
from scaleup.evaluation.while_training import Question, question_of


def tokens(ids, labels):
    return Tokens(np.array(ids, np.int32), np.array(labels, np.int32))


@pytest.mark.parametrize(
    ("labels", "question"),
    [
        ([IGNORE, IGNORE, 3, 4], Question([1, 2], [3, 4])),
        ([IGNORE, 2, IGNORE, 4], Question([1, 2, 3], [4])),
        ([IGNORE, 2, 3, IGNORE], Question([1], [2, 3])),
        ([1, 2, 3, 4], None),
    ],
    ids=["a prompt", "turns: the last", "behind it something that is not learned", "no prompt"],
)
def test_the_last_part_that_is_learned_is_the_answer(labels, question):
    assert question_of(tokens([1, 2, 3, 4], labels), "causal_lm") == question


def test_an_encoder_s_text_is_the_prompt():
    assert question_of(tokens([1, 2], [3, 4, 5]), "seq2seq_lm") == Question([1, 2], [3, 4, 5])


def test_of_preferences_the_better_response_is_the_answer():
    better, worse = tokens([1, 2, 3], [IGNORE, 2, 3]), tokens([1, 4], [IGNORE, 4])
    assert question_of(PreferenceTokens(better, worse), "causal_lm") == Question([1], [2, 3])
    assert question_of(UnpairedTokens(better, True), "causal_lm") == Question([1], [2, 3])
    assert question_of(UnpairedTokens(worse, False), "causal_lm") is None
