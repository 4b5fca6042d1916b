"""What the transports for callers in an event loop have in common."""

import asyncio

from serving.transport import closed_error


class AsyncTransport:
    """Waits for requests, of which `start` returns futures, without holding up the loop."""

    _closed = False

    def check_open(self):
        """Refuses a call after `close`.

        Raises:
          SettingsError: after it.
        """
        if self._closed:
            raise closed_error()

    async def wait(self, handle):
        """The answer of a started request."""
        return await handle

    def cancel(self, handle):
        """Gives up a started request."""
        handle.cancel()
        # asyncio would report a failure that nobody asks for.
        handle.add_done_callback(lambda future: future.cancelled() or future.exception())

    async def offload(self, function, *arguments):
        """Calls the function in a thread."""
        return await asyncio.to_thread(function, *arguments)

    async def sleep(self, seconds):
        """Waits."""
        await asyncio.sleep(seconds)
