"""Fixtures of the trainer's tests."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny_trl


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    pytest.importorskip("trl")
    return tiny_trl.make_tokenizer()


@pytest.fixture(scope="session")
def model_path(tokenizer: Any, tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_trl.save_model(tmp_path_factory.mktemp("model"), tokenizer)


@pytest.fixture
def build(model_path: str, tokenizer: Any, tmp_path: Path) -> Callable[..., Any]:
    """A trainer of a class, with everything else in place; `options` are TRL's configuration."""
    from datasets import Dataset

    def make(cls: type, options: dict[str, Any] | None = None, **parts: Any) -> Any:
        parts = {
            "train_dataset": Dataset.from_list(tiny_trl.PROMPTS),
            "processing_class": tokenizer,
        } | parts
        trainer = cls(model=model_path, args=tiny_trl.arguments(tmp_path, **options or {}), **parts)
        trainer.model.train()
        return trainer

    return make
