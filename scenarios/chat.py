"""Interactive chat: people who read an answer, think a moment and ask the next thing.

Models users of a chat assistant, each with one question open at a time (a closed loop): prompts of
about 200 tokens, answers of up to 128, two seconds of reading and thinking between them. What
matters to them is how soon the answer starts (TTFT) and that it does not stutter (ITL).

    locust -f scenarios/chat.py --host http://127.0.0.1:8000 -u 16 -r 8 -t 30s --headless
"""

from locust import task

from loadgen.users import StreamUser


class ChatUser(StreamUser):
    """One person in front of a chat window."""

    input_tokens = 200
    max_tokens = 128
    think_time_s = 2.0

    @task
    def chat(self) -> None:
        """Ask something new."""
        self.ask("chat")
