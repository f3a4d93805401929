from tests.unit.models.conftest import models_cache, own_cache

__all__ = ["models_cache", "own_cache"]
