"""A Ray cluster: the one that is there, or a small one on this machine that nobody else can reach."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from typing import Any

from ragq import errors
from ragq.errors import InvalidArgumentError, StorageError, missing_extra

__all__ = ["ATTEMPTS", "Cluster", "connect"]

STORE_BYTES = 256 << 20  # Ray's shared memory on one machine: what passes through it is small
ATTEMPTS = 4  # at an item whose worker dies: Ray would go on for ever with one that kills its workers


def connect(address: str | None = None) -> tuple[Any, bool]:
    """Return Ray, connected, and whether it was connected or started here; see `Cluster`."""
    address = address or os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what concerns the user comes as an exception
    if address is None:  # the name is history: Ray then binds every port of its own to the loopback interface
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    try:
        import ray
    except ImportError:
        raise missing_extra("ray", "ray") from None
    if ray.is_initialized():
        return ray, False
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        processors = max(2, len(os.sched_getaffinity(0)))
        local = {"num_cpus": processors, "include_dashboard": False, "object_store_memory": STORE_BYTES}
        ray.init(address="local", **local, **quiet)
    else:
        try:
            ray.init(address=address, **quiet)
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise StorageError(f"There is no Ray cluster at {address}: {str(error).splitlines()[0]}") from error
    return ray, True


class Cluster:
    """A connection to Ray, closed by `close` if it was opened here.

    Parameters
    ----------
    address : str, optional
        Of a running cluster, as `ray.init` takes it; ``RAY_ADDRESS`` in the environment by default. Without one, Ray is
        started here: without telemetry and dashboard, bound to the loopback interface.

    Raises
    ------
    MissingExtraError
        Ray is not installed.
    StorageError
        There is no cluster at `address`.
    """

    def __init__(self, address: str | None = None) -> None:
        self._ray, self._opened = connect(address)
        import ray.data

        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        context.print_on_execution_start = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)

    @property
    def workers(self) -> int:
        """How many workers the cluster has room for: one a GPU, or one a processor when there is none."""
        resources = self._ray.cluster_resources()
        return max(1, int(resources.get("GPU", 0)) or int(resources.get("CPU", 1)))

    @property
    def has_gpus(self) -> bool:
        """Whether workers get a GPU each."""
        return self._ray.cluster_resources().get("GPU", 0) >= 1

    def share(self, value: Any) -> Any:
        """Put a value where all workers can reach it, and return the reference that they get it by."""
        try:
            return self._ray.put(value)
        except TypeError as error:
            raise InvalidArgumentError(
                f"What the workers need cannot be sent to them: {str(error).splitlines()[0].rstrip('.')}. "
                "Give paths, lists, arrays or functions."
            ) from error

    def counter(self) -> Any:
        """Start a `Counter` as an actor."""
        return self._ray.remote(num_cpus=0, max_restarts=-1)(Counter).remote()

    def read_counter(self, counter: Any) -> int:
        """Return the sum over all items; 0 when the counter does not answer."""
        try:
            return int(self._ray.get(counter.total.remote(), timeout=5))
        except self._ray.exceptions.RayError:
            return 0

    def map(self, actor: type, arguments: Sequence[Any], count: int, workers: int) -> Iterator[tuple[int, bytes]]:
        """Do numbered items by a pool of actors, with Ray Data; yield (number, result) as they are done.

        Parameters
        ----------
        actor : type
            ``actor(*arguments)`` is made in each worker, and called with ``{"number"}``. It returns
            ``{"number", "error", "result"}``: the result and an empty string, or what went wrong: the name of an error
            of ragq and its message.
        count : int
            Of items.
        workers : int
            At most.
        """
        ray = self._ray
        rows = [{"number": number} for number in range(count)]
        data = ray.data.from_items(rows, override_num_blocks=count).map(
            actor,
            fn_constructor_args=list(arguments),
            concurrency=max(1, min(workers, count)),
            num_cpus=1,
            num_gpus=1 if self.has_gpus else None,
        )
        try:
            for row in data.iter_rows():
                if row["error"]:
                    raise getattr(errors, row["error"])(row["result"].decode())
                yield int(row["number"]), row["result"]
        except ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[-1]
            raise StorageError(f"A worker failed: {reason}. Go on with --resume.") from error

    def close(self) -> None:
        """Disconnect, and stop Ray when it was started here."""
        if self._opened and self._ray.is_initialized():
            self._ray.shutdown()


class Counter:
    """How often each item was begun, and how many of its rows are done; what is done again counts once."""

    def __init__(self) -> None:
        self.rows: dict[int, int] = {}
        self.begun: dict[int, int] = {}

    def begin(self, number: int) -> int:
        """Count a beginning of an item, and return the beginnings so far."""
        self.begun[number] = self.begun.get(number, 0) + 1
        return self.begun[number]

    def tell(self, number: int, rows: int) -> None:
        """Take the rows of an item."""
        self.rows[number] = rows

    def total(self) -> int:
        """Return the rows of all items."""
        return sum(self.rows.values())
