"""What a GRPO step would take on up to 64 GPUs: arithmetic from measured parts, no measurement of that.

    python tests/bench/scaling_model.py
    python tests/bench/scaling_model.py --rollout 32=3.6 --rollout 64=4.1 --train 32=2.3 --train 64=4.4 --all-reduce 2=0.001
    python tests/bench/scaling_model.py --measured 'two H100, 1 January 2027' --rollout 64=4.1 --docs

A card has its share c of a step's completions. The parts of a step, one after the other:

    rollout   512 decode steps one after another. Straight lines in c through what was measured; where one share was, the
              other point is FLOOR of it at c = 0, since a decode step reads all weights and starts all kernels for any c
    train     likewise, but in proportion to c where one share was measured, and no less than for the FULL completions of
              one forward pass
    sum       of the gradients over all cards, none of it hidden behind the rest: a ring in each machine, then one of
              machines, each of 2 (n - 1) messages one after another, of an n-th of the bytes. Where the sum over the cards
              of one machine was measured, it is that, and for another number of them as much more or less as by the ring

Prints a step's seconds for a batch that stays and for one that grows with the cards, what the step waits for most, and
the assumptions. --docs also writes that between the marks in docs/scaling.md, with the command that it was made by.
"""

import argparse
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from tests.bench.smoke_spread_pages import marked  # noqa: E402

CARDS = (1, 2, 4, 8, 16, 32, 64)
FLOOR = 0.8
FULL = 8
TASKS, GENERATIONS = 378, 16  # all of MBPP+, and completions of each
PAGE = ROOT / "docs/scaling.md"
BEGIN, END = "<!-- by tests/bench/scaling_model.py --docs -->\n", "<!-- to here -->"
FAST = 50.0  # GB/s: another network, beside the one that is asked for


def line(points: dict[int, float], at: float) -> float:
    """On straight lines through the points, of which there are two at least; beyond them, on the nearest one."""
    known = sorted(points)
    after = next((i for i, x in enumerate(known[1:-1], 1) if at < x), len(known) - 1)
    low, high = known[after - 1], known[after]
    return points[low] + (points[high] - points[low]) * (at - low) / (high - low)


