"""tests/bench/scaling_model.py: measured parts come back as they were given, and docs/scaling.md has what it says."""

import re
import shlex
import sys

import pytest

from tests.bench import scaling_model as model


def parts(*words: str) -> model.Parts:
    return model.parts_of(model.parsed(list(words)))


def test_the_pages_block_is_what_its_own_command_makes():
    page = model.PAGE.read_text()
    _, _, block = page.partition(model.BEGIN)
    command = re.match(r"`python tests/bench/scaling_model\.py ?(.*)`:\n", block)
    assert command
    words = shlex.split(command[1])
    assert model.marked(page, model.text(model.parsed(words), words), model.BEGIN, model.END) == page


def test_what_was_measured_comes_back_and_between_is_a_straight_line():
    found = parts(
        "--rollout", "16=3", "--rollout", "32=3.2", "--rollout", "64=4", "--train", "32=2.5", "--train", "64=4.5"
    )
    assert [found.rollout_seconds(share) for share in (16, 32, 64)] == [3, pytest.approx(3.2), 4]
    assert found.rollout_seconds(24) == pytest.approx(3.1)
    assert found.rollout_seconds(128) == pytest.approx(5.6), "on the last line"
    assert found.rollout_seconds(8) == pytest.approx(2.9), "on the first"
    assert [found.train_seconds(share) for share in (64, 32, 48)] == [4.5, 2.5, pytest.approx(3.5)]
    assert found.train_seconds(1) == found.train_seconds(model.FULL)


def test_one_measured_share_is_enough():
    found = parts("--rollout", "64=4", "--train", "6.4")
    assert (found.rollout_seconds(64), found.rollout_seconds(0)) == (4, pytest.approx(3.2))
    assert (found.train_seconds(64), found.train_seconds(16)) == (pytest.approx(6.4), pytest.approx(1.6))


def test_a_measured_sum_stands_for_its_cards_and_the_ring_for_the_rest():
    plain, found = parts(), parts("--all-reduce", "2=0.5", "--all-reduce", "8=0.9")
    assert (found.sum_seconds(1), found.sum_seconds(2), found.sum_seconds(8)) == (0, 0.5, pytest.approx(0.9))
    times = plain.sum_seconds(4) / plain.sum_seconds(2)
    assert found.sum_seconds(4) == pytest.approx(0.5 * times), "as much more than the nearest"
    between = plain.sum_seconds(16) - plain.sum_seconds(8)
    assert found.sum_seconds(16) == pytest.approx(0.9 + between), "machines are joined by --network"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--all-reduce", "16=0.1"], "--all-reduce 16=...: a sum is measured over 2 to 8 cards"),
        (["--all-reduce", "1=0.1"], "--all-reduce 1=...: a sum is measured over 2 to 8 cards"),
        (["--rollout", "64"], "argument --rollout: invalid COUNT=SECONDS value: '64'"),
        (["--rollout", "0=4"], "argument --rollout: invalid COUNT=SECONDS value: '0=4'"),
        (["--train", "fast"], "argument --train: invalid COUNT=SECONDS value: 'fast'"),
        (["--train", "64=-1"], "argument --train: invalid COUNT=SECONDS value: '64=-1'"),
    ],
)
def test_a_part_that_is_none_is_refused_by_its_flag(capsys, words, said):
    with pytest.raises(SystemExit):
        model.parsed(words)
    assert said in capsys.readouterr().err


def test_docs_writes_the_block_with_its_command_and_nothing_else(tmp_path, monkeypatch, capsys):
    page = tmp_path / "scaling.md"
    page.write_text(f"before\n{model.BEGIN}old\n{model.END}\nafter\n")
    monkeypatch.setattr(model, "PAGE", page)
    words = ["--measured", "two cards, today", "--all-reduce", "2=0.002"]
    monkeypatch.setattr(sys, "argv", ["scaling_model.py", *words, "--docs"])
    model.main()
    text = page.read_text()
    assert text.startswith(
        f"before\n{model.BEGIN}`python tests/bench/scaling_model.py --measured 'two cards, today' --all-reduce"
    )
    assert text.endswith(f"{model.END}\nafter\n")
    assert "- Measured (two cards, today): a rollout takes 4.1 s of 64 completions" in text
    assert "the sum 0.002 s over 2 cards" in text and "--docs`" not in text and "cards by 300 GB/s" not in text
    assert capsys.readouterr().out in text
