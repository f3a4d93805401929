"""This package takes people's judgements of answers: generations go in, a page or the terminal asks, and rows of
preferences come out, with how far the labellers agree."""
