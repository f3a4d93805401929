"""The wordings of FLAN (Wei et al. 2022; github.com/google-research/FLAN, flan/templates.py), by its names of tasks:
FLAN-T5 has been taught with them.

Of FLAN's ten wordings a task those are here that ask for the answer; others turn the task around, and some have a stray
letter. FLAN lists what may be answered where a task has few answers (`OPTIONS`)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """Holds a task's wordings over columns, the column of its answer, and the answers that all rows share, in FLAN's
    order."""

    answer: str
    wordings: tuple[str, ...]
    options: tuple[str, ...] = ()

    @property
    def prompts(self) -> tuple[str, ...]:
        """Returns the wordings with the answers that may be given."""
        shown = "OPTIONS:\n- " + "\n- ".join(self.options)
        return tuple(wording.replace("{options_}", shown) for wording in self.wordings)


SENTIMENTS = ("negative", "positive")
YES_OR_NO = ("yes", "no")

FLAN: dict[str, Task] = {
    "samsum": Task(
        "summary",
        (
            "{dialogue}\n\nBriefly summarize that dialogue.",
            "Here is a dialogue:\n{dialogue}\n\nWrite a short summary!",
            "Dialogue:\n{dialogue}\n\nWhat is a summary of this dialogue?",
            "{dialogue}\n\nWhat was that dialogue about, in two sentences or less?",
            "Here is a dialogue:\n{dialogue}\n\nWhat were they talking about?",
            "Dialogue:\n{dialogue}\nWhat were the main points in that conversation?",
            "Dialogue:\n{dialogue}\nWhat was going on in that conversation?",
        ),
    ),
    "cnn_dailymail": Task(
        "highlights",
        (
            "Write highlights for this article:\n\n{text}",
            "Write some highlights for the following article:\n\n{text}",
            "{text}\n\nWrite highlights for this article.",
            "{text}\n\nWhat are highlight points for this article?",
            "{text}\nSummarize the highlights of this article.",
            "{text}\nWhat are the important parts of this article?",
            "{text}\nHere is a summary of the highlights for this article:",
        ),
    ),
    "xsum": Task(
        "summary",
        (
            "Summarize:\n\n{text}",
            "Summarize this article:\n\n{text}",
            "Summarize this article in one sentence.\n\n{text}",
            "{text}\nWhat is a summary of this text?",
            "{text}\nWhat was that article about?",
            "{text}\n\nThis article was about:",
            "Article:{text}\n\nA summary of the above article is?",
            "Article:{text}\n\nSummarize the main points of that article.",
        ),
    ),
    "imdb_reviews": Task(
        "answer",
        (
            "{text}\nWhat is the sentiment of this review?\n{options_}",
            "{text}\nWould you say this review is positive or negative?\n{options_}",
            "{text}\nHow would you describe the sentiment of this review?\n{options_}",
            "{text}\n\nIs the sentiment of this review positive or negative?\n{options_}",
            "{text}\n\nDid this review think positively or negatively of the movie?\n{options_}",
            "Please tell me the sentiment of the following review: {text}\n{options_}",
            "Determine the sentiment:\n\n{text}\n{options_}",
        ),
        SENTIMENTS,
    ),
    "sst2": Task(
        "answer",
        (
            "Review:\n{sentence}\nIs this movie review sentence negative or positive?\n{options_}",
            "Short movie review: {sentence}\nDid the critic thinking positively or negatively of the movie?\n"
            "{options_}",
            "Sentence from a movie review: {sentence}\nWas the movie seen positively or negatively based on the "
            "preceding review?\n\n{options_}",
            '"{sentence}"\nHow would the sentiment of this sentence be perceived?\n\n{options_}',
            "Is the sentiment of the following sentence positive or negative?\n{sentence}\n{options_}",
            "What is the sentiment of the following movie review sentence?\n{sentence}\n{options_}",
            "Would the following phrase be considered positive or negative?\n\n{sentence}\n{options_}",
            "Does the following review have a positive or negative opinion of the movie?\n\n{sentence}\n{options_}",
        ),
        SENTIMENTS,
    ),
    "rte": Task(
        "answer",
        (
            '{premise}\n\nBased on the paragraph above can we conclude that "{hypothesis}"?\n\n{options_}',
            "{premise}\n\nBased on that paragraph can we conclude that this sentence is true?\n{hypothesis}\n\n"
            "{options_}",
            "{premise}\n\nCan we draw the following conclusion?\n{hypothesis}\n\n{options_}",
            "{premise}\nDoes this next sentence follow, given the preceding text?\n{hypothesis}\n\n{options_}",
            "{premise}\nCan we infer the following?\n{hypothesis}\n\n{options_}",
            "Determine if the sentence is true based on the text below:\n{hypothesis}\n\n{premise}\n{options_}",
        ),
        YES_OR_NO,
    ),
    "mnli": Task(
        "answer",
        (
            "Premise: {premise}\n\nHypothesis: {hypothesis}\n\nDoes the premise entail the hypothesis?\n\n{options_}",
            "Premise: {premise}\nHypothesis: {hypothesis}\nIs the hypothesis entailed by the premise?\n{options_}",
            "Here is a premise:\n{premise}\n\nHere is a hypothesis:\n{hypothesis}\n\nIs it possible to conclude that "
            "if the premise is true, then so is the hypothesis?\n{options_}",
            "Sentence 1: {premise}\n\nSentence 2: {hypothesis}\nIs this second sentence entailed by the first sentence?"
            "\n\n{options_}",
            "Sentence 1: {premise}\n\nSentence 2: {hypothesis}\n\nIf the first sentence is true, then is the second "
            "sentence true?\n{options_}",
            'Based on the premise "{premise}", can we conclude the hypothesis "{hypothesis}" is true?\n\n{options_}',
            'Premise: "{premise}" If this premise is true, what does that tell us about whether it entails the '
            'hypothesis "{hypothesis}"?\n\n{options_}',
            'Premise:\n"{premise}" Based on this premise, is the hypothesis "{hypothesis}" true?\n{options_}',
            'If {premise}, can we conclude that "{hypothesis}"?\n{options_}',
            '{premise}\n\nDoes it follow that "{hypothesis}"?\n{options_}',
        ),
        ("yes", "it is not possible to tell", "no"),
    ),
    "glue_mrpc": Task(
        "answer",
        (
            "Here are two sentences:\n{sentence1}\n{sentence2}\nDo they have the same meaning?\n{options_}",
            "Here are two sentences:\n\n{sentence1}\n\n{sentence2}\nAre the two sentences saying the same thing?\n"
            "{options_}",
            "{sentence1}\n\n{sentence2}\n\nDo the above sentences mean the same thing?\n{options_}",
            "{sentence1}\n\n{sentence2}\n\nPlease tell me if the sentences above mean the same.\n{options_}",
            "{sentence1}\n{sentence2}\nAre these sentences conveying the same meaning?\n{options_}",
            "{sentence1}\n{sentence2}\nIf the first sentence is true, is the second one also true?\n{options_}",
            "{sentence1}\n{sentence2}\nAre these two sentences paraphrases of each other?\n{options_}",
            "Do the following two sentences have the same meaning?\n{sentence1}\n{sentence2}\n\n{options_}",
            "Do these two sentences mean the same thing?\n{sentence1}\n{sentence2}\n\n{options_}",
            "Do these sentences have the same meaning?\n{sentence1}\n{sentence2}\n\n{options_}",
        ),
        ("no", "yes"),
    ),
    "wmt16_translate": Task(
        "sent2",
        (
            "{sent1}\n\nTranslate to {lang2}",
            "Translate to {lang2}:\n\n{sent1}",
            "Translate the following sentence to {lang2}:\n{sent1}",
            'How is "{sent1}" said in {lang2}?',
            'Translate "{sent1}" to {lang2}?',
        ),
    ),
    "squad_v1": Task(
        "answer",
        (
            "Read this and answer the question\n\n{context}\n\n{question}",
            "{context}\n{question}",
            "Answer a question about this article:\n{context}\n{question}",
            "Here is a question about this article: {context}\nWhat is the answer to this question: {question}",
            "Article: {context}\n\nQuestion: {question}",
            "Article: {context}\n\nNow answer this question: {question}",
        ),
    ),
    "trivia_qa": Task(
        "answer",
        (
            "Please answer this question: {question}",
            "{question}",
            "Write the answer: {question}",
            "What is the answer: {question}",
            "Answer this question.\n\n{question}",
            "Answer the following question. {question}",
            "Question: {question}\nAnswer:",
            "{question}???",
            "Trivia question: {question}\nAnd the answer is?",
            "{question}\nWhat is the answer?",
        ),
    ),
}
