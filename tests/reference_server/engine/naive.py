"""The engine again, written out: every token and every block for itself, nothing clever.

What the real engine counts, this one does: blocks are objects, a text is a list of tokens, a
block's content is all tokens up to its end, and every step visits every sequence. It shares the
settings and the cost model with the real one, and no other code.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Any

from reference_server.engine.config import EngineConfig, Preemption, Scheduling
from reference_server.engine.cost import Prompts
from reference_server.engine.sequence import FS, Sequence

Text = tuple[Any, ...]


@dataclass(eq=False)
class Block:
    """One block of the cache."""

    content: Text | None = None
    users: int = 0


@dataclass(eq=False)
class Answer:
    """One answer under way."""

    sequence: Sequence
    index: int
    prompt: Text
    places: int
    came: int = 0
    made: int = 0
    goal: int = 0
    computed: int = 0
    decoding: bool = False
    swapped: int = 0
    blocks: list[Block] = field(default_factory=list)
    copies: list[Block] = field(default_factory=list)
    draws: Random = field(default_factory=Random)

    @property
    def length(self) -> int:
        """Tokens it will have."""
        return (self.sequence.output_tokens, *self.sequence.others)[self.index]

    @property
    def text(self) -> Text:
        """The prompt, and the answer so far."""
        name = self.sequence.answer
        if name is None:
            name = ("answer of", self.sequence.id)  # type: ignore[assignment]
        if self.index:
            name = (name, self.index)  # type: ignore[assignment]
        return self.prompt + tuple((name, token) for token in range(self.made))


@dataclass
class Happened:
    """What a step did."""

    duration_fs: int
    admitted: list[tuple[Any, int]]
    preempted: list[tuple[Any, int]]
    tokens: list[tuple[Any, int, int, bool]]
    prefilled: int
    hits: int
    free: int


def urgency(answer: Answer) -> tuple[int, int, int]:
    return answer.sequence.priority, answer.came, answer.index


class NaiveEngine:
    """Sequences in, steps out."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.blank = [Block() for _ in range(config.blocks)]
        self.unused: list[Block] = []  # the least recently used first
        self.known: dict[Text, Block] = {}
        self.waiting: list[Answer] = []
        self.running: list[Answer] = []
        self.came = 0

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence."""
        spans = sequence.spans or ((("prompt of", sequence.id), sequence.prompt_tokens),)
        prompt = tuple((name, token) for name, tokens in spans for token in range(tokens))
        self.came += 1
        answer = Answer(sequence, 0, prompt, sequence.answers, self.came, goal=len(prompt))
        self.waiting.append(answer)
        self.sort()

    def sort(self) -> None:
        """Those that wait stand in the order they came, unless some are more urgent."""
        if self.config.scheduling is Scheduling.PRIORITY:
            self.waiting.sort(key=urgency)

    def abort(self, name: Any) -> None:
        """Forget a sequence."""
        for answer in [a for a in self.running if a.sequence.id == name]:
            self.running.remove(answer)
            self.publish(answer, self.in_cache(answer))
            self.free(answer)
        self.waiting = [a for a in self.waiting if a.sequence.id != name]

    @property
    def idle(self) -> bool:
        """There is no step to do."""
        return not self.running and not self.waiting

    @property
    def drafts(self) -> int:
        return self.config.drafts

    def available(self) -> int:
        return len(self.blank) + len(self.unused)

    def take(self) -> Block:
        """A block to write in: one without content, or else the one unused for longest."""
        if self.blank:
            block = self.blank.pop()
        else:
            block = self.unused.pop(0)
            assert block.content is not None
            del self.known[block.content]
            block.content = None
        block.users = 1
        return block

    def free(self, answer: Answer) -> None:
        """Take back all blocks, the last first."""
        for block in [*answer.copies, *reversed(answer.blocks)]:
            block.users -= 1
            if not block.users:
                (self.unused if block.content else self.blank).append(block)
        answer.blocks, answer.copies = [], []

    def publish(self, answer: Answer, in_cache: int) -> None:
        """Whole blocks become known by their content."""
        size = self.config.block_tokens
        if not self.config.prefix_caching:
            return
        for index in range(in_cache // size):
            content = answer.text[: (index + 1) * size]
            if content not in self.known:
                self.known[content] = answer.blocks[index]
                answer.blocks[index].content = content

    def found(self, answer: Answer) -> list[Block]:
        """Blocks of a text that are known, from the beginning."""
        size, found = self.config.block_tokens, []
        for index in range(answer.goal // size):
            block = self.known.get(answer.text[: (index + 1) * size])
            if block is None:
                break
            found.append(block)
        return found

    def in_cache(self, answer: Answer) -> int:
        """Tokens whose keys and values are there: all but the last one made."""
        return len(answer.prompt) + answer.made - 1 if answer.decoding else answer.computed

    def lacks(self, answer: Answer) -> int:
        """Blocks an answer needs for the next step and does not have."""
        if not answer.decoding:
            return 0
        tokens = self.in_cache(answer) + 1 + self.drafts
        return -(-tokens // self.config.block_tokens) - len(answer.blocks)

    def preempt(self) -> Answer:
        if self.config.scheduling is Scheduling.PRIORITY:
            answer = max(self.running, key=urgency)
        else:
            answer = self.running[-1]
        self.running.remove(answer)
        in_cache = self.in_cache(answer)
        self.publish(answer, in_cache)
        self.free(answer)
        if self.config.preemption is Preemption.SWAP:
            answer.swapped = in_cache
        answer.decoding = False
        answer.computed = 0
        answer.goal = len(answer.text)
        self.waiting.insert(0, answer)
        self.sort()
        return answer

    def step(self) -> Happened:
        """Schedule, compute, hand out."""
        config, size = self.config, self.config.block_tokens
        admitted, preempted, swapped = [], [], 0
        while sum(self.lacks(answer) for answer in self.running) > self.available():
            victim = self.preempt()
            preempted.append(victim)
            swapped += victim.swapped
        decoding = [answer for answer in self.running if answer.decoding]
        for answer in decoding:
            answer.blocks += [self.take() for _ in range(self.lacks(answer))]
        budget = config.max_batched_tokens - len(decoding) * (1 + self.drafts)
        prompts = [a for a in self.running if not a.decoding]
        hits = 0
        ended: list[Answer] = []
        parts = tokens = pairs = context = 0
        while True:
            for answer in prompts:
                chunk = min(budget, answer.goal - answer.computed)
                parts, tokens, context = parts + 1, tokens + chunk, context + answer.computed
                pairs += sum(range(answer.computed + 1, answer.computed + chunk + 1))
                budget -= chunk
                answer.computed += chunk
                self.publish(answer, answer.computed)
                if answer.computed == answer.goal:
                    ended.append(answer)
            prompts = []
            if preempted or not self.waiting or not budget:
                break
            answer = self.waiting[0]
            if sum(a.places for a in self.running) + answer.places > config.max_num_seqs:
                break
            found = self.found(answer)
            copies = answer.places - 1 if answer.goal % size else 0
            fresh = -(-answer.goal // size) - len(found)
            if fresh + copies > self.available() - sum(not block.users for block in found):
                break
            for block in found:
                if not block.users:
                    self.unused.remove(block)
                block.users += 1
            answer.blocks = found + [self.take() for _ in range(fresh)]
            answer.copies = [self.take() for _ in range(copies)]
            cached = min(len(found) * size, answer.goal - 1)
            answer.computed = max(cached, answer.swapped)
            swapped += answer.computed - cached
            hits += cached
            answer.swapped = 0
            self.running.append(self.waiting.pop(0))
            admitted.append((answer.sequence.id, answer.index))
            prompts = [answer]
        kv_tokens = sum(self.in_cache(a) + 1 for a in decoding)
        work = Prompts(parts, tokens, pairs, context)
        line = config.cost.line(len(decoding), work, self.drafts)
        duration = round(line.base_s * FS) + round(line.per_kv_token_s * FS) * kv_tokens
        if swapped:
            duration += round(config.cost.swap_s(swapped) * FS)
        free = self.available()
        emitted = [self.decode(answer) for answer in decoding]
        started = [each for answer in ended for each in self.start(answer)]
        emitted += [self.told(answer, 1) for answer in started]
        for answer in decoding + started:
            if answer.made == answer.length:
                self.running.remove(answer)
                self.publish(answer, self.in_cache(answer))
                self.free(answer)
        return Happened(
            duration,
            admitted,
            [(a.sequence.id, a.index) for a in preempted],
            emitted,
            tokens,
            hits,
            free,
        )

    def decode(self, answer: Answer) -> tuple[Any, int, int, bool]:
        gained = 1
        if self.config.speculation:
            draw = answer.draws.random()
            for accepted in range(1, self.drafts + 1):
                gained += draw < self.config.speculation.acceptance_ratio**accepted
        gained = min(gained, answer.length - answer.made)
        answer.made += gained
        return self.told(answer, gained)

    def told(self, answer: Answer, gained: int) -> tuple[Any, int, int, bool]:
        done = answer.made == answer.length
        return answer.sequence.id, answer.index, gained, done

    def start(self, answer: Answer) -> list[Answer]:
        sequence, started = answer.sequence, [answer]
        whole = answer.goal // self.config.block_tokens
        for index in range(1, answer.places):
            other = Answer(sequence, index, answer.prompt, 1, answer.came, answer.made, answer.goal)
            other.computed = answer.computed
            other.blocks = answer.blocks[:whole]
            for block in other.blocks:
                block.users += 1
            if answer.copies:
                other.blocks.append(answer.copies.pop())
            self.running.append(other)
            started.append(other)
        answer.places = 1
        for each in started:
            each.made += 1
            each.decoding = True
            each.draws = Random(hash((sequence.seed, each.index, each.made)))
        return started
