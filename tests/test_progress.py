from __future__ import annotations

import io

from rich.console import Console

from model_store.builder.progress import ConsoleProgress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_log_gets_a_line_now_and_then_with_the_time_left_and_one_at_the_end() -> None:
    out, clock = io.StringIO(), Clock()
    progress = ConsoleProgress(Console(file=out, width=200), clock)
    with progress.meter("theseus", 100) as meter:
        for done in range(10, 101, 10):
            clock.now += 10
            meter.advance(done, "dev 0.9")
    assert out.getvalue().splitlines() == [
        "theseus: 20/100, about 80 s left dev 0.9",
        "theseus: 40/100, about 60 s left dev 0.9",
        "theseus: 60/100, about 40 s left dev 0.9",
        "theseus: 80/100, about 20 s left dev 0.9",
        "theseus: 100/100 dev 0.9",
    ]


def test_a_resumed_step_does_not_count_what_an_earlier_run_did() -> None:
    out, clock = io.StringIO(), Clock()
    progress = ConsoleProgress(Console(file=out, width=200), clock)
    with progress.meter("theseus", 100) as meter:
        meter.advance(60)
        clock.now = 20
        meter.advance(70)
    assert out.getvalue() == "theseus: 70/100, about 60 s left\n"


def test_a_terminal_gets_one_bar() -> None:
    out = io.StringIO()
    progress = ConsoleProgress(Console(file=out, force_terminal=True, width=120))
    with progress.meter("fine_tune", 4) as meter:
        meter.advance(4, "dev 0.9")
    assert "fine_tune" in out.getvalue()
    assert "4/4" in out.getvalue()


def test_a_note_is_one_line_whatever_it_holds() -> None:
    out = io.StringIO()
    ConsoleProgress(Console(file=out, width=20)).note("[bold]not markup[/bold] and longer than the console")
    assert out.getvalue() == "[bold]not markup[/bold] and longer than the console\n"
