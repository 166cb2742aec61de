"""What several test modules share."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real images, weights and golden values that lies beside the checkout."""
    if not SHARED.is_dir():
        pytest.skip(f"real images and golden values are not at hand: {SHARED.name}/ is not beside the checkout")
    return SHARED


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The golden tests take minutes: begun last, they would keep one core busy while the others have nothing left."""
    items.sort(key=lambda item: item.path.name != "test_golden.py")
