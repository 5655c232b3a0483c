"""What a GRPO step would take on up to 64 GPUs: arithmetic from measured parts, no measurement of that.

    python tests/bench/scaling_model.py
    python tests/bench/scaling_model.py --rollout 32=3.6 --rollout 64=4.1 --train 4.4 --network 1.25 --parameters 23592960

A card has its share c of a step's completions. The parts of a step, one after the other:

    rollout   512 decode steps one after another. A straight line in c through what was measured; where one share was, the
              other point is FLOOR of it at c = 0, since a decode step reads all weights and starts all kernels for any c
    train     in proportion to c, and no less than for the FULL completions of one forward pass
    sum       of the gradients over all cards, none of it hidden behind the rest: a ring in each machine, then one of
              machines, each of 2 (n - 1) messages one after another, of an n-th of the bytes

Prints a step's seconds for a batch that stays and for one that grows with the cards, and what the step waits for most.
"""

import argparse
from dataclasses import dataclass

CARDS = (1, 2, 4, 8, 16, 32, 64)
FLOOR = 0.8
FULL = 8
TASKS, GENERATIONS = 378, 16  # all of MBPP+, and completions of each


@dataclass(frozen=True)
class Parts:
    """Measured seconds of a rollout by completions on a card, and of training on 64; of links, bytes and seconds."""

    rollout: dict[int, float]
    train: float
    size: int
    card_link: float
    network: float
    latency: float
    together: int

    def rollout_seconds(self, share: float) -> float:
        points = sorted(self.rollout.items())
        if len(points) == 1:
            points.insert(0, (0, FLOOR * points[0][1]))
        (low, first), (high, last) = points[0], points[-1]
        return first + (last - first) * (share - low) / (high - low)

    def train_seconds(self, share: float) -> float:
        return self.train * max(share, FULL) / 64

    def sum_seconds(self, cards: int) -> float:
        inside, machines = min(cards, self.together), -(-cards // self.together)
        return self.ring(inside, self.card_link) + self.ring(machines, self.network)

    def ring(self, members: int, speed: float) -> float:
        return 2 * (members - 1) * (self.size / members / speed + self.latency)

    def step(self, cards: int, completions: int) -> dict[str, float]:
        share = completions / cards
        return {
            "rollout": self.rollout_seconds(share),
            "train": self.train_seconds(share),
            "sum": self.sum_seconds(cards),
        }


def pair(text: str) -> tuple[int, float]:
    share, _, seconds = text.partition("=")
    return int(share), float(seconds)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rollout", type=pair, action="append", metavar="COMPLETIONS=SECONDS", help="default: 64=4.1")
    parser.add_argument("--train", type=float, default=4.4, metavar="SECONDS", help="of 64 completions (4.4)")
    parser.add_argument("--parameters", type=int, default=66_060_288, help="trained, 4 bytes each (66,060,288)")
    parser.add_argument("--card-link", type=float, default=300.0, help="GB/s between the cards of a machine (300)")
    parser.add_argument("--network", type=float, default=1.25, help="GB/s between machines (1.25, which is 10 GbE)")
    parser.add_argument("--latency", type=float, default=50.0, help="microseconds of a message (50)")
    parser.add_argument("--together", type=int, default=8, help="cards of a machine (8)")
    asked = parser.parse_args()
    parts = Parts(
        rollout=dict(asked.rollout or [(64, 4.1)]),
        train=asked.train,
        size=4 * asked.parameters,
        card_link=asked.card_link * 1e9,
        network=asked.network * 1e9,
        latency=asked.latency * 1e-6,
        together=asked.together,
    )
    print(f"64 completions a step, whatever the cards; {parts.size / 1e6:.0f} MB of gradients\n")
    print("\n".join(table(parts, 64, grows=False)))
    print("\n64 completions a step for each card\n")
    print("\n".join(table(parts, 64, grows=True)))
    whole = TASKS * GENERATIONS
    print(f"\nAll {TASKS} tasks have {whole:,} completions: {whole // 64} cards with 64 each see them all in one step.")


if __name__ == "__main__":
    main()
