"""The words of text that is not Chinese, as CMRC 2018's script splits it: by the word tokenizer of NLTK.

The rules are the Penn Treebank's: punctuation and clitics (`'s`, `n't`) become words of their own, while a number such
as 6.40 or 2,052 stays whole. Each rule inserts spaces, and at the end every space separates two words. The order of the
rules matters.
"""

from __future__ import annotations

import re

PADDED = r" \g<0> "
# Each is split in two, even without an apostrophe.
CONTRACTIONS = (
    *(r"\b(can)(not)\b", r"\b(d)('ye)\b", r"\b(gim)(me)\b", r"\b(gon)(na)\b", r"\b(got)(ta)\b", r"\b(lem)(me)\b"),
    *(r"\b(more)('n)\b", r"\b(wan)(na)(?=\s)", r" ('t)(is)\b", r" ('t)(was)\b"),
)
RULES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # Opening quotes. Straight ones become ``, so that they differ from closing ones, which become ''.
        (r"[«‘„]", PADDED),
        (r'^"', " `` "),
        (r"([ (\[{<])(?:\"|'')", r"\1 `` "),
        (r"(?i)'(?!re|ve|ll|[mtsdn])(?=\w\b)", "' "),
        # Punctuation. A period is a word only at the end of the text, a comma only if no digit follows.
        (r"([^.])\.([\])}>\"'» ]*+)\s*$", r"\1 . \2 "),
        (r",(\D|$)", r" , \1"),
        (r"\.{2,}|[;@#$%&?!]", PADDED),
        (r"([^'])' ", r"\1 ' "),
        (r"[()\[\]{}<>]", PADDED),
        # Closing quotes and clitics.
        (r"^|$", " "),
        (r"»|''", PADDED),
        (r'"', " '' "),
        (r"\s+", " "),
        (r"([^' ])('[smd]?) ", r"\1 \2 "),
        (r"([^' ])('ll|'re|'ve|n't) ", r"\1 \2 "),
        *((f"(?i){pattern}", r" \1 \2 ") for pattern in CONTRACTIONS),
    )
)


def split_words(text: str) -> list[str]:
    """Return the words of a text in lower case, without the punctuation that CMRC 2018's script removes before.

    Unlike the script, this does not look for sentences first. The only difference is a period that ends a sentence
    within the text: here it stays part of its word. Which periods end one is no rule but a trained model of NLTK, lists
    of abbreviations and of the words around them, which this package does not contain. In Chinese texts nearly all
    periods before a space follow an initial or an abbreviation (`h. mcarthur`, `st. john`), where the script does not
    split either.
    """
    for pattern, replacement in RULES:
        text = pattern.sub(replacement, text)
    return text.split()
