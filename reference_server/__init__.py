"""The bundled endpoint: what a load run can be pointed at without a GPU.

Two servers speak vLLM's dialect of the OpenAI API over real sockets. The *simulator* (app.py) puts
an engine of continuous batching behind it, so that load bends latency. The *metronome*
(metronome.py) keeps a fixed schedule as close to the socket as Python gets: the source for
measuring a client. Both keep the same truth log (truth.py). This package imports none of ours.
"""
