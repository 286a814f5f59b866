"""The text of the shipped figures: each rule on invented sentences, and the real text where it is at hand."""

import hashlib
import os
from pathlib import Path

import pytest

from dipsim.workload import Trace
from dipsim.workload.wikitext import MEASURED, plain

END = " So it ends . "  # a second sentence, without which a paragraph is dropped


@pytest.mark.parametrize(
    ("tokenised", "mended"),
    [
        ("A half @-@ full 1 @,@ 500 @.@ 5 l jar @ home .", "A half-full 1,500.5 l jar @ home."),
        ('He said " yes " , then " no " .', 'He said "yes", then "no".'),
        ('It was " good .', 'It was "good.'),
        ('A " and " b " end .', 'A "and" b "end.'),
        ("Wait ! A b , c ; d : e ? 5 % ( f ) [ g ] .", "Wait! A b, c; d: e? 5% (f) [g]."),
        ("It 's I 'm we 're he 'd you 'll I 've don 't .", "It's I'm we're he'd you'll I've don't."),
        ("The dogs ' $ 5 and Xi 'an 'tis 3 – 4 / 5 .", "The dogs ' $ 5 and Xi 'an 'tis 3 – 4 / 5."),
        ("At St. Ives and No. 7 .", "At St. Ives and No. 7."),
    ],
)
def test_spaces_and_quotes_are_mended(tokenised, mended):
    assert plain(f" {tokenised}{END}\n") == f"{mended} So it ends.\n"


def test_headings_rare_words_and_lonely_sentences_go():
    one, two, rare = "First one .", "Second one !", "A <unk> one ?"
    assert (
        plain(f" = Title . And . = \n \n {one} {rare} {two} \n {rare} {one} \n {one} \n") == "First one. Second one!\n"
    )
    assert plain(f" {one} At St. <unk> it ended . {two} \n") == "First one. Second one!\n"
    assert plain(f" {rare} {rare} \n\n = = A = = \n") == ""


def test_quotes_alternate_over_what_is_left_of_a_paragraph():
    assert plain(' One . <unk> said " a . " Two " b " .\n') == 'One. "Two" b ".\n'
    assert plain(' One . Two . "\n One " a .\n Two " b .\n') == 'One. Two. "\n'


def test_the_shipped_trace_is_of_the_text_that_is_known():
    assert MEASURED[Trace.open("smollm2-135m").header.source["text_sha256"]] == "test"


@pytest.mark.parametrize("split", ["test", "valid"])
def test_the_published_text_becomes_the_measured_one(split):
    """With the folder of the tokenised splits in DIPSIM_WIKITEXT (docs/how-to/text.md)."""
    if "DIPSIM_WIKITEXT" not in os.environ:
        pytest.skip("DIPSIM_WIKITEXT is not set")
    text = plain((Path(os.environ["DIPSIM_WIKITEXT"]) / f"{split}.txt").read_text(encoding="utf-8"))
    assert MEASURED[hashlib.sha256(text.encode()).hexdigest()] == split
