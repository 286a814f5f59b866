"""WikiText-2 as it is published, made into the plain text that the shipped figures were measured on.

The published text (Merity et al. 2016) is tokenised: a paragraph a line, a space around each token, `<unk>` for a rare
word, ` @-@ ` for a hyphen within one. Every step here is a rule of the text that was measured, also where it is coarse:
the quotes of a paragraph alternate even if one of them was lost with its sentence.
"""

from __future__ import annotations

import re

MEASURED = {  # SHA-256 of the plain text of each split that something shipped was measured on or learned from
    "66c9a2e06d904f1109178a00db3f2db493f163546380238793af44fbe5d32698": "test",
    "b468bc7a22041bf8b2abf00a2788f84b8492218183b878be07980d50aa38f720": "valid",
}
SENTENCE_END = re.compile(r"(?<= [.!?]) ")
MENDED = (  # in this order
    (re.compile(r" @([-,.])@ "), r"\1"),  # 52 @.@ 9
    (re.compile(r'" ?([^"]*?) ?("|$)'), r'"\1\2'),  # odd quotes open, even ones close
    (re.compile(r" ([.,;:!?)\]%])"), r"\1"),
    (re.compile(r"([(\[]) "), r"\1"),
    (re.compile(r" ('(?:s|t|m|d|re|ve|ll)\b)"), r"\1"),  # don 't, he 's
)


def plain(tokenised: str) -> str:
    """The plain text of a tokenised split, a paragraph a line; empty if nothing is left.

    Headings are dropped, and so are sentences with `<unk>`. A paragraph is kept if two of its sentences are.
    """
    paragraphs = (line.strip() for line in tokenised.split("\n"))
    return "".join(_plain(paragraph) for paragraph in paragraphs if not paragraph.startswith("="))


def _plain(paragraph: str) -> str:
    kept = [sentence for sentence in SENTENCE_END.split(paragraph) if "<unk>" not in sentence]
    if len(kept) < 2:
        return ""
    text = " ".join(kept)
    for pattern, mended in MENDED:
        text = pattern.sub(mended, text)
    return f"{text}\n"
