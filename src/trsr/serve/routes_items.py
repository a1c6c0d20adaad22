"""The catalogue over HTTP."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path

from trsr.serve.problems import UNKNOWN_FIELDS, UNKNOWN_ITEM, refusals
from trsr.serve.schemas import ItemOut, ItemsIn, ItemsOut, KnownId
from trsr.serve.service import Service
from trsr.types import Item

ItemId = Annotated[KnownId, Path(description="Of the item.")]


def items_router(service: Service) -> APIRouter:
    """Return the addresses of `/v1/items`."""
    router = APIRouter(prefix="/v1/items", tags=["items"])

    @router.put("", responses=refusals(UNKNOWN_FIELDS))
    async def put_items(body: ItemsIn) -> ItemsOut:
        """Add items, or change those that are there; they are found and ranked from now on."""
        items = [Item(item.item_id, item.fields) for item in body.items]
        n_added = await service.write(service.put_items, items)
        n_items = len({item.item_id for item in body.items})
        return ItemsOut(n_added=n_added, n_changed=n_items - n_added)

    @router.get("/{item_id:path}", responses=refusals(UNKNOWN_ITEM))
    def get_item(item_id: ItemId) -> ItemOut:
        """Return an item as it is now."""
        return ItemOut(item_id=item_id, fields=dict(service.item(item_id).fields))

    @router.delete("/{item_id:path}", status_code=204, responses=refusals(UNKNOWN_ITEM))
    async def delete_item(item_id: ItemId) -> None:
        """Delete an item: it is not found, ranked or bought any more.

        Histories keep its id, and prompts say that it has no description.
        """
        await service.write(service.delete_item, item_id)

    return router
