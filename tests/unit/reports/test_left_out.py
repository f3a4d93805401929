from scaleup.reports.left_out import length_sentence


def test_rows_that_were_too_long():
    assert length_sentence({"rows_left_out": 3}, 256) == ""
    many = length_sentence({"rows_too_long": 188_488}, 256)
    assert many.startswith("188,488 rows were longer than data.max_length (256) and left out -> raise it")
    assert length_sentence({"rows_too_long": 1}, 256).startswith("1 row was longer than")
