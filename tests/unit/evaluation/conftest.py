from tests.unit.train.conftest import run, runtime

__all__ = ["run", "runtime"]
