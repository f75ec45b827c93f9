"""The paged KV cache: who holds how many blocks, and which of them a prompt can find again.

A block in use is *private* to one sequence, or part of a *stretch*. A stretch is consecutive blocks
of one span of a prompt, found by a key that stands for the whole text up to there; any number of
sequences use it at once. (A row of blocks found by a hash over all before them, as in vLLM, is the
same thing written out block by block.) What no sequence uses any more stays findable until its
blocks are needed: those left longest ago go first, of one sequence the last block of its text
first, so that what is found is always a prefix. Blocks without findable content go before all.

Blocks have no numbers here, since it makes no difference which they are. So what a sequence costs
is a few dictionary operations for each *span*, however many blocks that has, and memory likewise.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

from reference_server.engine.sequence import Span


class Link(NamedTuple):
    """The blocks that end in one span of a text: from `first` to before `end`, whole ones only."""

    key: int
    first: int
    end: int


def links(spans: Iterable[Span], block_tokens: int) -> list[Link]:
    """A text's spans as the prefix cache knows them.

    The key of a span depends on all spans before it and on where it begins; blocks of equal number
    and key hold the same tokens and attend to the same ones.
    """
    key, start, found = 0, 0, []
    for span in spans:
        end = start + span.tokens
        key = hash((key, start, span.id))
        found.append(Link(key, start // block_tokens, end // block_tokens))
        start = end
    return found


class Stretch:
    """Blocks of one span, from its first on.

    Attributes:
        key: by which it is found; None: it is shared by the answers to one prompt, and not found.
        blocks: how many.
        users: sequences that hold it.
    """

    __slots__ = ("blocks", "key", "users")

    def __init__(self, key: int | None) -> None:
        self.key = key
        self.blocks = 0
        self.users = 1


class Holding:
    """What one sequence holds.

    Attributes:
        private: blocks of its own.
        shared: blocks it holds through stretches.
        stretches: those, in the order of its text.
        at: index of the link whose blocks are to be made findable next.
        partial: the stretch of that link, if some of them are.
    """

    __slots__ = ("at", "partial", "private", "shared", "stretches")

    def __init__(self) -> None:
        self.private = 0
        self.shared = 0
        self.stretches: list[Stretch] = []
        self.at = 0
        self.partial: Stretch | None = None

    @property
    def blocks(self) -> int:
        """Blocks it holds, shared or not."""
        return self.private + self.shared


class Found(NamedTuple):
    """What the cache has of a text: blocks from the beginning, and of these how many are idle."""

    stretches: list[Stretch]
    blocks: int
    idle: int


class KvCache:
    """The blocks of one machine.

    Args:
        blocks: how many there are.
        keep: whether blocks stay findable after use.

    Attributes:
        free: blocks that can be had, idle ones included.
    """

    def __init__(self, blocks: int, *, keep: bool) -> None:
        self.blocks = blocks
        self.free = blocks
        self._keep = keep
        self._found: dict[int, Stretch] = {}
        self._idle: OrderedDict[int, Stretch] = OrderedDict()  # nobody uses them; oldest first
        self._idle_blocks = 0

    def find(self, text: Iterable[Link]) -> Found:
        """What is there of a text; nothing changes by that."""
        stretches, blocks, idle = [], 0, 0
        for link in text:
            wanted = link.end - link.first
            if not wanted:
                continue
            stretch = self._found.get(link.key)
            if stretch is None:
                break
            stretches.append(stretch)
            blocks += min(stretch.blocks, wanted)
            if not stretch.users:
                idle += stretch.blocks
            if stretch.blocks < wanted:
                break
        return Found(stretches, blocks, idle)

    def hold(self, holding: Holding, text: list[Link], found: Found, fresh: int) -> None:
        """Give a sequence what was found for it and so many blocks of its own."""
        for stretch in found.stretches:
            self._use(stretch)
        holding.stretches = found.stretches
        holding.shared = found.blocks
        if found.stretches:  # what was not found is published from there on
            last = found.stretches[-1]
            holding.partial = last
            holding.at = next(at for at, link in enumerate(text) if link.key == last.key)
        self.take(fresh)
        holding.private = fresh

    def take(self, blocks: int) -> None:
        """Hand out blocks; the caller knows to whom, and that there are enough."""
        self.free -= blocks
        while self.free < self._idle_blocks:  # the content of the oldest idle ones is lost
            key, stretch = next(iter(self._idle.items()))
            lost = min(stretch.blocks, self._idle_blocks - self.free)
            stretch.blocks -= lost
            self._idle_blocks -= lost
            if not stretch.blocks:
                del self._idle[key], self._found[key]

    def publish(self, holding: Holding, text: list[Link], whole: int) -> None:
        """Make a sequence's first so many blocks findable, if blocks are kept at all.

        Where another sequence has published the same in the meantime, that one is found and this
        one stays private.
        """
        if not self._keep:
            return
        for at in range(holding.at, len(text)):
            link = text[at]
            ready = min(link.end, whole) - link.first
            if ready > 0:
                stretch = holding.partial or self._adopt(holding, link.key)
                gained = ready - stretch.blocks
                if gained > 0:
                    stretch.blocks += gained
                    holding.private -= gained
                    holding.shared += gained
                holding.partial = stretch
            if whole < link.end or link is text[-1]:  # the last one may still grow
                return
            holding.at, holding.partial = at + 1, None

    def fork(self, holding: Holding, others: list[Holding], whole: int, copies: int) -> None:
        """Let others share a sequence's blocks.

        Args:
            holding: of the sequence that computed them, and was given the copies too.
            others: the others'.
            whole: blocks to share, from the first on.
            copies: private blocks that each of the others is handed: 1 where a block has begun
                that each will go on writing in its own way, else 0.
        """
        if holding.shared < whole:
            stretch = Stretch(None)
            stretch.blocks = whole - holding.shared
            holding.private -= stretch.blocks
            holding.shared = whole
            holding.stretches.append(stretch)
        for other in others:
            for stretch in holding.stretches:
                stretch.users += 1
            other.stretches = list(holding.stretches)
            other.shared = holding.shared
            other.at, other.partial = holding.at, holding.partial
            other.private = copies
            holding.private -= copies

    def release(self, holding: Holding) -> None:
        """Take back all that a sequence holds."""
        for stretch in reversed(holding.stretches):
            stretch.users -= 1
            if stretch.users:
                continue
            self.free += stretch.blocks
            if stretch.key is not None:
                self._idle[stretch.key] = stretch
                self._idle_blocks += stretch.blocks
        self.free += holding.private
        holding.private = holding.shared = holding.at = 0
        holding.stretches, holding.partial = [], None

    def _use(self, stretch: Stretch) -> None:
        if not stretch.users:
            assert stretch.key is not None
            del self._idle[stretch.key]
            self._idle_blocks -= stretch.blocks
            self.free -= stretch.blocks
        stretch.users += 1

    def _adopt(self, holding: Holding, key: int) -> Stretch:
        """The stretch of that key, with the sequence among its users."""
        stretch = self._found.get(key)
        if stretch is None:
            stretch = self._found[key] = Stretch(key)
        else:
            self._use(stretch)
        holding.stretches.append(stretch)
        return stretch
