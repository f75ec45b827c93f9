"""What a run would measure against an endpoint that was examined, and what not. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from collectors.records import RequestRecord, TokenSource
from loadgen.doctor import COMPATIBLE_APIS, STREAMED_APIS, Findings
from loadgen.ladder import CONTINUOUS
from loadgen.probe import PROBE_TOKENS, Sight


def measures(f: Findings) -> list[str]:
    """What a run would measure, one sentence each."""
    return [sentence for can, sentence in _verdicts(f) if can]


def misses(f: Findings) -> list[str]:
    """What a run could not measure, and why, one sentence each."""
    return [sentence for can, sentence in _verdicts(f) if not can]


def _verdicts(f: Findings) -> Iterator[tuple[bool, str]]:
    if not f.usable:
        detail = f.record.detail or "no words"
        yield False, f"Anything: a run's request ends {f.record.outcome.value} ({detail})."
        return
    if f.endpoint.api not in STREAMED_APIS:
        yield True, "E2E, from sent to the end: this API does not stream."
    elif "not_streamed" in f.record.flags:
        yield False, "TTFT and gaps: the answer came whole, though a stream was asked for."
    elif f.record.ttft_s is None:
        yield False, "TTFT and gaps: the answer held no output."
    else:
        yield from _timing(f)
    yield from _tokens(f)
    yield from _beside(f)


def _timing(f: Findings) -> Iterator[tuple[bool, str]]:
    record, anatomy, dialect = f.record, f.anatomy, f.endpoint.dialect
    yield True, f"TTFT, from sent to the first output: {ms(record.ttft_s)} here."
    if anatomy.reasoning_in:
        words = " and ".join(anatomy.reasoning_in)
        yield True, f"TTFA apart from TTFT: reasoning comes in {words}."
    elif dialect.reasoning_in:
        yield True, f"TTFA: TTFT here; reasoning would come apart, in {dialect.reasoning_in}."
    else:
        yield True, "TTFA: TTFT here; no reasoning was seen."
    yield from _gaps(f)
    encoding = f.sight.exchange.headers.get("content-encoding", "identity")
    if encoding != "identity":
        yield False, f"True gaps: the stream is packed ({encoding}), so events may come in heaps."
    if record.coalesced_events > record.output_events.total / 2:
        yield False, "True gaps: most events shared a read, as behind a proxy that buffers."
    if "no_finish" in record.flags and "no_done" in record.flags:
        yield False, "Whether a stream was cut: it ends without finish reason or end marker."
    else:
        yield True, f"Whether a stream was cut: a whole one ends with {joined(anatomy.ends)}."


def _gaps(f: Findings) -> Iterator[tuple[bool, str]]:
    events, tokens = f.record.output_events.total, f.record.output_tokens
    if tokens is None:
        yield False, f"Gaps between tokens: {events} output events, of unknown tokens."
    elif tokens == events:
        yield True, f"ITL: {events} output events carried {tokens} tokens, one each."
    else:
        carried = f"{events} output events carried {tokens} tokens"
        yield False, f"Gaps between single tokens: {carried}, so a gap is one between events."
    if f.record.tpot_s is not None:
        yield True, f"TPOT: {ms(f.record.tpot_s)} here."
    if f.wide_anatomy.token_proof:
        proofs = joined(f.wide_anatomy.token_proof)
        asks = f", asked for with {CONTINUOUS} (--extra-body)" if f.shape.continuous else ""
        yield True, f"Tokens of each event, by {proofs}{asks}."


def _tokens(f: Findings) -> Iterator[tuple[bool, str]]:
    record, dialect = f.record, f.endpoint.dialect
    if record.token_source is None and record.input_tokens is None:
        where = f"; {dialect.title} says it in {dialect.usage_in}" if f.because else ""
        what = "Tokens, tokens/s and cost by tokens"
        yield False, f"{what}: no usage came{where}; with --tokenizer FILE {_countable(f)}."
    else:
        told = f"{count(record.input_tokens)} in, {count(record.output_tokens)} out"
        yield True, f"Tokens: {told}, {_token_source(f)}."
    first, again = cached_tokens(f.wide), cached_tokens(f.plain)
    if first is None and again is None:
        hint = f"; {dialect.title} would say it in {dialect.cached_in}" if dialect.cached_in else ""
        yield False, f"Cached input tokens: usage does not say them{hint}."
    else:
        grew = (again or 0) > (first or 0)
        verdict = "its prefix cache works" if grew else "so short a prompt was not cached"
        told = f"{count(first)}, then {count(again)} for the same prompt"
        yield True, f"Cached input tokens: {told}; {verdict}."
    if record.reasoning_tokens is not None:
        yield True, "Reasoning tokens, apart from the answer's."


def _token_source(f: Findings) -> str:
    source = f.record.token_source
    if source is TokenSource.TOKENIZER:
        return "counted here from visible text, by the tokenizer given"
    if source in (TokenSource.TOKEN_IDS, TokenSource.LOGPROBS):
        return f"by {source.value.replace('_', ' ')}"
    return f"by usage in {joined(f.anatomy.usage_in) or 'the answer'}"


def _countable(f: Findings) -> str:
    """What a tokenizer would add where the endpoint tells nothing."""
    if f.endpoint.api == "embeddings":
        return "a run counts the input itself"
    if f.endpoint.api == "completions":
        return "a run counts prompts and visible output itself"
    return "a run counts visible output itself, but not the input, whose template it does not know"


def _beside(f: Findings) -> Iterator[tuple[bool, str]]:
    dialect = f.endpoint.dialect
    if f.endpoint.api in COMPATIBLE_APIS:
        yield _length(f)
    if f.metrics:
        yield True, f"The server's own figures: {dialect.metrics_path} answers."
    elif dialect.metrics_path:
        yield False, f"The server's own figures: {dialect.metrics_path} does not answer."
    else:
        yield False, "The server's own figures: it has no metrics page that is known."
    if dialect.cache_header:
        name, word = dialect.cache_header
        yield True, f"Answers from the gateway's cache: {name} says {word}; they are flagged."


def _length(f: Findings) -> tuple[bool, str]:
    """Whether answers can be made as long as asked: taken is not yet obeyed."""
    fields = [name for name in ("ignore_eos", "min_tokens") if name in f.tried]
    kept = [name for name in fields if name in f.shape.extra]
    long, short = _told_tokens(f.wide.record), _told_tokens(f.record)
    if not kept:
        why = "they are refused" if fields else "no field for it is known"
        return False, f"Answers of equal length: {why}."
    words = " and ".join(kept)
    if long is None or short is None:
        return False, f"Answers of equal length: {words} taken, but without usage nobody can tell."
    if long < PROBE_TOKENS:
        return False, f"Answers of equal length: {words} taken and ignored."
    if short < PROBE_TOKENS:
        return True, f"Answers of equal length: {words} work ({short} tokens without, {long} with)."
    return True, f"Answers of equal length: {words} taken; answers reach their limit without, too."


def _told_tokens(record: RequestRecord | None) -> int | None:
    """Output tokens as the server tells them: a count of our own is a little low."""
    if record is None or record.token_source is TokenSource.TOKENIZER:
        return None
    return record.output_tokens


def cached_tokens(sight: Sight | None) -> int | None:
    """Cached input tokens of a request, as the server says."""
    return sight.record.cached_input_tokens if sight and sight.record else None


def ms(seconds: float | None) -> str:
    """Milliseconds, or a dash."""
    return "-" if seconds is None else f"{seconds * 1000:.1f} ms"


def count(tokens: int | None) -> str:
    """A number, or a dash."""
    return "-" if tokens is None else str(tokens)


def joined(words: tuple[str, ...]) -> str:
    """Words, joined."""
    return " and ".join(words)
