"""Fingerprints: what they tell, and what they keep to themselves."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.fingerprint import (
    BLOCK_BYTES,
    LINK_BYTES,
    MAX_LINKS,
    MAX_SKETCHED,
    AnswerChain,
    Fingerprints,
    Prompt,
    common_prefix_bytes,
    differing_bits,
)
from loadgen.prompts import WORDS

SALT, OTHER_SALT = bytes(range(32)), bytes(range(1, 33))
Pieces = list[tuple[int, str]]


def words(seed: int, n: int = 200) -> list[str]:
    return random.Random(seed).choices(WORDS, k=n)


def sketch(text: str, salt: bytes = SALT) -> int:
    found = Fingerprints(salt).prompt(text)[1]
    assert found is not None
    return found


def fingerprint(pieces: Pieces, salt: bytes = SALT) -> tuple[str | None, bytes | None]:
    chain = AnswerChain(salt)
    for kind, text in pieces:
        chain.add(kind, text)
    return chain.result()


def chain_of(text: str) -> bytes:
    _, chain = fingerprint([(1, text)])
    assert chain is not None
    return chain


# Prompts


@given(st.text())
def test_equal_prompts_have_equal_fingerprints(text: str) -> None:
    """In any process of one database; the hash has 32 hex digits and the sketch 64 bits."""
    digits, bits = Fingerprints(SALT).prompt(text)
    assert Fingerprints(SALT).prompt(text) == (digits, bits)
    assert len(bytes.fromhex(digits)) == 16
    assert (bits is None) == (text == "")
    assert bits is None or 0 <= bits < 2**64


@given(st.text(), st.text())
def test_other_prompts_have_other_hashes(one: str, other: str) -> None:
    """However alike they are: blanks and capitals count."""
    taken = Fingerprints(SALT)
    assert (taken.prompt(one)[0] == taken.prompt(other)[0]) == (one == other)


@pytest.mark.parametrize("seed", range(20))
def test_one_changed_word_in_200_changes_few_bits(seed: int) -> None:
    """Expected are 2.9 of 64: two pairs of 200 turn the vector by 8 degrees."""
    text = words(seed)
    changed = [*text]
    changed[seed * 10] = "streamgauge"
    assert differing_bits(sketch(" ".join(text)), sketch(" ".join(changed))) <= 10


def test_the_more_words_change_the_more_bits_do() -> None:
    """On average over 30 prompts: 1, 10, 50 and all of 200 words."""
    means = []
    for n in (1, 10, 50, 200):
        bits = 0
        for seed in range(30):
            text, rest = words(seed), words(1000 + seed)
            bits += differing_bits(sketch(" ".join(text)), sketch(" ".join(rest[:n] + text[n:])))
        means.append(bits / 30)
    assert all(fewer < more for fewer, more in pairwise(means))
    assert means[0] < 4
    assert 30 < means[-1] < 34


def test_the_order_of_words_counts() -> None:
    """The same words in another order are another prompt."""
    assert differing_bits(sketch(" ".join(words(1))), sketch(" ".join(sorted(words(1))))) > 16


@pytest.mark.parametrize("text", ["hello", " ".join(words(3)), "你好" * 500])
def test_another_salt_gives_unrelated_fingerprints(text: str) -> None:
    """Two databases cannot be compared: about half of the bits differ, and no hash is equal."""
    one, other = Fingerprints(SALT), Fingerprints(OTHER_SALT)
    assert one.prompt(text)[0] != other.prompt(text)[0]
    assert 16 <= differing_bits(sketch(text), sketch(text, OTHER_SALT)) <= 48


def test_a_text_without_blanks_is_compared_by_its_characters() -> None:
    """One character more moves few bits where words are not set apart."""
    chance = random.Random(5)
    text = "".join(chr(chance.randrange(0x4E00, 0x5E00)) for _ in range(300))
    assert differing_bits(sketch(text), sketch(f"{text[:100]}一{text[100:]}")) <= 10


def test_a_long_prompt_is_looked_at_in_pieces() -> None:
    """Beyond the cap a change far from the pieces goes unseen, a small shift moves few bits."""
    text = " ".join(words(7, 100_000))
    assert len(text) > 100 * MAX_SKETCHED
    assert differing_bits(sketch(text), sketch("please " + text)) <= 16
    assert differing_bits(sketch(text), sketch(" ".join(words(8, 100_000)))) > 16


def test_a_message_of_a_user_is_its_text() -> None:
    """A bare text and the one message that is made of it are the same prompt."""
    taken = Fingerprints(SALT)
    assert taken.prompt([{"content": "hello", "role": "user"}]) == taken.prompt("hello")


@pytest.mark.parametrize(
    "other",
    [
        [{"role": "system", "content": "hello"}],
        [{"role": "user", "content": "hello"}, {"role": "user", "content": ""}],
        [{"role": "user", "content": [{"type": "text", "text": "hello"}]}],
        [{"role": "user", "content": "hello", "name": "ada"}],
        ["hello"],
        '[{"content":"hello","role":"system"}]',
    ],
)
def test_other_messages_are_another_prompt(other: Prompt) -> None:
    """Roles, parts and names count, though the words be the same."""
    taken = Fingerprints(SALT)
    system: Prompt = [{"role": "system", "content": "hello"}]
    assert taken.prompt(other)[0] != taken.prompt("hello")[0]
    assert (taken.prompt(other)[0] == taken.prompt(system)[0]) == (other == system)


def test_messages_are_compared_by_their_words() -> None:
    """The sketch reads texts in any shape of messages, and passes over what is none."""
    said = " ".join(words(1))
    shapes: list[Prompt] = [
        [{"role": "user", "content": said}],
        [{"role": "system", "content": said[:300]}, {"role": "user", "content": said[300:]}],
        [{"role": "user", "content": [{"type": "text", "text": said}, {"type": "image_url"}]}],
    ]
    sketches = [Fingerprints(SALT).prompt(shape)[1] for shape in shapes]
    assert all(bits is not None and differing_bits(bits, sketch(said)) <= 10 for bits in sketches)
    tokens: Prompt = [[17, 4]]  # type: ignore[list-item]  # of embeddings
    assert Fingerprints(SALT).prompt(tokens)[1] is None


def test_messages_that_grow_are_not_taken_for_what_they_were() -> None:
    """A conversation kept in one list has another fingerprint at each turn."""
    taken = Fingerprints(SALT)
    talk = [{"role": "user", "content": "hello"}]
    first = taken.prompt(talk)
    talk.append({"role": "assistant", "content": "hi"})
    assert taken.prompt(talk) != first
    assert taken.prompt(talk[:1]) == first


def test_what_is_kept_of_prompts_is_bounded() -> None:
    """After many long prompts of unknown words the memory holds few of them."""
    taken = Fingerprints(SALT)
    for number in range(40):
        taken.prompt(" ".join(f"{number}-{i}" for i in range(20_000)))
    assert sum(map(len, taken._prompts)) <= 2 << 20
    assert len(taken._numbers) == taken._values.shape[1] <= 2 * 8192


# Answers


@given(st.lists(st.tuples(st.sampled_from([1, 2, 4]), st.text(min_size=1, max_size=90))), st.data())
def test_how_an_answer_was_cut_makes_no_difference(said: Pieces, data: st.DataObject) -> None:
    """Any cutting of the same text gives the same hash and the same links."""
    cut: Pieces = []
    for kind, text in said:
        ends = sorted({*data.draw(st.sets(st.integers(1, len(text)))), len(text)})
        cut += [(kind, text[a:b]) for a, b in pairwise([0, *ends])]
    assert fingerprint(cut) == fingerprint(said)


@given(st.text(min_size=1), st.text(min_size=1))
def test_kinds_of_text_are_told_apart(one: str, other: str) -> None:
    """The same characters as reasoning and as answer, or parted elsewhere, are another answer."""
    assert fingerprint([(1, one)]) != fingerprint([(2, one)])
    assert fingerprint([(2, one), (1, other)]) != fingerprint([(1, one + other)])
    assert fingerprint([(4, one), (8, other), (4, one)]) != fingerprint([(4, one + other + one)])


def test_an_answer_that_says_nothing_has_no_fingerprint() -> None:
    """Absent, not the hash of nothing; a short answer has a hash and no links."""
    assert fingerprint([]) == (None, None)
    digits, links = fingerprint([(1, "hello")])
    assert (len(digits or ""), links) == (32, b"")


def test_a_link_covers_a_block() -> None:
    """One link of 4 bytes for each 64 bytes of text and of marks of its kind."""
    assert [len(chain_of("x" * n)) // LINK_BYTES for n in (61, 62, 125, 126, 6400)] == [
        0,
        1,
        1,
        2,
        100,
    ]


@given(st.text(max_size=400), st.text(max_size=400), st.text(max_size=400))
def test_a_chain_tells_how_far_two_answers_agree(common: str, one: str, other: str) -> None:
    """In whole blocks, and never further than they do."""
    texts = [f"{common}{end}" for end in (one, other)]
    agreed = common_prefix_bytes(chain_of(texts[0] or "-"), chain_of(texts[1] or "-"))
    longest = min(len(text.encode()) for text in texts)
    a, b = (text.encode() for text in texts)
    same = next((i for i in range(longest) if a[i] != b[i]), longest) + 2  # the mark of its kind
    assert agreed == same // BLOCK_BYTES * BLOCK_BYTES


def test_another_salt_gives_an_unrelated_chain() -> None:
    """Not one link is equal, nor the hash."""
    ours, theirs = (fingerprint([(1, "x" * 640)], salt) for salt in (SALT, OTHER_SALT))
    assert ours[0] != theirs[0]
    assert ours[1] is not None
    assert theirs[1] is not None
    assert common_prefix_bytes(ours[1], theirs[1]) == 0


def test_memory_is_bounded_however_long_an_answer_is() -> None:
    """What waits to be hashed is less than a few kilobytes; links end at their cap."""
    chain = AnswerChain(SALT)
    for _ in range(30_000):
        chain.add(1, "0123456789")
        assert len(chain._pieces) < 64
    chain.add(1, "x" * 100_000)
    assert not chain._pieces
    assert len(chain._rest) < BLOCK_BYTES
    digits, links = chain.result()
    assert len(links or b"") == MAX_LINKS * LINK_BYTES
    chain.add(1, "y")
    assert chain.result() != (digits, links)
