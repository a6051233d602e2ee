"""remove: delete a job that has ended."""

from workerctl.parameters import Injected, Uuid


async def remove(uuid: Uuid, *, context: Injected) -> None:
    """Delete a job that has ended, with its log. Nothing brings it back.

    Example: `workerctl remove --uuid 123e4567-e89b-42d3-a456-426614174000`
    """
    async with context.client() as client:
        await client.remove(uuid)
