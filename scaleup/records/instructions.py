"""Named instruction templates, FLAN's own and others in its manner: each task in several phrasings, so that a model
learns the task and not one wording of it. A row's index chooses its phrasing."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

from scaleup.records.flan import FLAN, Task
from scaleup.records.template import Template


@dataclass(frozen=True)
class Instruction:
    """Holds the columns a task needs and its (prompt, completion) phrasings; each phrasing uses every column.

    A completion starts with a space where its prompt does not end with one or with a line break.
    """

    columns: tuple[str, ...]
    phrasings: tuple[tuple[str, str], ...]


def phrasing_of(index: int, num_phrasings: int) -> int:
    """Returns which of three or more phrasings a row uses: always the same one, and never that of the row before or
    after."""
    if index % 2 == 0:
        return _hash(index) % num_phrasings
    neighbours = {phrasing_of(index - 1, num_phrasings), phrasing_of(index + 1, num_phrasings)}
    free = [choice for choice in range(num_phrasings) if choice not in neighbours]
    return free[_hash(index) % len(free)]


def _hash(index: int) -> int:
    # Not the index itself: rows often alternate in some property, and the wording would come to predict it.
    return zlib.crc32(str(index).encode())


OWN: dict[str, Instruction] = {
    "summarize": Instruction(
        columns=("document", "summary"),
        phrasings=(
            ("Summarize the text below.\n\n{document}\n\nSummary:", " {summary}"),
            ("{document}\n\nIn short:", " {summary}"),
            ("Here is a document:\n{document}\n\nWhat are its main points?\n", "{summary}"),
            ("Read this and give only what matters most.\n\n{document}\n\nThe gist:", " {summary}"),
            ("{document}\n\nWrite a brief summary of the passage above.\n", "{summary}"),
            ("A reader has no time for the following text:\n\n{document}\n\nTell them what it says.\n", "{summary}"),
        ),
    ),
    "sentiment": Instruction(
        columns=("text", "label"),
        phrasings=(
            ("Review: {text}\nSentiment:", " {label}"),
            ("What feeling does this text express?\n\n{text}\n\nAnswer:", " {label}"),
            ("{text}\n\nHow would you describe the tone of the text above?\n", "{label}"),
            ("Somebody wrote: {text}\nTheir opinion is", " {label}"),
            ("Classify the sentiment of the following.\nText: {text}\nClass:", " {label}"),
            ("Is the writer pleased or not?\n{text}\nVerdict:", " {label}"),
        ),
    ),
    "translate": Instruction(
        columns=("source", "target", "source_language", "target_language"),
        phrasings=(
            ("Translate from {source_language} to {target_language}: {source}\nTranslation:", " {target}"),
            ("{source_language}: {source}\n{target_language}:", " {target}"),
            ("How do you say this {source_language} sentence in {target_language}?\n{source}\n", "{target}"),
            ("This is written in {source_language}:\n{source}\n\nThe same in {target_language}:\n", "{target}"),
            ("Put the {source_language} text into {target_language}.\n\nText: {source}\nAnswer:", " {target}"),
        ),
    ),
    "question_answering": Instruction(
        columns=("context", "question", "answer"),
        phrasings=(
            ("{context}\n\nQuestion: {question}\nAnswer:", " {answer}"),
            ("Use the passage to answer.\n\nPassage: {context}\nQuestion: {question}\nAnswer:", " {answer}"),
            ("Read this:\n{context}\n\nNow tell me: {question}\n", "{answer}"),
            ("Question: {question}\nThe answer is in this text:\n{context}\n\nIt is:", " {answer}"),
            ("{context}\n\nGoing by the text above, {question}\n", "{answer}"),
        ),
    ),
    "closed_book_qa": Instruction(
        columns=("question", "answer"),
        phrasings=(
            ("Question: {question}\nAnswer:", " {answer}"),
            ("{question}\n", "{answer}"),
            ("From what you know, answer this: {question}\n", "{answer}"),
            ("Somebody asks: {question}\nYou reply:", " {answer}"),
            ("Give a short and correct answer.\n\n{question}\n\nAnswer:", " {answer}"),
        ),
    ),
    "paraphrase": Instruction(
        columns=("text", "paraphrase"),
        phrasings=(
            ("Say this in other words: {text}\n", "{paraphrase}"),
            ("Text: {text}\nParaphrase:", " {paraphrase}"),
            ("Rewrite the sentence and keep its meaning.\n\n{text}\n\nRewritten:", " {paraphrase}"),
            ("{text}\nAnother way to put it:", " {paraphrase}"),
            ("How else could one express the following?\n{text}\n", "{paraphrase}"),
        ),
    ),
    "natural_language_inference": Instruction(
        columns=("premise", "hypothesis", "label"),
        phrasings=(
            ("Premise: {premise}\nHypothesis: {hypothesis}\nRelation:", " {label}"),
            ("Suppose that {premise}\nWhat does this say of the claim that {hypothesis}\nAnswer:", " {label}"),
            ("{premise}\n\nGiven the above, how does this follow: {hypothesis}\n", "{label}"),
            ("Text: {premise}\nClaim: {hypothesis}\nThe text's bearing on the claim:", " {label}"),
            ("Does the first sentence support the second?\n1. {premise}\n2. {hypothesis}\nAnswer:", " {label}"),
        ),
    ),
}


def _of_flan(task: Task) -> Instruction:
    """Returns a task of FLAN. FLAN's answers begin with no space, which an encoder-decoder's target has no need of;
    behind a causal model's prompt one is needed."""
    columns = dict.fromkeys(field for prompt in task.prompts for field in Template(prompt).fields)
    return Instruction((*columns, task.answer), tuple((prompt, f" {{{task.answer}}}") for prompt in task.prompts))


INSTRUCTIONS = OWN | {name: _of_flan(task) for name, task in FLAN.items()}
"""Maps the names of templates, our own and FLAN's, to what they are."""
