from tokenhub.routing.answers import PAGE, REMEMBERED, Answers


def told(number):
    return 1, f"m{number}", "small", 1.0


def add(answers, *numbers):
    for number in numbers:
        answers.page[f"r-{number}"] = told(number)
        if len(answers.page) >= PAGE:
            answers.turn()


def test_the_latest_are_remembered_and_the_oldest_forgotten_page_by_page():
    answers = Answers()
    add(answers, *range(REMEMBERED + PAGE - 1))
    assert len(answers) == REMEMBERED + PAGE - 1
    assert answers.find("r-0") == told(0)
    add(answers, -1)
    assert len(answers) == REMEMBERED
    assert answers.find(f"r-{PAGE - 1}") is None
    assert answers.find(f"r-{PAGE}") == told(PAGE)
    assert answers.find("r--1") == told(-1)


def test_an_answer_is_replaced_where_it_stands():
    answers = Answers()
    add(answers, *range(2 * PAGE + 5))
    for number in (3, PAGE, 2 * PAGE + 1):
        answers.replace(f"r-{number}", (1, "m", "small", 0.5))
        assert answers.find(f"r-{number}") == (1, "m", "small", 0.5)
    assert len(answers) == 2 * PAGE + 5


def test_the_last_answer_to_a_request_counts():
    answers = Answers()
    add(answers, *range(PAGE))
    answers.page["r-1"] = told(7)
    assert answers.find("r-1") == told(7)


def test_what_is_recalled_is_older_than_the_rest_and_takes_only_free_room():
    answers = Answers()
    add(answers, *range(10))
    answers.recall("r-3", told(99))
    assert answers.find("r-3") == told(3)
    for number in range(2 * REMEMBERED):
        answers.recall(f"old-{number}", told(number))
    assert len(answers) == REMEMBERED + 10
    assert answers.find(f"old-{REMEMBERED - 1}") == told(REMEMBERED - 1)
    add(answers, *range(10, PAGE))
    assert answers.find("r-0") == told(0)
    assert answers.find(f"old-{REMEMBERED - 1}") is None
    assert answers.find("old-0") == told(0)
