"""What is taken of what a model writes."""

from __future__ import annotations

import pytest

from cedkv.data.own.questions import answer_in, questions_in, worth_asking

MILL = "Mara keeps bees behind the old mill. Her dog is called Bruno. The harbour opens at 7."


def test_lines_that_are_one_question_are_questions() -> None:
    said = (
        "Here are some questions:\n1. What is Mara's dog called?\n2) Where does Mara keep bees? \n- Q: When does the harbour open?\n"
        "Who? \nIs it old? Or new?\nWhat is the name of the dog? A: Bruno\nQuestion 3: What does Mara keep behind the mill?\n16.\n"
        "Mara keeps what?!\n?\n" + "very " * 50 + "long?"
    )
    assert questions_in(said) == [
        "What is Mara's dog called?",
        "Where does Mara keep bees?",
        "When does the harbour open?",
        "What does Mara keep behind the mill?",
    ]


def test_questions_name_something_of_the_document_and_nearly_repeat_none() -> None:
    long = "Where behind the old mill and close to the harbour with the boats does Mara keep all of her bees in the cold winter?"
    asked = [
        "What is Mara's dog called?",
        "what is Mara's dog called",
        "What is the capital of Norway?",
        "What is it that she has there?",
        long,
        long.replace("cold", "long"),
        "When does the harbour open?",
    ]
    assert worth_asking(asked, MILL) == [asked[0], asked[4], asked[6]]
    assert worth_asking([], MILL) == []


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        (" Bruno\n", " Bruno"),
        ("Bruno\nQuestion: When", "Bruno"),
        (" Bruno. Question: When does the", " Bruno"),
        (" behind the old mill  \n", " behind the old mill"),
        (" At 7.\n", " At 7"),
        (" Bruno is what her", None),  # was kept from ending
        (" Rex\n", None),
        (" Mara's dog\n", None),  # the question's own words
        ("\n Bruno\n", None),
        ("", None),
        (" Mara keeps bees behind the old mill; her dog is called Bruno; the\n", None),  # too long
    ],
)
def test_an_answer_is_a_few_words_of_the_document_and_an_end(said: str, answer: str | None) -> None:
    assert answer_in(said, "What is Mara's dog called?", MILL) == answer
