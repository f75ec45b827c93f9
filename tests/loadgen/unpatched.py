"""Locust in the test process, without gevent's patches: imported once, before anything of it.

Only a real Locust process may patch the standard library; the tests' own threads and sockets stay
what they are. The variable is taken away again, since processes that tests start inherit it.
"""

from __future__ import annotations

import os

os.environ["LOCUST_SKIP_MONKEY_PATCH"] = "1"
import locust

del os.environ["LOCUST_SKIP_MONKEY_PATCH"]

__all__ = ["locust"]
