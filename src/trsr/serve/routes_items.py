"""The catalogue over HTTP."""

from __future__ import annotations

from fastapi import APIRouter

from trsr.serve.problems import UNKNOWN_FIELDS, refusals
from trsr.serve.schemas import ItemsIn, ItemsOut
from trsr.serve.service import Service
from trsr.types import Item


def items_router(service: Service) -> APIRouter:
    """Return the address `/v1/items`."""
    router = APIRouter(prefix="/v1/items", tags=["items"])

    @router.put("", responses=refusals(UNKNOWN_FIELDS))
    def put_items(body: ItemsIn) -> ItemsOut:
        """Add items, or change those that are there; they are found and ranked from now on."""
        n_added = service.put_items([Item(item.item_id, item.fields) for item in body.items])
        n_items = len({item.item_id for item in body.items})
        return ItemsOut(n_added=n_added, n_changed=n_items - n_added)

    return router