@dataclass(frozen=True)
class Parts:
    """Measured seconds of a rollout and of training by completions on a card, and of a sum by the cards of one machine.

    size: bytes of the gradient. card_link, network: bytes a second. latency: seconds of a message. together: cards of a
    machine.
    """

    rollout: dict[int, float]
    train: dict[int, float]
    sums: dict[int, float]
    size: int
    card_link: float
    network: float
    latency: float
    together: int

    def rollout_seconds(self, share: float) -> float:
        return line(
            self.rollout | ({0: FLOOR * next(iter(self.rollout.values()))} if len(self.rollout) == 1 else {}), share
        )

    def train_seconds(self, share: float) -> float:
        return line(self.train | ({0: 0.0} if len(self.train) == 1 else {}), max(share, FULL))

    def sum_seconds(self, cards: int) -> float:
        inside, machines = min(cards, self.together), -(-cards // self.together)
        return self.inside_seconds(inside) + self.ring(machines, self.network)

    def inside_seconds(self, cards: int) -> float:
        modelled = self.ring(cards, self.card_link)
        if not self.sums or cards == 1:
            return modelled
        nearest = min(self.sums, key=lambda measured: (abs(measured - cards), measured))
        return self.sums[nearest] * modelled / self.ring(nearest, self.card_link)

    def ring(self, members: int, speed: float) -> float:
        return 2 * (members - 1) * (self.size / members / speed + self.latency)

    def step(self, cards: int, completions: int) -> dict[str, float]:
        share = completions / cards
        return {
            "rollout": self.rollout_seconds(share),
            "train": self.train_seconds(share),
            "sum": self.sum_seconds(cards),
        }


def table(parts: Parts, completions: int, grows: bool) -> list[str]:
    """A row of Markdown for each number of cards that has a completion for each."""
    one = sum(parts.step(1, completions).values())
    rows = ["| GPUs | completions a step | rollout | train | sum | step | completions/s beside one GPU | waits for |",
            "|---|---|---|---|---|---|---|---|"]  # fmt: skip
    for cards in CARDS:
        asked = completions * cards if grows else completions
        if asked < cards:
            break
        found = parts.step(cards, asked)
        step = sum(found.values())
        gain = asked / step / (completions / one)
        rows.append(
            f"| {cards} | {asked} | {found['rollout']:.2f} s | {found['train']:.2f} s | {found['sum'] * 1000:.1f} ms "
            f"| {step:.2f} s | {gain:.2f} times | {max(found, key=lambda name: found[name])} |"
        )
    return rows


def listed(points: dict[int, float], unit: str) -> str:
    return ", ".join(f"{seconds:g} s {unit} {count}" for count, seconds in sorted(points.items()))


def given(parts: Parts, measured: str) -> list[str]:
    """What the tables are made from: measured parts, and assumptions."""
    known = f"a rollout takes {listed(parts.rollout, 'of')} completions, training {listed(parts.train, 'on')}"
    if parts.sums:
        known += f", the sum {listed(parts.sums, 'over')} cards of a machine"
    assumed = [f"{parts.together} cards a machine, machines joined by {parts.network / 1e9:g} GB/s"]
    if len(parts.rollout) == 1:
        assumed.insert(0, f"a rollout of few completions takes no less than {FLOOR:g} of that one")
    if not parts.sums:
        assumed.append(f"cards by {parts.card_link / 1e9:g} GB/s")
    return [
        f"- Measured ({measured}): {known}.",
        f"- Assumed: {', '.join(assumed)}, {parts.latency * 1e6:g} µs a message.",
        f"- All {parts.size / 1e6:.0f} MB of gradients are summed, hidden behind nothing.",
    ]


def found(parts: Parts) -> list[str]:
    """What the tables say, in numbers that would else be written by hand."""
    one = sum(parts.step(1, 64).values())
    saved = ", ".join(f"{cards}: {1 - sum(parts.step(cards, 64).values()) / one:.0%}" for cards in CARDS[1:])
    slow, fast = (parts.ring(CARDS[-1] // parts.together, speed) for speed in (parts.network, FAST * 1e9))
    return [
        f"- Of a step of 64 completions so many GPUs save: {saved}.",
        f"- Between the machines of {CARDS[-1]} GPUs the sum takes {slow * 1000:.0f} ms, and by {FAST:g} GB/s "
        f"{fast * 1000:.0f} ms.",
    ]


def text(asked: argparse.Namespace, words: list[str]) -> str:
    """Markdown: what stands between the page's marks."""
    parts = parts_of(asked)
    command = shlex.join(["python", "tests/bench/scaling_model.py", *(word for word in words if word != "--docs")])
    whole = TASKS * GENERATIONS
    return "\n".join(
        [
            f"`{command}`:",
            "",
            *given(parts, asked.measured),
            "",
            "64 completions a step, whatever the cards:",
            "",
            *table(parts, 64, grows=False),
            "",
            "64 completions a step for each card:",
            "",
            *table(parts, 64, grows=True),
            "",
            *found(parts),
            f"- The {TASKS} tasks of MBPP+ have {whole:,} completions: {whole // 64} cards with 64 each see all in a step.",
            "",
        ]
    )


def pair(word: str) -> tuple[int, float]:
    count, _, seconds = word.partition("=")
    if not count.isdigit() or int(count) < 1 or not float(seconds) > 0:
        raise ValueError(word)
    return int(count), float(seconds)


def of_64(word: str) -> tuple[int, float]:
    return pair(word if "=" in word else f"64={word}")


pair.__name__ = "COUNT=SECONDS"  # as argparse names it where it is no such pair
of_64.__name__ = pair.__name__


def parsed(words: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measured", default="one H200, plain TRL, 25 November 2026", metavar="WHERE", help="and when")
    parser.add_argument("--rollout", type=pair, action="append", metavar="COMPLETIONS=SECONDS", help="default: 64=4.1")
    parser.add_argument("--train", type=of_64, action="append", metavar="COMPLETIONS=SECONDS", help="default: 64=4.4")
    parser.add_argument("--all-reduce", type=pair, action="append", metavar="CARDS=SECONDS", help="in one machine")
    parser.add_argument("--parameters", type=int, default=66_060_288, help="trained, 4 bytes each (66,060,288)")
    parser.add_argument("--card-link", type=float, default=300.0, help="GB/s between the cards of a machine (300)")
    parser.add_argument("--network", type=float, default=1.25, help="GB/s between machines (1.25, which is 10 GbE)")
    parser.add_argument("--latency", type=float, default=50.0, help="microseconds of a message (50)")
    parser.add_argument("--together", type=int, default=8, help="cards of a machine (8)")
    parser.add_argument("--docs", action="store_true", help="write docs/scaling.md")
    asked = parser.parse_args(words)
    for count, _ in asked.all_reduce or ():
        if not 2 <= count <= asked.together:
            parser.error(
                f"--all-reduce {count}=...: a sum is measured over 2 to {asked.together} cards, those of a machine"
            )
    return asked


def parts_of(asked: argparse.Namespace) -> Parts:
    return Parts(
        rollout=dict(asked.rollout or [(64, 4.1)]),
        train=dict(asked.train or [(64, 4.4)]),
        sums=dict(asked.all_reduce or ()),
        size=4 * asked.parameters,
        card_link=asked.card_link * 1e9,
        network=asked.network * 1e9,
        latency=asked.latency * 1e-6,
        together=asked.together,
    )


def main() -> None:
    words = sys.argv[1:]
    asked = parsed(words)
    made = text(asked, words)
    print(made, end="")
    if asked.docs:
        PAGE.write_text(marked(PAGE.read_text(), made, BEGIN, END))


if __name__ == "__main__":
    main()
