"""Texts on which two tokenizers show whether they are the same: what tasks, answers and their prompts are made of.

All are in Unicode's composed form (NFC), for llama.cpp normalizes nothing. They come out the same every time.
"""

import random

WRITTEN = (
    "",
    " ",
    "   \n\n\t\t \t\n  \n   \n    \n",
    "def add(a, b):\n    return a + b\n",
    "class Stack(list):\n\tdef push(self, x):\n\t\tself.append(x)\r\n\r\n",
    "x = [i ** 2 for i in range(1000) if i % 3 == 0]  # squares\n\n\n",
    "assert round(f(1e-9, 3.14159), 2) == 12345678.90, f'{x!r:>10}'\n",
    "if a<=b and not(c!=d): a[0]//=2; b->c <<= 1 && x || ~y ^ z",
    "print(\"\"\"It's what she'd said: we'll, I'm, you're, they've; DON'T, We'VE.\"\"\"),",
    "3 33 333 3333 33333 3.3 3..3 3...3 2024-12-31T23:59:59Z 0xFF 1_000_000 1e10",
    "<b>Say</b> {{ x }} &amp; https://example.org/a?b=c&d=%20#e user@example.org",
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case __init__ $var @decorator",
    "Grüße, naïve café, Ærøskøbing, ½ × 3 = 1.5 € – „Zitat“ … ",
    "Привет, мир! Γειά σου Κόσμε. שלום עולם. مرحبا بالعالم. नमस्ते दुनिया",
    "你好，世界！これはテストです。안녕하세요 세계 我想在apple工作1314151天～",
    "🚀 (normal) ✅ 🦙🦙 👩‍💻 ------======= ''''''```````\"\"\"\"......!!!!!!??????",
    "<START_WORKING_OUT>\nwhy\n</END_WORKING_OUT>\n<SOLUTION>\ncode\n</SOLUTION>",
    "trailing spaces   \n leading\n    indented\n        twice\n\tand tabs\t\t\n",
)
PIECES = (
    *("a", "I", "the", "Return", "self", "x1", "λ", "é", "中", "1", "12", "1234567", "0.5", " ", "  ", "     ", "\n"),
    *(
        "\n\n",
        "\t",
        "\r\n",
        ".",
        ",",
        ":",
        ";",
        "(",
        ")",
        "[]",
        "{}",
        "'",
        "'s",
        "'LL",
        '"',
        "_",
        "__",
        "-",
        "->",
        "==",
        "!=",
    ),
    *("+", "*", "/", "\\", "#", "@", "$", "%", "&", "<", ">", "|", "~", "`", "^", "?", "!", "…", "🙂"),
)


def mixed(count: int, seed: int = 0) -> list[str]:
    draw = random.Random(seed)
    return ["".join(draw.choices(PIECES, k=draw.randint(2, 24))) for _ in range(count)]


TEXTS = (*WRITTEN, *mixed(200))
