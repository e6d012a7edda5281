"""A seed fixes everything: what it draws is the same again, and has something of everything."""

from tests.soak.schedule import Kind, Upset, draw

TASKS = 300


def test_same_seed_draws_the_same_schedule_and_another_seed_another() -> None:
    assert draw(4, TASKS) == draw(4, TASKS)
    assert draw(4, 10).tasks == draw(4, TASKS).tasks[:10], "a longer run begins like a shorter one"
    assert draw(4, TASKS).tasks != draw(6, TASKS).tasks


def test_schedule_has_every_kind_of_task_and_every_upset() -> None:
    schedule = draw(4, TASKS)
    assert {task.kind for task in schedule.tasks} == set(Kind)
    assert {plan.upset for plan in schedule.upsets} == set(Upset)


def test_odd_seed_has_no_memory_limit_and_no_task_that_needs_one() -> None:
    schedule = draw(5, TASKS)
    assert not schedule.has_memory_limit
    assert Kind.EAT_MEMORY not in {task.kind for task in schedule.tasks}
