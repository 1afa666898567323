"""A replica's side of a channel: where its checkpoints come from and who follows them, as one.

Owns the source and the follower, from their start until the leases are given up, on the event
loop's thread. Invariant: neither runs without the other.
"""

from __future__ import annotations

import threading
from typing import Generic, TypeVar

from backends.config import ReplicaConfig
from backends.events import Events
from backends.follower import Follower, Host, Loaded, Loader
from backends.reload import Reload
from backends.source import Source

V = TypeVar("V", bound=Loaded)


class Subscription(Generic[V]):
    def __init__(
        self,
        config: ReplicaConfig,
        source: Source,
        loader: Loader[V],
        host: Host[V],
        events: Events,
    ) -> None:
        self._source = source
        self.follower = Follower(
            source.run,
            config.channel,
            loader=loader,
            reload=Reload(
                probation_s=config.probation_s,
                keep=config.versions,
                ask_s=config.ask_s if config.swap == "ask" else None,
            ),
            host=host,
            events=events,
            poll_s=config.poll_s,
            slowdown=config.slowdown,
            copy_of=source.place,
            look=source.look_again,
        )

    def start(self) -> None:
        self.follower.start()
        self._source.start(self.follower.channel_moved)

    @property
    def problem(self) -> str:
        """Why nothing is served yet, or what went wrong last; first of all with the store."""
        return self._source.problem or self.follower.reason()

    def stop(self) -> None:
        self._source.stop()
        self.follower.stop()

    def close(self, seconds: float) -> bool:
        """Blocks until the leases are given up; False if the disk hangs."""
        closing = threading.Thread(target=self.follower.close, name="leases", daemon=True)
        closing.start()
        closing.join(seconds)
        return not closing.is_alive()
